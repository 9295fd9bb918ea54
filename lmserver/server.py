"""The composition: the only place that knows all parts, and the life of the process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog
from aiohttp import web

from lmserver import logs
from lmserver.accounts.accounts import Accounts
from lmserver.accounts.client_data import ClientData
from lmserver.accounts.device_data import DeviceStore
from lmserver.accounts.federated_devices import FederatedDevices
from lmserver.accounts.passwords import Passwords
from lmserver.accounts.push_rules import PushRules
from lmserver.accounts.remote import RemoteUsers
from lmserver.client_api.account_data import AccountDataEndpoints
from lmserver.client_api.devices import DeviceEndpoints
from lmserver.client_api.directory import DirectoryEndpoints
from lmserver.client_api.discovery import DiscoveryEndpoints
from lmserver.client_api.ephemeral import EphemeralEndpoints
from lmserver.client_api.history import HistoryEndpoints
from lmserver.client_api.keys import KeyEndpoints
from lmserver.client_api.login import LoginEndpoints, Sessions, UserAuthenticator
from lmserver.client_api.profile import ProfileEndpoints
from lmserver.client_api.push_rules import PushRuleEndpoints
from lmserver.client_api.rooms import RoomEndpoints
from lmserver.client_api.send import SendEndpoints
from lmserver.client_api.sync import SyncEndpoints
from lmserver.config import Config, generate_signing_key, load_signing_key
from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.connector import PinnedHttp, tls_context
from lmserver.federation_client.dns_lookup import SystemDns
from lmserver.federation_client.keyring import Keyring
from lmserver.federation_client.resolver import Resolver
from lmserver.federation_client.room_api import RoomApi
from lmserver.federation_client.sender import Sender
from lmserver.federation_server.authenticator import ServerAuthenticator
from lmserver.federation_server.devices import DeviceEndpoints as FederationDeviceEndpoints
from lmserver.federation_server.discovery import DiscoveryEndpoints as FederationDiscoveryEndpoints
from lmserver.federation_server.edus import EduDispatcher, ToDevice
from lmserver.federation_server.events import EventEndpoints
from lmserver.federation_server.keys import KeyEndpoints as ServerKeyEndpoints
from lmserver.federation_server.membership import MembershipEndpoints
from lmserver.federation_server.transactions import TransactionEndpoints
from lmserver.metrics import Metrics
from lmserver.protocol.events import EventDraft
from lmserver.protocol.signatures import SigningKey
from lmserver.rooms.directory import Directory
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.gaps import GapFiller
from lmserver.rooms.history import HubHistory
from lmserver.rooms.invites import Invites
from lmserver.rooms.joining import Joining
from lmserver.rooms.lpdu_answers import LpduAnswers
from lmserver.rooms.membership import Membership
from lmserver.rooms.notifier import Notifier
from lmserver.rooms.outcomes import RoomBusy
from lmserver.rooms.own_lpdus import HubSilent, OwnLpdus
from lmserver.rooms.reading import Reading
from lmserver.rooms.receipts import Receipts
from lmserver.rooms.sync.feeds import Feeds
from lmserver.rooms.sync.sync import SyncService
from lmserver.rooms.turns import Turns
from lmserver.rooms.typing import Typing
from lmserver.storage import client_transactions, inbound, migrations, room_reads, room_state
from lmserver.storage.database import Database, DatabaseUnavailable
from lmserver.storage.embedded_postgres import EmbeddedPostgres
from lmserver.web.app import build_app
from lmserver.web.endpoint import Auth
from lmserver.web.errors import ApiError
from lmserver.web.limits import Rate, RateLimiter

log = structlog.get_logger(__name__)

Progress = Callable[[str], None]

STOP_SECONDS = 20.0
HOUSEKEEPING_SECONDS = 3600.0
DAY_MS = 24 * 3600 * 1000
KEEP_INBOUND_MS = 7 * DAY_MS
KEEP_CLIENT_TRANSACTIONS_MS = 2 * DAY_MS

FAILURES: dict[type[Exception], ApiError] = {
    DatabaseUnavailable: ApiError(503, "M_UNKNOWN", "Try again in a moment", {"retry_after_ms": 2000}),
    RoomBusy: ApiError(
        429, "M_LIMIT_EXCEEDED", "Too many events wait for the room", {"retry_after_ms": 1000}
    ),
    HubSilent: ApiError(504, "M_UNKNOWN", "The room's hub has not answered yet"),
}


def clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class _Audience:
    """Who is told after COMMIT: local readers, and the senders to other servers."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self.sender: Sender | None = None

    def publish(self, keys: Iterable[str], xid: int | None = None) -> None:
        self._notifier.publish(keys, xid)

    def wake(self, destinations: Iterable[str]) -> None:
        if self.sender is not None:
            self.sender.wake(destinations)


