"""What a hostile server, name server or client can make our requests do: nothing (attacks F1, F5, F8 to F10, F12)."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme
from aiohttp import web

import lmserver
from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.connector import PinnedHttp
from lmserver.federation_client.dns_lookup import SrvRecord
from lmserver.federation_client.errors import BadResponse, Unreachable
from lmserver.federation_client.resolver import Resolver
from lmserver.protocol.signatures import SigningKey
from tests.federation_client.fakes import LOOPBACK, Clock, FakeDns, Loopback
from tests.kit.certificates import issue
from tests.kit.processes import free_port
from tests.kit.waiting import HANGS

KEY = SigningKey.from_seed("us.test", "ed25519:1", b"k" * 32)


class Seen:
    """A server that remembers the Host header and the name in the TLS handshake (SNI)."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.names: list[str | None] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.hosts.append(request.headers["Host"])
        return web.Response(body=b"{}")

    async def serve(self, loopback: Loopback, *names: str) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        loopback.ca.issue_cert(*names).configure_cert(context)
        context.sni_callback = lambda _object, name, _context: self.names.append(name)
        return await loopback.serve_with(self, context)


def client(
    http: PinnedHttp,
    dns: FakeDns,
    *,
    well_known_port: int = 1,
    guard: AddressGuard = LOOPBACK,
    plain: frozenset[str] = frozenset(),
) -> FederationClient:
    clock = Clock()
    resolver = Resolver(dns, guard, http, clock=clock, wall=clock, well_known_port=well_known_port)
    return FederationClient("us.test", KEY, resolver, http, plain_http_servers=plain)


# -- F9: the certificate's name, the name asked for and the Host header, step by step -------------------


async def delegation(loopback: Loopback, to: str) -> int:
    async def document(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=f'{{"m.server": "{to}"}}'.encode())

    return await loopback.serve(document, "name.test")


@pytest.mark.parametrize(
    ("step", "proves", "host"),
    [
        ("1", "name.test", "name.test:{port}"),
        ("2.1", "delegated.test", "delegated.test:{port}"),
        ("2.3", "delegated.test", "delegated.test"),
        ("3", "name.test", "name.test"),
    ],
)
async def test_f9_each_step_has_its_certificate_name_and_host_header(
    loopback: Loopback, dns: FakeDns, step: str, proves: str, host: str
) -> None:
    """D04 §Resolving Server Names; steps 2.4 and 4 differ from 2.3 and 3 in the port alone."""
    every = {"name.test", "delegated.test", "target.test"}
    dns.hosts |= {name: ["127.0.0.1"] for name in every}

    async def ask(*certified: str) -> tuple[Seen, int]:
        seen = Seen()
        port = await seen.serve(loopback, *certified)
        name, well_known_port = "name.test", 1
        if step == "1":
            name = f"name.test:{port}"
        elif step.startswith("2"):
            delegated = "delegated.test" + (f":{port}" if step == "2.1" else "")
            well_known_port = await delegation(loopback, delegated)
        owner = "delegated.test" if step.startswith("2") else "name.test"
        dns.services = {f"_matrix._tcp.{owner}": [SrvRecord(0, 0, port, "target.test")]}
        asked = client(loopback.http(), dns, well_known_port=well_known_port)
        if proves in certified:
            await asked.request("GET", name, "/x")
        else:
            with pytest.raises(Unreachable) as caught:
                await asked.request("GET", name, "/x")
            assert "certificate verify failed" in caught.value.detail
        return seen, port

    seen, port = await ask(proves)
    assert (seen.hosts, seen.names) == ([host.format(port=port)], [proves])
    seen, _ = await ask(*(every - {proves}))
    assert (seen.hosts, seen.names) == ([], [proves])


