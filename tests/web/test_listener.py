"""Connections that say nothing, or too slowly, end; no address holds them all (R1, R2, R4)."""

from __future__ import annotations

import asyncio
import json
import ssl
import statistics
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trustme
from structlog.testing import capture_logs

from lmserver.web import app as web_app
from lmserver.web import listener as web_listener
from lmserver.web import request as web_request
from lmserver.web.addresses import TrustedProxies
from lmserver.web.app import DISPATCHER, build_app
from lmserver.web.endpoint import Auth, Reply, Request, Streamed, endpoint
from lmserver.web.listener import KEEPALIVE_SECONDS, Capacity, Listener
from tests.kit.waiting import HANGS

KEEPALIVE = 0.6
HANDSHAKE = 3.0
LARGE = 30_000_000


class Endpoints:
    """One of each kind."""

    def __init__(self) -> None:
        self.read = 0

    @endpoint("GET", "/ping", auth=Auth.NONE)
    async def ping(self, request: Request) -> dict[str, Any]:
        """Nothing."""
        return {}

    @endpoint("POST", "/echo", auth=Auth.NONE, max_body=1_000_000)
    async def echo(self, request: Request) -> dict[str, Any]:
        """How many members the body has."""
        return {"members": len(await request.json())}

    @endpoint("POST", "/impatient", auth=Auth.NONE, deadline=1.0)
    async def impatient(self, request: Request) -> dict[str, Any]:
        """The same, soon."""
        return await self.echo(request)

    @endpoint("GET", "/large", auth=Auth.NONE, deadline=3.0, at_once=2)
    async def large(self, request: Request) -> Reply:
        """More than sockets buffer."""
        return Reply(200, b"x" * LARGE)

    @endpoint("GET", "/stream", auth=Auth.NONE)
    async def stream(self, request: Request) -> Streamed:
        """A body that breaks."""

        async def body() -> AsyncGenerator[bytes, None]:
            yield b"half"
            raise RuntimeError

        return Streamed(body(), 8, {"Content-Type": "text/plain"})


Port = Callable[..., Awaitable[int]]


@pytest.fixture
async def listen() -> AsyncIterator[Port]:
    listeners: list[Listener] = []

    async def start(capacity: Capacity, keepalive: float = KEEPALIVE_SECONDS) -> int:
        listener = Listener(
            build_app([Endpoints()], {})[DISPATCHER],
            capacity,
            TrustedProxies(),
            shutdown_seconds=0.1,
            keepalive_seconds=keepalive,
        )
        listeners.append(listener)
        return await listener.start("127.0.0.1", 0)

    yield start
    for listener in listeners:
        await listener.close()