@dataclass(slots=True)
class Server:
    """A server's parts, wired, and its two applications."""

    config: Config
    db: Database
    engine: RoomEngine
    accounts: Accounts
    membership: Membership
    sender: Sender
    notifier: Notifier
    keyring: Keyring
    client: FederationClient
    passwords: Passwords
    transactions: TransactionEndpoints
    client_app: web.Application
    federation_app: web.Application
    metrics: Metrics

    async def close(self) -> None:
        """Stop in the order in which parts depend on each other."""
        await self.notifier.close()
        await self.sender.stop()
        await self.engine.close()
        await self.keyring.close()
        await self.client.close()
        self.passwords.close()


def assemble(config: Config, db: Database, key: SigningKey, clock: Callable[[], int] = clock_ms) -> Server:
    """Build every part and hand each what it needs."""
    name = config.server_name
    metrics = Metrics()
    notifier = Notifier(lambda: room_reads.stream_positions(db))
    audience = _Audience(notifier)
    client = _federation_client(config, key)
    keyring = Keyring(db, client, key, clock)
    api = RoomApi(client)
    answers = LpduAnswers()
    turns = Turns(db, key, audience, answers, clock)
    own_lpdus = OwnLpdus(db, key, answers, audience.wake, clock)
    engine = RoomEngine(turns, own_lpdus, GapFiller(db, turns, HubHistory(db, api, keyring)))
    sender = Sender(db, client, own_lpdus.answered, clock)
    audience.sender = sender
    passwords = Passwords()
    accounts = Accounts(db, name, passwords, clock)
    joining = Joining(db, key, api, keyring, turns, notifier.publish, clock)
    invites = Invites(db, key, api, keyring, turns, accounts, notifier.publish)
    membership = Membership(db, key, engine, joining, invites, api, accounts.profile, notifier.publish, clock)
    remote = RemoteUsers(db, client, audience.wake, clock)
    directory = Directory(db, engine, remote.alias)
    devices = DeviceStore(db, notifier.publish, clock)
    transactions = TransactionEndpoints(db, engine, keyring, joining.settled, _edus(name, devices), clock)
    federated = FederatedDevices(accounts, devices, name)
    federation: Sequence[object] = (
        transactions,
        MembershipEndpoints(db, engine, keyring, invites, clock),
        EventEndpoints(db, engine),
        ServerKeyEndpoints(key, {}, keyring, clock, linearized=config.federation.mode == "linearized"),
        FederationDiscoveryEndpoints(None),
        FederationDeviceEndpoints(name, federated, federated, directory),
    )
    limiter = _limiter(config)
    return Server(
        config,
        db,
        engine,
        accounts,
        membership,
        sender,
        notifier,
        keyring,
        client,
        passwords,
        transactions,
        _client_app(
            config,
            db,
            engine,
            accounts,
            membership,
            directory,
            devices,
            remote,
            notifier,
            limiter,
            metrics,
            clock,
        ),
        build_app(
            federation,
            {Auth.SERVER: ServerAuthenticator(name, keyring.keys_for_request, sender.peer_alive)},
            failures=FAILURES,
            observe=partial(metrics.observe_request, "federation"),
        ),
        metrics,
    )