def self_signed(_: Loopback) -> ssl.SSLContext:
    """A leaf whose authority is itself, as far as the client can know."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf = trustme.CA().issue_cert("hub.test")
    with leaf.private_key_and_cert_chain_pem.tempfile() as path:
        context.load_cert_chain(path)
    return context


def expired(loopback: Loopback) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issue(loopback.ca, "hub.test", valid_for=-60.0).configure_cert(context)
    return context


def of_tomorrow(loopback: Loopback) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issue(loopback.ca, "hub.test", valid_since=3600.0, valid_for=7200.0).configure_cert(context)
    return context


def wrong_name(loopback: Loopback) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    loopback.ca.issue_cert("other.test", "*.hub.test", "127.0.0.1").configure_cert(context)
    return context


def tls_1_2(loopback: Loopback) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    loopback.ca.issue_cert("hub.test").configure_cert(context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize("made", [self_signed, expired, of_tomorrow, wrong_name, tls_1_2])
async def test_f9_what_a_server_presents_is_refused_before_anything_is_sent(
    loopback: Loopback, dns: FakeDns, made: Callable[[Loopback], ssl.SSLContext]
) -> None:
    seen = Seen()
    port = await loopback.serve_with(seen, made(loopback))
    dns.hosts["hub.test"] = ["127.0.0.1"]
    with pytest.raises(Unreachable):
        await client(loopback.http(), dns).request("PUT", f"hub.test:{port}", "/x", content={})
    assert not seen.hosts


# -- F8: priorities ---------------------------------------------------------------------------------------


async def test_f8_a_backup_is_asked_only_when_the_first_cannot_be_reached(
    loopback: Loopback, dns: FakeDns
) -> None:
    first, second = Seen(), Seen()
    first_port = await first.serve(loopback, "hub.test")
    second_port = await second.serve(loopback, "hub.test")
    dns.hosts["box.test"] = ["127.0.0.1"]

    def records(*ports: int) -> None:
        dns.services["_matrix._tcp.hub.test"] = [
            SrvRecord(priority, 0, port, "box.test") for priority, port in enumerate(ports)
        ]

    records(first_port, second_port)
    for _ in range(5):
        await client(loopback.http(), dns).request("GET", "hub.test", "/x")
    assert (len(first.hosts), len(second.hosts)) == (5, 0)
    records(free_port(), second_port)
    await client(loopback.http(), dns).request("GET", "hub.test", "/x")
    assert (len(first.hosts), len(second.hosts)) == (5, 1)
    wrong = await Seen().serve(loopback, "other.test")
    records(wrong, second_port)
    await client(loopback.http(), dns).request("GET", "hub.test", "/x")
    assert len(second.hosts) == 2


# -- F5, F1 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_f5_a_signed_request_follows_no_redirect(loopback: Loopback, dns: FakeDns, status: int) -> None:
    inside = Seen()
    hidden = await inside.serve(loopback, "hub.test")
    dns.hosts["hub.test"] = ["127.0.0.1"]

    async def moved(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": f"https://hub.test:{hidden}/x"})

    port = await loopback.serve(moved, "hub.test")
    answer = await client(loopback.http(), dns).request("GET", f"hub.test:{port}", "/x")
    assert (answer.status, answer.json) == (status, None)
    assert not inside.hosts


def test_f1_nothing_but_the_guarded_connector_opens_connections() -> None:
    """Whatever is fetched for a stranger, keys and media too, goes through connector.py."""
    opens = re.compile(
        r"ClientSession\(|TCPConnector\(|open_connection\(|create_connection\(|urlopen\(|getaddrinfo\("
    )
    root = Path(lmserver.__file__).parent
    found = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if opens.search(path.read_text("utf-8"))
    }
    # Tools that an operator points at a server; demo.py talks to the two that it has started itself,
    # and web/listener.py looks up the address it is configured to listen at.
    found = {path for path in found if not path.startswith(("conformance/", "federation_check/"))}
    assert found <= {"federation_client/connector.py", "commands/demo.py", "web/listener.py"}


# -- F10 ----------------------------------------------------------------------------------------------------


async def flood(loopback: Loopback, first: bytes, again: bytes) -> int:
    """A server that answers without end, as fast as the reader reads."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(first)
            while True:
                writer.write(again)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    loopback._stack.callback(server.close)
    return int(server.sockets[0].getsockname()[1])


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 500),
        (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * 500),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"HTTP/1.1 204 No Content\r\n\r\n" * 500),
        (b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 5000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"Trailer: 1\r\n" * 3000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536),
    ],
    ids=["100", "103", "200", "after", "headers", "header", "body", "chunks", "trailers", "chunk-extension"],
)
async def test_f10_endless_answers_end_and_hold_nobody_up(
    loopback: Loopback, dns: FakeDns, first: bytes, again: bytes, request: pytest.FixtureRequest
) -> None:
    port = await flood(loopback, first, again)
    dns.hosts["hub.test"] = ["127.0.0.1"]
    name = f"hub.test:{port}"
    asked = client(loopback.http(), dns, plain=frozenset({name}))
    busy = 0.0

    async def heartbeat() -> None:
        """Notes the most that the loop works before it turns to us."""
        nonlocal busy
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            busy = max(busy, time.thread_time() - before)

    beating = asyncio.create_task(heartbeat())
    limited = request.node.callspec.id in ("100", "103", "200", "after")
    started = time.monotonic()
    with suppress(Unreachable, BadResponse):
        answer = await asked.request(
            "GET", name, "/x", timeout=HANGS if limited else 2.0, max_response=1_000_000
        )
        assert answer.json is None or answer.json == {}  # what comes after a whole answer is not waited for
    beating.cancel()
    if limited:
        assert time.monotonic() - started < HANGS / 2  # nobody waits for the deadline
    assert busy < 0.5


