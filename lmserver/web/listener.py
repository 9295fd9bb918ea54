"""A listening socket that no single address can fill.

A connection costs a file and some memory before anything has been said on it. aiohttp closes one
whose request does not come within the keep-alive time; here it is bounded how many there are, which
is why TLS begins only after a connection has been counted.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from lmserver.web.addresses import TrustedProxies, rate_key

log = structlog.get_logger(__name__)

KEEPALIVE_SECONDS = 75.0
HANDSHAKE_SECONDS = 10.0
ACCEPT_PAUSE_SECONDS = 0.1
BACKLOG = 1024
TOLD_EVERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """Connections at most: altogether, and from one address that is no trusted proxy (None: as many)."""

    total: int
    per_address: int | None = None


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Listener:
    """One handler of requests on one socket."""

    def __init__(
        self,
        handler: Handler,
        capacity: Capacity,
        proxies: TrustedProxies,
        *,
        shutdown_seconds: float,
        keepalive_seconds: float = KEEPALIVE_SECONDS,
    ) -> None:
        self._handler = handler
        self._shutdown_seconds = shutdown_seconds
        self._keepalive_seconds = keepalive_seconds
        self._server: web.Server | None = None
        self._capacity = capacity
        self._proxies = proxies
        self._open: Counter[str] = Counter()
        self._count = 0
        self._told = -TOLD_EVERY_SECONDS
        self._tls: ssl.SSLContext | None = None
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen; returns the port. Raises OSError."""
        self._server = web.Server(
            self._handler,
            access_log=None,
            logger=_HttpLog(),
            keepalive_timeout=self._keepalive_seconds,
            auto_decompress=False,
        )
        self._tls = tls
        infos = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, proto, _, address in dict.fromkeys(infos):
            self._sockets.append(_listening(socket.socket(family, kind, proto), address))
        for listening in self._sockets:
            self._spawn(self._accept(listening))
        return int(self._sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Take no more, and let what is in progress finish."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        if self._server is not None:
            await asyncio.sleep(0)  # what has come is begun before idle connections are closed
            self._server.pre_shutdown()
            await self._server.shutdown(self._shutdown_seconds)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:  # no file left, or the other end went before we looked
                log.warning("connection_not_accepted", error=str(error))
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            key = self.admit(str(address[0]))
            if key is None:
                accepted.close()
            else:
                self._spawn(self._begin(accepted, key))

    async def _begin(self, accepted: socket.socket, key: str) -> None:
        """TLS, if there is to be, then aiohttp's protocol. What was not begun is not left open."""
        if self._server is None:
            raise RuntimeError("the listener is not started")
        connection = _Connection(self._server(), partial(self._leave, key))
        handshake = {} if self._tls is None else {"ssl_handshake_timeout": HANDSHAKE_SECONDS}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, accepted, ssl=self._tls, **handshake
            )
        except OSError:  # silence, nonsense, or gone: the loop has closed it
            return
        finally:
            if not connection.begun:
                self._leave(key)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def admit(self, address: str) -> str | None:
        """Count a new connection; what it is counted under, or None when there are too many."""
        key = "" if self._proxies.trusts(address) else rate_key(address)
        limit = self._capacity.per_address if key else None
        if self._count >= self._capacity.total or (limit is not None and self._open[key] >= limit):
            self._tell(key)
            return None
        self._count += 1
        self._open[key] += 1
        return key

    def _leave(self, key: str) -> None:
        self._count -= 1
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]

    def _tell(self, key: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told >= TOLD_EVERY_SECONDS:
            self._told = now
            log.warning("connections_refused", address=key, open=self._count)


class _HttpLog:
    """In place of aiohttp's logger, which tells of each malformed request with a traceback: whoever
    sends many would fill the disk (attack R15)."""

    def __init__(self) -> None:
        self._count = 0
        self._told = -TOLD_EVERY_SECONDS

    def debug(self, message: str, *args: object, **more: object) -> None:
        """Nothing an operator needs."""

    def exception(self, message: str, *args: object, exc_info: object = None) -> None:
        """A request that is none is counted; anything else is a defect."""
        error = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
        if not isinstance(error, HttpProcessingError):
            log.error("connection_failed", error=type(error).__name__, exc_info=error)
            return
        self._count += 1
        now = asyncio.get_running_loop().time()
        if now - self._told >= TOLD_EVERY_SECONDS:
            log.warning("requests_malformed", count=self._count, error=type(error).__name__)
            self._told, self._count = now, 0


def _listening(made: socket.socket, address: Any) -> socket.socket:
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setblocking(False)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


class _Connection(asyncio.Protocol):
    """Tells of a connection's end and hands everything on to aiohttp's protocol."""

    def __init__(self, inner: web.RequestHandler, ended: Callable[[], None]) -> None:
        self._inner = inner
        self._ended = ended
        self.begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.begun = True
        self._inner.connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._ended()
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> None:
        self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