def _federation_client(config: Config, key: SigningKey) -> FederationClient:
    guard = AddressGuard(config.federation.allowed_networks)
    http = PinnedHttp(guard, tls_context(config.federation.ca_file))
    resolver = Resolver(SystemDns(), guard, http)
    return FederationClient(
        config.server_name, key, resolver, http, plain_http_servers=config.federation.plain_http_servers
    )


def _limiter(config: Config) -> RateLimiter:
    limits = config.limits
    rates = {"login": limits.login, "registration": limits.registration, "send": limits.send}
    return RateLimiter({name: Rate(r.per_second, r.burst) for name, r in rates.items()})


def _edus(name: str, devices: DeviceStore) -> EduDispatcher:
    async def to_device(origin: str, messages: Sequence[ToDevice]) -> None:
        for m in messages:
            await devices.receive(m.sender, m.user_id, m.device_id, m.type, m.content)

    return EduDispatcher(name, to_device, {})


def _client_app(
    config: Config,
    db: Database,
    engine: RoomEngine,
    accounts: Accounts,
    membership: Membership,
    directory: Directory,
    devices: DeviceStore,
    remote: RemoteUsers,
    notifier: Notifier,
    limiter: RateLimiter,
    metrics: Metrics,
    clock: Callable[[], int],
) -> web.Application:
    data = ClientData(db, notifier.publish)
    reading = Reading(db, clock)
    typing = Typing(notifier.nudge)
    receipts = Receipts(db, reading, data, notifier.publish, clock)
    sync = SyncService(db, notifier, reading, typing, Feeds(db, devices, data))
    sessions = Sessions()
    registration = config.registration
    endpoints: Sequence[object] = (
        DiscoveryEndpoints(config.client.public_url, config.rooms.default_version),
        LoginEndpoints(accounts, sessions, limiter, registration.mode, registration.tokens),
        DeviceEndpoints(accounts, sessions, limiter),
        ProfileEndpoints(
            accounts, config.server_name, partial(_tell_rooms, db, engine, accounts, clock), remote.profile
        ),
        AccountDataEndpoints(data),
        PushRuleEndpoints(PushRules(data)),
        KeyEndpoints(devices, config.server_name, remote),
        RoomEndpoints(
            db, engine, membership, directory, accounts.profile, clock, config.rooms.default_version
        ),
        SendEndpoints(engine, reading, typing, clock),
        HistoryEndpoints(db, reading),
        SyncEndpoints(sync, data.get_filter),
        EphemeralEndpoints(reading, typing, receipts),
        DirectoryEndpoints(db, directory, reading),
    )
    authenticators = {
        Auth.USER: UserAuthenticator(accounts),
        Auth.OPTIONAL_USER: UserAuthenticator(accounts, required=False),
    }
    return build_app(
        endpoints,
        authenticators,
        cors=True,
        failures=FAILURES,
        limiter=limiter,
        observe=partial(metrics.observe_request, "client"),
    )


async def _tell_rooms(
    db: Database, engine: RoomEngine, accounts: Accounts, clock: Callable[[], int], user_id: str
) -> None:
    """A changed profile becomes a member event in each room the user is in."""
    content = {"membership": "join", **await accounts.profile(user_id)}
    for entry in await room_state.user_memberships(db, user_id):
        if entry.membership == "join":
            draft = EventDraft(entry.room_id, "m.room.member", user_id, content, clock(), user_id)
            with contextlib.suppress(HubSilent, RoomBusy):
                await engine.send([draft])


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
    try:
        if embedded is not None:
            running = embedded.running_dsn() if beside else None
            dsn = running if running is not None else await embedded.start()
        if migrate:
            await migrations.upgrade(dsn, progress)
        db = await Database.connect(dsn, config.database_pool)
        try:
            await db.check_safety()
            yield db
        finally:
            await db.close()
    finally:
        if embedded is not None:
            await embedded.stop()


