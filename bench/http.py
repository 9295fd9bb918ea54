"""A small HTTP/1.1 client for load, and a server that gives fixed answers: on this machine they share two
cores with what they measure, and common ones would take as much of them as that does."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Self, cast
from urllib.parse import urlsplit

import httptools


class Http:
    """Connections that are kept open and used in turn; to each server as many as requests run at once."""

    def __init__(self) -> None:
        self._tls = _unchecked()
        self._idle: dict[str, list[_Connection]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connections in self._idle.values():
            for connection in connections:
                connection.close()

    async def request(
        self, server: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of the answer of `server`, a URL without a path; raises ConnectionError."""
        idle = self._idle.setdefault(server, [])
        while idle and idle[-1].closed:
            idle.pop()
        connection = idle.pop() if idle else await self._connect(server)
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        host = server.partition("://")[2]
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
        answer = await connection.exchange(head.encode() + body)
        if not connection.closed:
            idle.append(connection)
        return answer

    async def _connect(self, server: str) -> _Connection:
        address = urlsplit(server)
        _, connection = await asyncio.get_running_loop().create_connection(
            _Connection, address.hostname, address.port, ssl=self._tls if address.scheme == "https" else None
        )
        return connection


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def exchange(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the server hung up"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    # -- what the parser calls ----------------------------------------------------------------

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        self.closed = not self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), body))


class Answers(asyncio.Protocol):
    """A server's connection: for a path its answer, a JSON text, for any other the one of ""."""

    def __init__(self, answers: Mapping[str, bytes]) -> None:
        self._answers = answers
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    # -- what the parser calls ----------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_message_complete(self) -> None:
        assert self._transport is not None
        body = self._answers.get(self._url.decode(), self._answers[""])
        self._url = b""
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def _unchecked() -> ssl.SSLContext:
    """TLS with servers of a throw-away authority on loopback."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