async def test_f10_headers_small_one_by_one_but_large_together(loopback: Loopback, dns: FakeDns) -> None:
    async def many(request: web.BaseRequest) -> web.StreamResponse:
        count = int(request.path.removeprefix("/"))
        return web.Response(body=b"{}", headers={f"X-{n}": "x" * 1000 for n in range(count)})

    port = await loopback.serve(many, "hub.test")
    dns.hosts["hub.test"] = ["127.0.0.1"]
    asked = client(loopback.http(), dns)
    assert (await asked.request("GET", f"hub.test:{port}", "/30")).status == 200
    with pytest.raises(BadResponse, match="headers are too large"):
        await asked.request("GET", f"hub.test:{port}", "/35")


# -- F12 ----------------------------------------------------------------------------------------------------


async def test_f12_no_failure_says_more_to_a_client_than_another(loopback: Loopback, dns: FakeDns) -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"{}")

    other_name = await loopback.serve(answer, "other.test")
    plain_http = await loopback.serve_with(answer, None)
    dns.hosts |= {
        "hub.test": ["127.0.0.1"],
        "inside.test": ["127.0.0.2"],
        "meta.test": ["169.254.169.254"],
    }
    dns.services["_matrix._tcp.ssh.test"] = [SrvRecord(0, 0, 22, "hub.test")]
    http = loopback.http(AddressGuard([ip_network("127.0.0.1/32")]))
    asked = client(http, dns, guard=AddressGuard([ip_network("127.0.0.1/32")]))
    told = {}
    for name in (
        f"hub.test:{free_port()}",  # closed
        f"hub.test:{other_name}",  # the wrong certificate
        f"hub.test:{plain_http}",  # no TLS
        "hub.test:22",
        "inside.test:8448",
        "meta.test:80",
        "ssh.test",
        "none.test",
        "127.0.0.1:80",
    ):
        with pytest.raises(Unreachable) as caught:
            await asked.request("GET", name, "/x")
        told[name] = str(caught.value)
        assert caught.value.detail
    assert set(told.values()) == {"server could not be reached"}