# -- the process ------------------------------------------------------------------------------------


def run(
    config: Config, *, ready: Callable[[], None] = lambda: None, progress: Progress = lambda _: None
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    logs.configure(config.logging.level, config.logging.format)
    for warning in config.warnings():
        log.warning("configuration", warning=warning)
    with asyncio.Runner(loop_factory=_event_loop()) as runner:
        runner.run(_serve(config, ready, progress))
    return 0


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(config: Config, ready: Callable[[], None], progress: Progress) -> None:
    if not config.signing_key_path.exists():
        key_id = generate_signing_key(config.signing_key_path)
        progress(f"Made a signing key, {key_id}, in {config.signing_key_path}. Keep a copy of it.")
    key = load_signing_key(config.signing_key_path, config.server_name)
    stopping = _stop_signal()
    async with open_database(config, progress, migrate=True) as db:
        server = assemble(config, db, key)
        runners: list[web.AppRunner] = []
        housekeeping = asyncio.create_task(_housekeeping(server), name="housekeeping")
        try:
            await server.sender.start()
            await _listen(server, runners)
            ready()
            log.info("ready", server_name=config.server_name)
            await stopping.wait()
            progress("Stopping ...")
        finally:
            housekeeping.cancel()
            await server.notifier.close()
            await asyncio.gather(*(runner.cleanup() for runner in runners))
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


async def _listen(server: Server, runners: list[web.AppRunner]) -> None:
    config = server.config
    tls = _server_tls(config)
    sites: list[tuple[web.Application, str, int, ssl.SSLContext | None]] = [
        (server.client_app, config.client.host, config.client.port, None),
        (server.federation_app, config.federation_listener.host, config.federation_listener.port, tls),
    ]
    if config.metrics is not None:
        sites.append((_metrics_app(server.metrics), config.metrics.host, config.metrics.port, None))
    for app, host, port, context in sites:
        runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=75.0, shutdown_timeout=STOP_SECONDS, auto_decompress=False
        )
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, host, port, ssl_context=context, backlog=1024, reuse_address=True).start()


def _server_tls(config: Config) -> ssl.SSLContext | None:
    listener = config.federation_listener
    if listener.tls_certificate is None or listener.tls_private_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(listener.tls_certificate, listener.tls_private_key)
    return context


def _metrics_app(metrics: Metrics) -> web.Application:
    async def show(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), content_type="text/plain")

    app = web.Application()
    app.router.add_get("/metrics", show)
    return app


async def _housekeeping(server: Server) -> None:
    """Forget what nobody will ask for again."""
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            now = clock_ms()
            await inbound.purge(server.db, now - KEEP_INBOUND_MS)
            await client_transactions.purge(server.db, now - KEEP_CLIENT_TRANSACTIONS_MS)
        await asyncio.sleep(HOUSEKEEPING_SECONDS)


def register_user(config: Config, localpart: str, password: str, *, admin: bool, progress: Progress) -> str:
    """Make an account from the command line; returns the user ID.

    Raises AccountError, BadPassword and what `open_database` raises.
    """

    async def work() -> str:
        async with open_database(config, progress, migrate=True, beside=True) as db:
            passwords = Passwords()
            try:
                accounts = Accounts(db, config.server_name, passwords, clock_ms)
                return await accounts.register(localpart, password, is_admin=admin)
            finally:
                passwords.close()

    return asyncio.run(work())


def migrate(config: Config, progress: Progress) -> None:
    """Bring the database to this version's schema."""

    async def work() -> None:
        async with open_database(config, progress, migrate=True):
            progress("The database schema is current.")

    asyncio.run(work())


__all__ = ["Server", "assemble", "migrate", "open_database", "register_user", "run"]