class Raw:
    """A connection that says exactly what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, said: bytes = b"") -> Raw:
        made = cls(*await asyncio.open_connection("127.0.0.1", port))
        made.writer.write(said)
        return made

    async def status(self) -> int | None:
        """The status of the answer; None when the connection ends without one."""
        with suppress(ConnectionError):
            line = await self.reader.readline()
            return int(line.split()[1]) if line else None
        return None

    async def ended(self) -> bool:
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        return True

    def close(self) -> None:
        self.writer.transport.abort()


async def ping(port: int) -> float:
    """The seconds a healthy request takes, on a connection of its own."""
    started = time.perf_counter()
    connection = await Raw.open(port, b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await connection.status() == 200
    connection.close()
    return time.perf_counter() - started


async def test_r1_half_requests_end_and_harm_nobody(listen: Port) -> None:
    """Headers that never end: closed within the keep-alive time, while others are served as before."""
    port = await listen(Capacity(1000), KEEPALIVE)
    before = statistics.median([await ping(port) for _ in range(20)])
    half = [await Raw.open(port, b"GET /ping HTTP/1.1\r\nHost: x\r\nX-A: ") for _ in range(300)]

    async def dribble() -> None:
        while True:
            for connection in half:
                connection.writer.write(b"b")
            await asyncio.sleep(0.1)

    dribbling = asyncio.create_task(dribble())
    meanwhile = statistics.median([await ping(port) for _ in range(20)])
    async with asyncio.timeout(HANGS):
        await asyncio.gather(*(connection.ended() for connection in half))
    dribbling.cancel()
    assert meanwhile < max(before * 10, KEEPALIVE / 2), (before, meanwhile)


async def test_r1_no_address_holds_all_connections(listen: Port) -> None:
    """Over its share an address gets no more; when some end there is room again. Control: without a
    share it takes what there is."""
    port = await listen(Capacity(1000, per_address=5))
    held = [await Raw.open(port) for _ in range(5)]
    with pytest.raises(AssertionError):
        await ping(port)
    held[0].close()
    for _ in range(100):
        with suppress(AssertionError):
            await ping(port)
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("the place was not given back")
    open_to_all = await listen(Capacity(1000))
    held += [await Raw.open(open_to_all) for _ in range(50)]
    await ping(open_to_all)
    full = await listen(Capacity(3))
    held += [await Raw.open(full) for _ in range(3)]
    with pytest.raises(AssertionError):
        await ping(full)
    for connection in held:
        connection.close()


@pytest.fixture
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hub.test").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def test_r1_half_handshakes_are_counted_and_end(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection counts before its TLS begins; one that does not finish it is closed."""
    monkeypatch.setattr(web_listener, "HANDSHAKE_SECONDS", HANDSHAKE)
    server, client = contexts
    listener = Listener(
        build_app([Endpoints()], {})[DISPATCHER], Capacity(100, 6), TrustedProxies(), shutdown_seconds=0.1
    )
    port = await listener.start("127.0.0.1", 0, server)

    async def secured() -> int | None:
        """Two requests on one connection, the first in the packet that ends the handshake."""
        said = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
        stream = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="hub.test")
        connection = Raw(*stream)
        connection.writer.write(said)
        status = await connection.status()
        connection.close()
        return status

    assert await secured() == 200
    silent = [await Raw.open(port) for _ in range(3)]
    nonsense = [await Raw.open(port, b"GET / HTTP/1.1\r\n\r\n") for _ in range(2)]
    assert all(await asyncio.gather(*(connection.ended() for connection in nonsense)))
    assert await secured() == 200
    silent += [await Raw.open(port) for _ in range(3)]
    with pytest.raises(OSError):  # noqa: PT011 - refused in whatever way
        await secured()
    assert all(await asyncio.gather(*(connection.ended() for connection in silent)))
    assert await secured() == 200
    while listener._count:
        await asyncio.sleep(0.01)
    await listener.close()


def test_r1_a_trusted_proxy_may_hold_what_it_needs() -> None:
    from ipaddress import ip_network

    proxies = TrustedProxies([ip_network("127.0.0.0/8")])
    listener = Listener(
        build_app([Endpoints()], {})[DISPATCHER], Capacity(100, 2), proxies, shutdown_seconds=0.1
    )
    assert [listener.admit("127.0.0.1") for _ in range(50)] == [""] * 50
    assert [listener.admit("192.0.2.1") is None for _ in range(2)] == [False, False]


async def test_r1_a_body_that_dribbles_ends_with_an_error_of_its_sender(listen: Port) -> None:
    """The deadline is for the whole request, however often a byte comes; the answer is no 5xx."""
    port = await listen(Capacity(100))
    slow = await Raw.open(port, b"POST /impatient HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")

    async def dribble() -> None:
        while True:
            slow.writer.write(b" ")
            await asyncio.sleep(0.05)

    dribbling = asyncio.create_task(dribble())
    assert await slow.status() == 408
    dribbling.cancel()
    slow.close()


