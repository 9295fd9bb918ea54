"""The life of the process: its database, its listeners, its end, and what the command line does alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from lmserver import logs, own_keys
from lmserver.accounts.access_tokens import AccessTokens
from lmserver.accounts.accounts import Accounts
from lmserver.accounts.device_lists import DeviceLists
from lmserver.accounts.interactive_auth import SESSION_MS
from lmserver.accounts.passwords import Passwords
from lmserver.accounts.sso import SESSION_MS as SSO_SESSION_MS
from lmserver.composition import Server, assemble, clock_ms
from lmserver.config import ClientListener, Config, ConfigError, MetricsListener
from lmserver.config_admin import AdminListener
from lmserver.config_federation import FederationListener
from lmserver.config_files import file_problems
from lmserver.federation_client.key_keeper import KeyKeeper
from lmserver.metrics import Metrics
from lmserver.protocol import ids
from lmserver.storage import (
    access_tokens,
    accounts,
    client_transactions,
    destinations,
    e2e_keys,
    holds,
    inbound,
    interactive_auth,
    lpdus,
    migrations,
    outbound,
    sliding_sync,
    sso,
    to_device,
)
from lmserver.storage.database import Database, DatabaseUnavailable, UnsafeDatabase
from lmserver.storage.embedded_postgres import EmbeddedPostgres
from lmserver.tls import CertificateError, ServerCertificate
from lmserver.web.addresses import TrustedProxies
from lmserver.web.app import DISPATCHER
from lmserver.web.listener import Capacity, Handler, Listener

log = structlog.get_logger(__name__)

Progress = Callable[[str], None]

STOP_SECONDS = 20.0
CONNECTIONS_PER_ADDRESS = 200
"""Of other servers: the client listener stands behind a proxy, whose address all clients share."""
OPEN_FILES = 65_536
HOUSEKEEPING_SECONDS = 3600.0
DAY_MS = 24 * 3600 * 1000
FAILING_MS = 3600 * 1000
KEEP_INBOUND_MS = 7 * DAY_MS
KEEP_CLIENT_TRANSACTIONS_MS = 2 * DAY_MS
KEEP_OWN_LPDUS_MS = 8 * DAY_MS
KEEP_EDUS_MS = 30 * DAY_MS
KEEP_SLIDING_MS = 14 * DAY_MS
MEASURE_SECONDS = 30.0


# -- the database -----------------------------------------------------------------------------------


@asynccontextmanager
async def open_database(
    config: Config, progress: Progress, *, migrate: bool = False, beside: bool = False
) -> AsyncIterator[Database]:
    """The configured database, or the embedded one for as long as the block runs; `beside` may
    use the embedded one of a server that is running.

    Raises EmbeddedPostgresError, MigrationError, UnsafeDatabase or DatabaseUnavailable.
    """
    embedded = None if config.database_url else EmbeddedPostgres(config.data_dir, progress)
    dsn = config.database_url or ""
    watching: asyncio.Task[None] | None = None
    try:
        if embedded is not None:
            running = embedded.running_dsn() if beside else None
            dsn = running if running is not None else await embedded.start()
            if running is None:
                watching = asyncio.create_task(embedded.watch(), name="embedded database")
        db = await Database.connect(dsn, config.database_pool)
        try:
            await db.check_safety()
            if await migrations.current(dsn) is not None:  # another server's is not ours to change
                await _check_name(db, config.server_name)
            await (migrations.upgrade(dsn, progress) if migrate else migrations.check(dsn))
            yield db
        finally:
            await db.close()
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        if embedded is not None:
            await embedded.stop()


async def _check_name(db: Database, server_name: str) -> None:
    """Raises UnsafeDatabase for the database of another server: ours would sign in its rooms."""
    user_id = await accounts.anybody(db)
    if user_id is not None and ids.server_of(user_id) != server_name:
        raise UnsafeDatabase(
            f"it belongs to {ids.server_of(user_id)}, and server_name is {server_name}: a server cannot"
            " change its name; set it back, or data_dir and database.url to a place of this server's own"
        )


# -- the process ------------------------------------------------------------------------------------


def run(
    config: Config, *, ready: Callable[[], None] = lambda: None, progress: Progress = lambda _: None
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status. Raises ConfigError."""
    problems = file_problems(config)
    if problems:
        raise ConfigError(problems)
    logs.configure(config.logging.level, config.logging.format)
    for warning in config.warnings():
        log.warning("configuration", warning=warning)
    allow_files()
    with asyncio.Runner(loop_factory=_event_loop()) as runner:
        runner.run(_serve(config, ready, progress))
    return 0


