"""A listening socket that no single address can fill.

A connection costs a file and some memory before anything has been said on it. aiohttp closes one
whose request does not come within the keep-alive time; here it is bounded how many there are.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from dataclasses import dataclass
from typing import cast

import structlog
from aiohttp import web

from lmserver.web.addresses import TrustedProxies, rate_key

log = structlog.get_logger(__name__)

KEEPALIVE_SECONDS = 75.0
BACKLOG = 1024
TOLD_EVERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """Connections at most: altogether, and from one address that is no trusted proxy (None: as many)."""

    total: int
    per_address: int | None = None


class Listener:
    """One application on one socket."""

    def __init__(
        self,
        app: web.Application,
        capacity: Capacity,
        proxies: TrustedProxies,
        *,
        shutdown_seconds: float,
        keepalive_seconds: float = KEEPALIVE_SECONDS,
    ) -> None:
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=keepalive_seconds,
            shutdown_timeout=shutdown_seconds,
            auto_decompress=False,
        )
        self._capacity = capacity
        self._proxies = proxies
        self._open: Counter[str] = Counter()
        self._count = 0
        self._told = -TOLD_EVERY_SECONDS
        self._sockets: asyncio.Server | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen; returns the port. Raises OSError."""
        await self._runner.setup()
        self._sockets = await asyncio.get_running_loop().create_server(
            self._connection, host, port, ssl=tls, backlog=BACKLOG, reuse_address=True
        )
        return int(self._sockets.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Take no more, and let what is in progress finish."""
        if self._sockets is not None:
            self._sockets.close()
        await self._runner.cleanup()

    def admit(self, address: str) -> str | None:
        """Count a new connection; what to `leave` with, or None when there are too many."""
        key = "" if self._proxies.trusts(address) else rate_key(address)
        limit = self._capacity.per_address if key else None
        if self._count >= self._capacity.total or (limit is not None and self._open[key] >= limit):
            self._tell(key)
            return None
        self._count += 1
        self._open[key] += 1
        return key

    def leave(self, key: str) -> None:
        self._count -= 1
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]

    def _connection(self) -> _Connection:
        server = self._runner.server
        if server is None:
            raise RuntimeError("the listener is not started")
        return _Connection(server(), self)

    def _tell(self, key: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told >= TOLD_EVERY_SECONDS:
            self._told = now
            log.warning("connections_refused", address=key, open=self._count)


class _Connection(asyncio.Protocol):
    """Counts a connection and hands everything on to aiohttp's protocol."""

    def __init__(self, inner: web.RequestHandler, listener: Listener) -> None:
        self._inner = inner
        self._listener = listener
        self._key: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self._key = self._listener.admit(str(peer[0]) if peer else "")
        if self._key is not None:
            self._inner.connection_made(transport)
        else:
            cast(asyncio.Transport, transport).abort()  # uvloop's is none by its class

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._key is not None:
            self._listener.leave(self._key)
            self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._key is not None:
            self._inner.data_received(data)

    def eof_received(self) -> None:
        if self._key is not None:
            self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