async def test_r2_a_million_tiny_chunks(listen: Port) -> None:
    """A chunked body of one byte each is a body like any other; one without end is refused."""
    port = await listen(Capacity(100))
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = json.dumps({str(n): n for n in range(5000)}).encode()
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body) + b"0\r\n\r\n"
    whole = await Raw.open(port, head + chunks)
    assert await whole.status() == 200
    endless = await Raw.open(port, head)

    async def flood() -> None:
        with suppress(ConnectionError):
            while True:
                endless.writer.write(b"1\r\n \r\n" * 10_000)
                await endless.writer.drain()

    flooding = asyncio.create_task(flood())
    assert await endless.status() in (413, 408)
    flooding.cancel()
    for connection in (whole, endless):
        connection.close()
    trailers = await Raw.open(port, head + b"0\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(100_000)))
    assert await trailers.status() in (400, 413, None)
    await ping(port)


async def test_r4_compressed_bodies_are_not_taken(listen: Port) -> None:
    port = await listen(Capacity(100))
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Encoding: %s\r\nContent-Length: 2\r\n\r\n{}"
    for encoding, status in (
        (b"gzip", 415),
        (b"deflate", 415),
        (b"br", 415),
        (b"zstd", 415),
        (b"identity", 200),
    ):
        connection = await Raw.open(port, head % encoding)
        assert await connection.status() == status, encoding
        connection.close()


async def test_r4_a_body_of_too_many_values_is_refused_before_it_is_parsed(
    listen: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_request, "MAX_VALUES", 50_000)
    port = await listen(Capacity(100))

    async def post(body: bytes) -> int | None:
        head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection = await Raw.open(port, head + body)
        status = await connection.status()
        connection.close()
        return status

    assert await post(b'{"a":[' + b"[]," * 30_000 + b"0]}") == 413
    assert await post(b'{"a":"' + b"x" * 900_000 + b'"}') == 200
    assert await post(b'{"a":[' + b"{}," * 20_000 + b"0]}") == 200
    assert await post(b'{"a":[' + b"0," * 40_000) == 400


async def test_r1_answers_that_nobody_reads_are_few_and_end(listen: Port) -> None:
    """Large answers are held only for so many readers at once, and not longer than the deadline."""
    port = await listen(Capacity(100))
    said = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
    unread = [await Raw.open(port, said) for _ in range(2)]
    assert await unread[0].status() == 200
    third = await Raw.open(port, said)
    waited = asyncio.create_task(third.status())
    await ping(port)
    assert not waited.done()
    assert await waited == 200  # its turn came when the others were cut off
    size = 0
    with suppress(ConnectionError):
        while block := await unread[0].reader.read(65536):
            size += len(block)
    assert size < LARGE
    for connection in (*unread, third):
        connection.close()


async def test_too_many_at_once_are_told_to_come_back(listen: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_app, "WAITING", 1)
    port = await listen(Capacity(100))
    said = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
    held = [await Raw.open(port, said) for _ in range(3)]
    assert await held[0].status() == 200
    await ping(port)
    refused = await Raw.open(port, said)
    assert await refused.status() == 429
    head = await refused.reader.readuntil(b"\r\n\r\n")
    assert b"\r\nRetry-After: 1\r\n" in b"\r\n" + head
    for connection in (*held, refused):
        connection.close()


async def test_a_broken_stream_breaks_its_connection(listen: Port) -> None:
    port = await listen(Capacity(100))
    connection = await Raw.open(port, b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    said = b""
    with suppress(ConnectionError):
        while block := await connection.reader.read(65536):
            said += block
    assert b"Content-Length: 8" in said or said == b""
    assert not said.endswith(b"halfhalf")
    connection.close()


async def test_who_asks_before_sending_a_large_body_is_told_to_go_on(listen: Port) -> None:
    """RFC 9110 §10.1.1: curl waits a second otherwise, some clients for ever."""
    port = await listen(Capacity(10))
    body = json.dumps({"a": 1, "b": 2}).encode()
    head = f"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    client = await Raw.open(port, head.encode())
    assert await client.status() == 100
    assert await client.reader.readline() == b"\r\n"
    client.writer.write(body)
    assert await client.status() == 200
    client.close()


async def test_a_body_that_is_refused_is_not_asked_for(listen: Port) -> None:
    port = await listen(Capacity(10))
    said = b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9000000\r\n\r\n"
    client = await Raw.open(port, said)
    assert await client.status() == 413
    client.close()


async def test_who_speaks_http_1_0_is_told_nothing_in_between(listen: Port) -> None:
    """RFC 9110 §10.1.1: such a peer would take a 100 for the answer."""
    port = await listen(Capacity(10))
    said = b"POST /echo HTTP/1.0\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"
    client = await Raw.open(port, said)
    assert await client.status() == 200
    client.close()


async def test_r15_a_body_that_breaks_off_is_no_defect_of_ours() -> None:
    """Neither a 5xx nor a traceback in the log: whoever hangs up in the middle of a body would cause both."""
    seen: list[tuple[str, int]] = []
    ended = asyncio.Event()

    def observe(path: str, status: int, seconds: float) -> None:
        seen.append((path, status))
        ended.set()

    app = build_app([Endpoints()], {}, observe=observe)
    listener = Listener(app[DISPATCHER], Capacity(10), TrustedProxies(), shutdown_seconds=0.1)
    port = await listener.start("127.0.0.1", 0)
    said = b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    with capture_logs() as logged:
        client = await Raw.open(port, said)
        assert await client.status() == 100  # it waits for the body now
        client.close()
        async with asyncio.timeout(HANGS):
            await ended.wait()
    await listener.close()
    assert seen == [("/echo", 400)]
    assert [entry for entry in logged if entry["log_level"] == "error"] == []
