"""A DNS without network, a clock without time, and loopback servers with real certificates."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from ipaddress import ip_network
from pathlib import Path

import trustme
from aiohttp import web

from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.connector import PinnedHttp, tls_context
from lmserver.federation_client.dns_lookup import AddressAnswer, SrvAnswer, SrvRecord
from lmserver.federation_client.errors import NameNotFound, Unreachable

LOOPBACK = AddressGuard([ip_network("127.0.0.0/8")])

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class FakeDns:
    """Answers from two dictionaries; a list of lists is answered one after the other."""

    def __init__(self) -> None:
        self.hosts: dict[str, list[str]] = {}
        self.services: dict[str, list[SrvRecord]] = {}
        self.broken = False
        self.slow: asyncio.Event | None = None
        self.asked: list[str] = []

    async def addresses(self, host: str) -> AddressAnswer:
        await self._ask(host)
        if host not in self.hosts:
            raise NameNotFound("server name not found")
        return AddressAnswer(tuple(self.hosts[host]), 60)

    async def srv(self, name: str) -> SrvAnswer:
        await self._ask(name)
        if name not in self.services:
            raise NameNotFound("server name not found")
        return SrvAnswer(tuple(self.services[name]), 60)

    async def _ask(self, name: str) -> None:
        self.asked.append(name)
        if self.slow is not None:
            await self.slow.wait()
        if self.broken:
            raise Unreachable("server name lookup failed")


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Loopback:
    """Servers on 127.0.0.1 and a certificate authority that the client trusts."""

    def __init__(self, tmp_path: Path) -> None:
        self.ca = trustme.CA()
        self.ca_file = tmp_path / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self.client_context = tls_context(self.ca_file)
        self._stack = AsyncExitStack()

    def http(self, guard: AddressGuard = LOOPBACK) -> PinnedHttp:
        http = PinnedHttp(guard, self.client_context)
        self._stack.push_async_callback(http.close)
        return http

    async def serve(
        self,
        handler: Handler,
        *names: str,
        authority: trustme.CA | None = None,
        newest: ssl.TLSVersion | None = None,
    ) -> int:
        """Start a server with a certificate for `names` (none: plain HTTP); its port."""
        context = None
        if names:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            (authority or self.ca).issue_cert(*names).configure_cert(context)
            if newest is not None:
                context.maximum_version = newest
        return await self.serve_with(handler, context)

    async def serve_app(self, app: web.Application, *names: str) -> int:
        """Start an application with a certificate for `names`; its port."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert(*names).configure_cert(context)
        return await self._listen(web.AppRunner(app, shutdown_timeout=0.1, auto_decompress=False), context)

    async def serve_with(self, handler: Handler, context: ssl.SSLContext | None) -> int:
        """Start a server with a context of its own; its port."""
        return await self._listen(web.ServerRunner(web.Server(handler), shutdown_timeout=0.1), context)

    async def _listen(self, runner: web.BaseRunner, context: ssl.SSLContext | None) -> int:
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        return int(runner.addresses[0][1])

    async def close(self) -> None:
        await self._stack.aclose()
