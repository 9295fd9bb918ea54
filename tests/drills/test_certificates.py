"""D17: certificates that expire and are renewed, ours under load and those of others."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.connector import PinnedHttp
from lmserver.federation_client.errors import Unreachable
from lmserver.federation_client.resolver import Resolver
from lmserver.protocol.signatures import SigningKey
from tests.drills.long import rounds
from tests.federation_client.fakes import LOOPBACK, Clock, FakeDns, Loopback
from tests.kit.certificates import Pair, issue, serial_of
from tests.kit.processes import ServerProcess, configure
from tests.kit.waiting import HANGS

REQUEST = b"GET /_matrix/key/v2/server HTTP/1.1\r\nHost: localhost\r\n\r\n"


# -- ours ---------------------------------------------------------------------------------------------


@dataclass
class Renewal:
    """What peers saw while a certificate was renewed."""

    answers: int = 0
    failures: int = 0
    renewed_served: bool = False
    open_connection_kept: bool = False

    @property
    def good(self) -> bool:
        return self.answers > 20 and not self.failures and self.renewed_served and self.open_connection_kept


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """One request on an open connection."""
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    await reader.readexactly(int(fields[b"content-length"]))
    return head.startswith(b"HTTP/1.1 200 ")


async def watched_renewal(
    port: int, trust: ssl.SSLContext, renew: Callable[[], int], seconds: float
) -> Renewal:
    """Renew while one connection stays open and others come and go; wait `seconds` for the new one."""
    seen = Renewal()

    def connect() -> asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        return asyncio.ensure_future(
            asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="localhost")
        )

    reader, writer = await connect()

    async def knock() -> int:
        passing_reader, passing_writer = await connect()
        try:
            seen.answers += await ask(passing_reader, passing_writer)
            return serial_of(passing_writer.get_extra_info("ssl_object"))
        finally:
            passing_writer.close()

    serial = 0
    for turn in range(10):
        await knock()
        if turn == 5:
            serial = renew()
    try:
        async with asyncio.timeout(seconds):
            while not seen.renewed_served or seen.answers <= 20:
                try:
                    seen.renewed_served = await knock() == serial
                    seen.answers += await ask(reader, writer)
                except (OSError, EOFError):
                    seen.failures += 1
                    await asyncio.sleep(0.01)
    except TimeoutError:
        pass
    with contextlib.suppress(OSError, EOFError):
        seen.open_connection_kept = await ask(reader, writer)
    writer.close()
    return seen


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trust(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


@pytest.fixture
def pair(tmp_path: Path, ca: trustme.CA) -> Pair:
    made = Pair(tmp_path / "tls.crt", tmp_path / "tls.key")
    made.write(ca, "localhost")
    return made


@pytest.fixture
async def server(tmp_path: Path, database_url: str, pair: Pair) -> AsyncIterator[ServerProcess]:
    made = configure(
        tmp_path,
        "renewing",
        database={"url": database_url},
        federation={
            "tls_certificate": str(pair.certificate),
            "tls_private_key": str(pair.private_key),
        },
        limits={"anonymous": {"per_second": 10_000, "burst": 10_000}},
    )
    await made.start()
    yield made
    assert made.stop() == 0


@pytest.mark.parametrize("by", ["hangup", "watching"])
async def test_d17_a_renewed_certificate_is_served_and_nothing_is_dropped(
    server: ServerProcess, pair: Pair, ca: trustme.CA, trust: ssl.SSLContext, by: str
) -> None:
    def renew() -> int:
        serial = pair.write(ca, "localhost")
        assert server.process is not None
        if by == "hangup":
            server.process.send_signal(signal.SIGHUP)
        return serial

    for _ in range(rounds(1, 10)):
        seen = await watched_renewal(int(server.name.rsplit(":", 1)[1]), trust, renew, HANGS)
        assert seen.good, seen


async def answer(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b"{}")


async def listen(context: ssl.SSLContext, port: int = 0) -> tuple[web.ServerRunner, int]:
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, reuse_address=True).start()
    return runner, int(runner.addresses[0][1])


def loaded_once(pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.private_key)
    return context


async def test_d17_control_a_listener_that_loads_once_is_caught(
    pair: Pair, ca: trustme.CA, trust: ssl.SSLContext
) -> None:
    runner, port = await listen(loaded_once(pair))
    seen = await watched_renewal(port, trust, lambda: pair.write(ca, "localhost"), 1.0)
    await runner.cleanup()
    assert not seen.renewed_served and not seen.good
    assert seen.open_connection_kept


async def test_d17_control_a_listener_that_restarts_is_caught(
    pair: Pair, ca: trustme.CA, trust: ssl.SSLContext
) -> None:
    runner, port = await listen(loaded_once(pair))
    restarted: list[asyncio.Task[tuple[web.ServerRunner, int]]] = []

    async def restart() -> tuple[web.ServerRunner, int]:
        await runner.cleanup()
        return await listen(loaded_once(pair), port)

    def renew() -> int:
        serial = pair.write(ca, "localhost")
        restarted.append(asyncio.create_task(restart()))
        return serial

    try:
        seen = await watched_renewal(port, trust, renew, 3.0)
        assert not seen.good
    except OSError:
        pass  # a connection that came in between was dropped: caught as well
    again, _ = await restarted[0]
    await again.cleanup()


# -- those of others ------------------------------------------------------------------------------------


async def outbound(http: PinnedHttp, port: int) -> bool:
    """True when our client accepts the server that listens on `port`."""
    dns, clock = FakeDns(), Clock()
    dns.hosts["hub.test"] = ["127.0.0.1"]
    resolver = Resolver(dns, LOOPBACK, http, clock=clock, wall=clock)
    key = SigningKey.from_seed("us.test", "ed25519:1", b"k" * 32)
    try:
        await FederationClient("us.test", key, resolver, http).request("GET", f"hub.test:{port}", "/x")
    except Unreachable as error:
        if "certificate has expired" not in error.detail:
            raise
        return False
    return True


async def serve(loopback: Loopback, valid_for: float) -> tuple[web.ServerRunner, int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issue(loopback.ca, "hub.test", valid_for=valid_for).configure_cert(context)
    return await listen(context)


async def test_d17_an_expired_certificate_is_refused_and_its_renewal_accepted(loopback: Loopback) -> None:
    for valid_for in (3600.0, -1.0, 3600.0):
        runner, port = await serve(loopback, valid_for)
        assert await outbound(loopback.http(), port) is (valid_for > 0)
        await runner.cleanup()


async def test_d17_control_a_client_that_does_not_verify_accepts_the_expired_one(loopback: Loopback) -> None:
    runner, port = await serve(loopback, -1.0)
    assert not await outbound(loopback.http(), port)
    careless = ssl.create_default_context()
    careless.check_hostname = False
    careless.verify_mode = ssl.CERT_NONE
    http = PinnedHttp(LOOPBACK, careless)
    assert await outbound(http, port)
    await http.close()
    await runner.cleanup()