def allow_files() -> None:
    """Every connection and every DNS query is an open file: take what the system grants."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(config: Config, ready: Callable[[], None], progress: Progress) -> None:
    if not config.signing_key_path.exists():
        key_id = own_keys.generate(config.signing_key_path)
        progress(f"Made a signing key, {key_id}, in {config.signing_key_path}. Keep a copy of it.")
    keys = own_keys.load(config.signing_key_path, config.server_name)
    stopping = _stop_signal()
    async with open_database(config, progress, migrate=True) as db:
        server = assemble(config, db, keys.signing, old_keys=keys.old)
        listeners: list[Listener] = []
        restored = await server.guard.check()
        if restored is not None:
            progress(f"Restored: {restored}. Rooms are held; see `lmserver held-rooms`.")
        keeper = KeyKeeper(keys, db, server.client, clock_ms)
        background = [
            asyncio.create_task(_housekeeping(server), name="housekeeping"),
            asyncio.create_task(_measure(server), name="measure"),
            asyncio.create_task(keeper.watch(), name="own keys"),
            asyncio.create_task(server.guard.run(server.recovery.restored), name="restore guard"),
        ]
        try:
            certificate = _certificate(config, server.metrics)
            if certificate is not None:
                background.append(asyncio.create_task(certificate.watch(), name="certificate"))
            _on_hangup(certificate)
            await server.appservices.services.start()
            await server.blocked.load()
            background.append(asyncio.create_task(server.blocked.run(), name="blocked servers"))
            await _listen(server, listeners, certificate)
            await keeper.begin()
            await server.sender.start()
            background.append(asyncio.create_task(server.echo_watch.run(), name="echo watch"))
            background.append(asyncio.create_task(server.gaps.run(), name="gaps"))
            background.append(asyncio.create_task(server.declines.run(), name="declines"))
            background.append(asyncio.create_task(server.departures.run(), name="departures"))
            background.append(asyncio.create_task(server.purges.run(), name="room purges"))
            background.append(asyncio.create_task(server.push.run(), name="push"))
            background.append(asyncio.create_task(server.serve_bridges(), name="application services"))
            server.recovery.start()
            _collect_less()
            ready()
            log.info("ready", server_name=config.server_name)
            await stopping.wait()
            progress("Stopping ...")
        finally:
            for task in background:
                task.cancel()
            await server.notifier.close()
            await asyncio.gather(*(listener.close() for listener in listeners))
            await server.close()


def _stop_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            raise SystemExit(1)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopping


def _on_hangup(certificate: ServerCertificate | None) -> None:
    """SIGHUP loads the certificate at once; it never ends the process."""
    reload = certificate.reload if certificate is not None else lambda: False
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


def _collect_less() -> None:
    """What was made until now stays: the collector need not look through it each time. Requests leave few
    cycles behind and their objects live until they are answered, so it looks less often than Python's
    default, which took 8 % of the time of a server that wakes a thousand clients (3 % so)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


_Place = ClientListener | FederationListener | AdminListener | MetricsListener


async def _listen(server: Server, listeners: list[Listener], certificate: ServerCertificate | None) -> None:
    config = server.config
    tls = certificate.context if certificate is not None else None
    proxies = TrustedProxies(config.trusted_proxies)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    share = (OPEN_FILES if soft == resource.RLIM_INFINITY else soft) // 4
    peers, anybody = Capacity(share, CONNECTIONS_PER_ADDRESS), Capacity(share)
    federation = config.federation_listener
    sites: list[tuple[str, Handler, Capacity, _Place, ssl.SSLContext | None]] = [
        ("client", server.client_app[DISPATCHER], anybody, config.client, None),
        ("federation", server.federation_app[DISPATCHER], peers, federation, tls),
    ]
    if config.admin is not None:
        sites.append(("admin", server.admin_app[DISPATCHER], anybody, config.admin, None))
    if config.metrics is not None:
        sites.append(("metrics", _shows(server.metrics), anybody, config.metrics, None))
    for name, handler, capacity, place, context in sites:
        listener = Listener(handler, capacity, proxies, shutdown_seconds=STOP_SECONDS)
        listeners.append(listener)
        try:
            await listener.start(place.host, place.port, context)
        except OSError as error:
            where = f"{name}.host, {name}.port: cannot listen at {place.host}, port {place.port}"
            advice = "end what uses it, or choose another"
            raise ConfigError([f"{where}: {error.strerror}; {advice}"]) from error


