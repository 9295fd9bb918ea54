"""Q4: requests that a proxy and a server could take for different ones, said to both, byte for byte.

Each case carries what would be a second request if its beginning were read the wrong way. That one may
never reach the server: what is ambiguous is refused, or read as one request by everybody.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import http_parser

from lmserver import dev_ca
from lmserver.web.addresses import TrustedProxies
from lmserver.web.app import DISPATCHER, build_app
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.listener import Capacity, Listener
from tests.kit.processes import free_port
from tests.kit.proxies import HAPROXY, NGINX, Haproxy, Nginx, Ports, Proxy
from tests.kit.waiting import HANGS

SMUGGLED = b"GET /_matrix/smuggled/00 HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /_matrix/echo HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
NONE = b"Content-Length: 0\r\n"
WHOLE = b"Content-Length: %d\r\n" % len(SMUGGLED)
END = b"0\r\n\r\n"
SECONDS = 3.0


def chunk(data: bytes, size: bytes = b"%x") -> bytes:
    return (size % len(data) if b"%" in size else size) + b"\r\n" + data + b"\r\n"


# What stands between the request line and the second request.
CASES: dict[str, bytes] = {
    "length and chunks": POST + WHOLE + CHUNKED + b"\r\n" + END + SMUGGLED,
    "chunks and length": POST + CHUNKED + NONE + b"\r\n" + chunk(SMUGGLED) + END,
    "two lengths": POST + NONE + WHOLE + b"\r\n" + SMUGGLED,
    "two lengths in one": POST + b"Content-Length: 0, %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "signed length": POST + b"Content-Length: +%d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "negative length": POST + b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    "length with an underscore": POST + b"Content-Length: 5_0\r\n\r\n" + SMUGGLED,
    "length in hexadecimal": POST + b"Content-Length: 0x0\r\n\r\n" + SMUGGLED,
    "length of other digits": POST + "Content-Length: \u0660\r\n\r\n".encode() + SMUGGLED,
    "space before the colon": POST + b"Content-Length : %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "chunks with a space": POST + b"Transfer-Encoding : chunked\r\n" + NONE + b"\r\n" + chunk(SMUGGLED) + END,
    "chunks twice": POST + CHUNKED + CHUNKED + b"\r\n" + END + SMUGGLED,
    "chunks that are not last": POST + b"Transfer-Encoding: chunked, identity\r\n" + NONE + b"\r\n" + END + SMUGGLED,
    "an unknown encoding": POST + b"Transfer-Encoding: xchunked\r\n" + NONE + b"\r\n" + chunk(SMUGGLED) + END,
    "an encoding after a tab": POST + b"Transfer-Encoding:\tchunked\r\n" + WHOLE + b"\r\n" + END + SMUGGLED,
    "an encoding with a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n" + NONE + b"\r\n" + chunk(SMUGGLED) + END,
    "an encoding in quotes": POST + b'Transfer-Encoding: "chunked"\r\n' + NONE + b"\r\n" + chunk(SMUGGLED) + END,
    "a folded encoding": POST + b"Transfer-Encoding:\r\n chunked\r\n" + NONE + b"\r\n" + chunk(SMUGGLED) + END,
    "a bare line feed": POST + b"X: y\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "a bare carriage return": POST + b"X: y\rContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "NUL in a header": POST + b"X: y\x00\r\n" + NONE + b"\r\n" + SMUGGLED,
    "a chunk size in other notation": POST + CHUNKED + b"\r\n" + chunk(SMUGGLED, b"0x%x") + END,
    "a signed chunk size": POST + CHUNKED + b"\r\n" + chunk(SMUGGLED, b"+%x") + END,
    "a negative chunk size": POST + CHUNKED + b"\r\n-1\r\n" + SMUGGLED,
    "a chunk size that overflows": POST + CHUNKED + b"\r\n" + chunk(SMUGGLED, b"10000000000000000") + END,
    "a chunk extension with a line feed": POST + CHUNKED + b"\r\n2;\nxx\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk that is longer than it says": POST + CHUNKED + b"\r\n2\r\n{}xx0\r\n\r\n" + SMUGGLED,
    "chunks ended by line feeds": POST + CHUNKED + b"\r\n2\n{}\n0\n\n" + SMUGGLED,
    "a trailer that says a length": POST + CHUNKED + b"\r\n2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n" + SMUGGLED,
    "a line before the first header": b"POST /_matrix/echo HTTP/1.1\r\n Host: localhost\r\n" + WHOLE + b"\r\n" + SMUGGLED,
    "chunks in HTTP/1.0": b"POST /_matrix/echo HTTP/1.0\r\nHost: localhost\r\n" + CHUNKED + WHOLE + b"\r\n" + END + SMUGGLED,
    "a method with a body in its line": b"GET /_matrix/echo HTTP/1.1\r\nHost: localhost\r\n" + WHOLE + b"\r\n" + SMUGGLED,
    "another version": b"POST /_matrix/echo HTTP/1.11\r\nHost: localhost\r\n" + WHOLE + b"\r\n" + SMUGGLED,
}  # fmt: skip
# Where what stands first is a whole request by the RFC, the second is one of its sender's own.
WHOLE_BY_ITSELF = {"a trailer that says a length"}


class Endpoints:
    """Remembers which cases brought their second request through."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    @endpoint("POST", "/_matrix/echo", auth=Auth.NONE, deadline=HANGS)
    async def echo(self, request: Request) -> dict[str, int]:
        """How many members the body has."""
        return {"members": len(await request.json())}

    @endpoint("GET", "/_matrix/echo", auth=Auth.NONE, deadline=HANGS)
    async def ask(self, request: Request) -> dict[str, int]:
        """Nothing."""
        return {}

    @endpoint("GET", "/_matrix/smuggled/{case}", auth=Auth.NONE)
    async def smuggled(self, request: Request) -> dict[str, int]:
        """What nobody asked for."""
        self.reached.append(request.params["case"])
        return {}


