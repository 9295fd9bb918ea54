"""HTTP to exactly the addresses that were resolved and checked.

Each set of addresses gets its own pool name under `.invalid`, so a connection is never shared between two
destinations that happen to be at one address, and the connector cannot look a name up by itself. Every
socket is checked again right before it connects. Bodies are read with a limit that holds after decompression.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.answer_limits import LimitedConnector
from lmserver.federation_client.errors import BadResponse

MAX_HEADER_BYTES = 8190
MAX_HEADERS = 64
MAX_ALL_HEADERS = 32 * 1024
MAX_POOLS = 10_000
READ_CHUNK = 64 * 1024
USER_AGENT = "lmserver"


class Address(NamedTuple):
    """An IP address in plain notation and a port."""

    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect, the name that the certificate must prove (None: plain HTTP), and the Host header.

    `backups` are tried one after the other when no connection to any of `addresses` can be made: the
    targets of SRV records of ever less priority.
    """

    host_header: str
    tls_name: str | None
    addresses: tuple[Address, ...]
    backups: tuple[tuple[Address, ...], ...] = ()

    def pool_name(self, addresses: tuple[Address, ...]) -> str:
        """A host name that stands for exactly these addresses of this target in the connection pool."""
        identity = (self.host_header, self.tls_name, addresses)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:40] + ".invalid"


def tls_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """TLS 1.3 with the system's certificate authorities, and those in `ca_file` (D04 §TLS Certificates)."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if ca_file is not None:
        context.load_verify_locations(cafile=str(ca_file))
    return context


class _PinnedResolver(AbstractResolver):
    """Answers only with the addresses pinned for a pool name."""

    def __init__(self) -> None:
        self._pins: OrderedDict[str, tuple[Address, ...]] = OrderedDict()

    def pin(self, name: str, addresses: tuple[Address, ...]) -> None:
        self._pins[name] = addresses
        self._pins.move_to_end(name)
        if len(self._pins) > MAX_POOLS:
            self._pins.popitem(last=False)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = self._pins.get(host)
        if addresses is None:
            raise OSError("not a pinned name")
        return [
            ResolveResult(
                hostname=host,
                host=address.ip,
                port=address.port,
                family=socket.AF_INET6 if ":" in address.ip else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        self._pins.clear()


class PinnedHttp:
    """An HTTP client that knows no names, follows no redirects, keeps no cookies and uses no proxy."""

    def __init__(
        self, guard: AddressGuard, context: ssl.SSLContext, *, limit: int = 1000, limit_per_host: int = 8
    ) -> None:
        self._guard = guard
        self._context = context
        self._limits = (limit, limit_per_host)
        self._pins = _PinnedResolver()
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def request(
        self, method: str, target: Target, uri: str, *, headers: dict[str, str], body: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send `uri` byte for byte. Raises aiohttp.ClientError, OSError, ssl errors or BadResponse."""
        async with await self._first_reached(method, target, uri, headers, body) as response:
            _check_headers(response)
            yield response

    async def _first_reached(
        self, method: str, target: Target, uri: str, headers: dict[str, str], body: bytes | None
    ) -> aiohttp.ClientResponse:
        """The answer of the best addresses that a connection can be made to."""
        *better, last = (target.addresses, *target.backups)
        for addresses in better:
            try:
                return await self._send(method, target, addresses, uri, headers, body)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                continue
        return await self._send(method, target, last, uri, headers, body)

    async def _send(
        self,
        method: str,
        target: Target,
        addresses: tuple[Address, ...],
        uri: str,
        headers: dict[str, str],
        body: bytes | None,
    ) -> aiohttp.ClientResponse:
        name = target.pool_name(addresses)
        self._pins.pin(name, addresses)
        scheme = "http" if target.tls_name is None else "https"
        url = URL(f"{scheme}://{name}{uri}", encoded=True)
        if url.raw_path_qs != uri:
            raise ValueError("uri must be in origin form and already quoted")
        return await self._open_session().request(
            method,
            url,
            headers={**headers, "Host": target.host_header},
            data=body,
            allow_redirects=False,
            ssl=self._context,
            server_hostname=target.tls_name,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = LimitedConnector(
                resolver=self._pins,
                use_dns_cache=False,
                socket_factory=self._socket,
                limit=self._limits[0],
                limit_per_host=self._limits[1],
                keepalive_timeout=60,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "gzip"},
                auto_decompress=False,
                trust_env=False,
                max_line_size=MAX_HEADER_BYTES,
                max_field_size=MAX_HEADER_BYTES,
                max_headers=MAX_HEADERS,
            )
        return self._session

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """The last check: this is the address that the kernel is about to connect to."""
        family, kind, proto, _, address = info
        self._guard.check(str(address[0]), int(address[1]))
        sock = socket.socket(family=family, type=kind, proto=proto)
        sock.setblocking(False)
        return sock


def _check_headers(response: aiohttp.ClientResponse) -> None:
    """Raises BadResponse: headers that are small one by one may still be large together."""
    if sum(len(name) + len(value) for name, value in response.raw_headers) > MAX_ALL_HEADERS:
        raise BadResponse("response headers are too large")


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The decompressed body. Raises BadResponse when it is larger than `limit` or oddly encoded."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", ""):
        raise BadResponse("response has an unknown encoding", encoding[:40])
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16) if "gzip" in encoding else None
    parts: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_chunked(READ_CHUNK):
        data = chunk if inflate is None else _inflated(inflate, chunk, limit - size)
        size += len(data)
        if size > limit:
            raise BadResponse("response is too large")
        parts.append(data)
    if inflate is not None and not inflate.eof:
        raise BadResponse("response is cut short")
    return b"".join(parts)


def _inflated(inflate: zlib._Decompress, chunk: bytes, room: int) -> bytes:
    """At most one byte more than there is room for, so that the caller sees the excess."""
    if inflate.eof:
        raise BadResponse("response has data after its end")
    try:
        data = inflate.decompress(chunk, room + 1)
    except zlib.error as error:
        raise BadResponse("response is not gzip") from error
    if inflate.unused_data:
        raise BadResponse("response has data after its end")
    return data