def _certificate(config: Config, metrics: Metrics) -> ServerCertificate | None:
    listener = config.federation_listener
    if listener.tls_certificate is None or listener.tls_private_key is None:
        return None
    try:
        return ServerCertificate(listener.tls_certificate, listener.tls_private_key, metrics)
    except CertificateError as error:
        raise ConfigError([f"federation.tls_certificate: {listener.tls_certificate}: {error}"]) from error


def _shows(metrics: Metrics) -> Handler:
    async def show(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/metrics" or request.method not in ("GET", "HEAD"):
            return web.Response(status=404, text="metrics are at /metrics")
        return web.Response(body=metrics.text(), content_type="text/plain")

    return show


async def _housekeeping(server: Server) -> None:
    """Forget what nobody will ask for again."""
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            now, db = clock_ms(), server.db.patient()
            await inbound.purge(db, now - KEEP_INBOUND_MS)
            await interactive_auth.purge(db, now - SESSION_MS)
            await access_tokens.purge_logins(db, now)
            await server.accounts.tidy()
            await sso.purge(db, now - SSO_SESSION_MS)
            await lpdus.purge(db, now - KEEP_OWN_LPDUS_MS)
            await client_transactions.purge(db, now - KEEP_CLIENT_TRANSACTIONS_MS)
            await to_device.purge(db, now - KEEP_CLIENT_TRANSACTIONS_MS, now - KEEP_INBOUND_MS)
            await e2e_keys.forget_claimed(db)
            await outbound.purge_edus(db, now - KEEP_EDUS_MS)
            await sliding_sync.purge(db, now - KEEP_SLIDING_MS)
            await server.upgrades.tidy()
            await server.purges.tidy()
            await server.media.local.tidy()
            await server.media.remote.tidy()
            if server.media.previews is not None:
                await server.media.previews.tidy()
        await asyncio.sleep(HOUSEKEEPING_SECONDS)


async def _measure(server: Server) -> None:
    """Gauges that are read from the database."""
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            server.metrics.observe_outbox(await outbound.waiting_edus(server.db))
            failing = await destinations.count_failing(server.db, clock_ms() - FAILING_MS)
            server.metrics.destinations_failing.set(failing)
            server.metrics.rooms_held.set(len(await holds.held(server.db)))
        await asyncio.sleep(MEASURE_SECONDS)


def _nobody(_: object) -> None:
    """No server runs in this process that could be told."""


@asynccontextmanager
async def open_accounts(config: Config, progress: Progress) -> AsyncIterator[tuple[Database, Accounts]]:
    """The database and its accounts, beside a server or without one. Raises what `open_database` does."""
    async with open_database(config, progress, migrate=True, beside=True) as db:
        passwords = Passwords()
        try:
            lists = DeviceLists(config.server_name, _nobody, _nobody, lambda _, __: None, clock_ms)
            tokens = AccessTokens(db, clock_ms)
            yield db, Accounts(db, config.server_name, passwords, lists, tokens, clock_ms)
        finally:
            passwords.close()


def register_user(config: Config, localpart: str, password: str, *, admin: bool, progress: Progress) -> str:
    """Make an account from the command line; returns the user ID.

    Raises AccountError, BadPassword and what `open_database` raises.
    """

    async def work() -> str:
        async with open_accounts(config, progress) as (_, accounts):
            return await accounts.register(localpart, password, is_admin=admin)

    return asyncio.run(work())


def migrate(config: Config, progress: Progress) -> None:
    """Bring the database to this version's schema."""

    async def work() -> None:
        async with open_database(config, progress, migrate=True):
            progress("The database schema is current.")

    asyncio.run(work())