@pytest.fixture
async def behind() -> AsyncIterator[tuple[Endpoints, int]]:
    """The endpoints and the port that serves them in the clear."""
    endpoints, port = Endpoints(), free_port()
    listener = Listener(
        build_app([endpoints], {})[DISPATCHER], Capacity(500), TrustedProxies(), shutdown_seconds=0.1
    )
    await listener.start("127.0.0.1", port)
    yield endpoints, port
    await listener.close()


async def say(port: int, said: bytes, tls: ssl.SSLContext | None = None, seconds: float = SECONDS) -> bytes:
    """All that comes back until the other end has closed or says no more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    heard = b""
    with suppress(ConnectionError, ssl.SSLError, TimeoutError):
        writer.write(said)
        async with asyncio.timeout(seconds):
            while block := await reader.read(65536):
                heard += block
    writer.transport.abort()
    return heard


async def honest(port: int, members: int, tls: ssl.SSLContext | None) -> None:
    body = b"{%s}" % b",".join(b'"%d":0' % n for n in range(members))
    head = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert b'{"members":%d}' % members in await say(port, head + body, tls, HANGS)


async def attack(endpoints: Endpoints, port: int, tls: ssl.SSLContext | None = None) -> None:
    """Every case, each on its own connection, and honest requests among and after them."""
    numbered = {str(number): said for number, said in enumerate(CASES.values())}
    requests = [
        say(
            port,
            said.replace(SMUGGLED, SMUGGLED.replace(b"smuggled/00", b"smuggled/%02d" % int(number))),
            tls,
        )
        for number, said in numbered.items()
    ]
    heard = await asyncio.gather(*requests, *(honest(port, n, tls) for n in range(5)))
    for n in range(5):
        await honest(port, n, tls)
    names = list(CASES)
    for case in endpoints.reached:
        name, answers = names[int(case)], heard[int(case)]
        assert answers and answers.count(b"HTTP/1.") >= 2, f"{name}: served behind the sender's back"
        assert tls or name in WHOLE_BY_ITSELF, f"{name}: {answers!r}"


async def test_q4_the_server_reads_nothing_ambiguous(behind: tuple[Endpoints, int]) -> None:
    endpoints, port = behind
    await attack(endpoints, port)


def test_q4_requests_are_parsed_by_the_parser_that_is_kept_current() -> None:
    """aiohttp's other one, in Python, is there for interpreters without extensions."""
    parsers: Any = http_parser
    assert parsers.HttpRequestParser is parsers.HttpRequestParserC


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Nginx, marks=pytest.mark.skipif(NGINX is None, reason="nginx is not installed")),
        pytest.param(Haproxy, marks=pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")),
    ],
)
async def test_q4_proxy_and_server_agree_where_a_request_ends(
    behind: tuple[Endpoints, int], kind: type[Proxy], tmp_path: Path
) -> None:
    endpoints, port = behind
    certificate = dev_ca.issue(tmp_path / "ca", "localhost")
    ports = Ports(free_port(), free_port(), port, port)
    proxy = kind(tmp_path / "proxy", ports, certificate.certificate, certificate.private_key)
    await proxy.start()
    try:
        trust = ssl.create_default_context(cafile=str(certificate.ca))
        trust.check_hostname = False
        await attack(endpoints, ports.client, trust)
    finally:
        proxy.stop()


async def test_the_corpus_notices_a_server_that_reads_what_is_ambiguous() -> None:
    """The control: one that goes by the length alone, where there are chunks as well."""
    reached = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            reached.append(head.split()[1])
            length = [
                line.split(b":")[1] for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")
            ]
            await reader.readexactly(int(length[0]) if length else 0)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    await say(server.sockets[0].getsockname()[1], CASES["chunks and length"].replace(b"smuggled/00", b"x"))
    server.close()
    assert len(reached) > 1
