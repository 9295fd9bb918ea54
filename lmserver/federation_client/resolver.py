"""From a server name to addresses, a certificate name and a Host header (D04 §Resolving Server Names).

Every address, whichever step gave it, passes the guard here and again when its socket connects.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import structlog

from lmserver.federation_client.addresses import FORBIDDEN_PORTS, AddressGuard
from lmserver.federation_client.connector import Address, PinnedHttp, Target
from lmserver.federation_client.dns_lookup import Dns, SrvRecord
from lmserver.federation_client.errors import AddressesRefused, FederationError, NameNotFound, Unreachable
from lmserver.federation_client.single_flight import SingleFlight
from lmserver.federation_client.well_known import WellKnown
from lmserver.protocol.ids import is_server_name

__all__ = ["Address", "Resolver", "Target"]

DEFAULT_PORT = 8448
MAX_ADDRESSES = 16
MIN_TTL = 30
MAX_TTL = 3600
STALE = 24 * 3600.0
FIRST_FAILURE = 5.0
MAX_FAILURE = 60.0
PATIENCE = 1.0
MAX_ENTRIES = 10_000
MAX_URL = 4096

# Path and query as they go on the wire: visible ASCII.
_URI = re.compile(r"/[!-~]*")

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    target: Target
    expires: float
    stale_until: float


@dataclass(frozen=True, slots=True)
class _Failure:
    """Until then the name servers are left alone."""

    until: float
    count: int


@dataclass(frozen=True, slots=True)
class Route:
    """Where a server name leads, by which step of the draft, before the guard has judged it; `groups`
    are addresses of falling priority, `ttl` seconds."""

    step: str
    host_header: str
    tls_name: str | None
    groups: list[list[Address]]
    ttl: int


class Resolver:
    """Resolves server names; answers are kept for the DNS time to live (30 s to 1 h).

    A name that fails is not looked up again for 5 s, ever longer up to a minute. Meanwhile, and while name
    servers are slow, a server that was found within a day is looked for where it was.
    """

    def __init__(
        self,
        dns: Dns,
        guard: AddressGuard,
        http: PinnedHttp,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        well_known_port: int = 443,
    ) -> None:
        self._dns = dns
        self._guard = guard
        self._clock = clock
        self._well_known = WellKnown(dns, http, clock, wall, port=well_known_port)
        self._cache: OrderedDict[str, _Entry] = OrderedDict()
        self._failures: OrderedDict[str, _Failure] = OrderedDict()
        self._flights: SingleFlight[Target] = SingleFlight()
        self._random = random.Random()

    async def resolve(self, server_name: str, *, plain: bool = False) -> Target:
        """Where the server is. Raises Unreachable.

        `plain` servers are configured by hand for HTTP without TLS: they have no .well-known.
        """
        if not is_server_name(server_name):
            raise Unreachable("not a server name")
        entry = self._cache.get(server_name)
        if entry is not None and entry.expires > self._clock():
            return entry.target
        failure = self._failures.get(server_name)
        if failure is not None and failure.until > self._clock():
            return self._last_known(server_name, Unreachable("not resolved a moment ago"))
        fresh = self._flights.run(server_name, lambda: self._refresh(server_name, plain))
        if entry is None or entry.stale_until <= self._clock():
            return await fresh
        try:
            async with asyncio.timeout(PATIENCE):
                return await fresh
        except TimeoutError:
            return entry.target  # the lookup goes on for whoever asks next

    async def resolve_url(self, url: str, *, plain: bool = False) -> tuple[Target, str]:
        """Where a URL leads that another server named, and its path and query. Raises Unreachable
        for anything but https (`plain`: http too) to a DNS name on a port of no other protocol."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise Unreachable("URL is not valid") from error
        uri = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        tls = parts.scheme == "https"
        if not (tls or (plain and parts.scheme == "http")) or "@" in parts.netloc or not is_server_name(host):
            raise Unreachable("URL is not followed")
        if len(url) > MAX_URL or not _URI.fullmatch(uri):
            raise Unreachable("URL is not valid")
        addresses, _ = await self._addresses(host, port or (443 if tls else 80))
        header = host if port is None else f"{host}:{port}"
        return self._target(header, host if tls else None, [addresses]), uri

    def forget(self, server_name: str) -> None:
        """The server could not be reached where it was said to be: ask DNS again next time."""
        entry = self._cache.get(server_name)
        if entry is not None:
            self._cache[server_name] = _Entry(entry.target, 0.0, entry.stale_until)

    async def close(self) -> None:
        await self._flights.close()
        await self._well_known.close()

    async def _refresh(self, server_name: str, plain: bool) -> Target:
        try:
            route = await self.route(server_name, plain=plain)
            target = self._target(route.host_header, route.tls_name, route.groups)
        except Unreachable as error:
            log.debug("server_not_resolved", server=server_name, reason=error.detail)
            self._failed(server_name)
            if isinstance(error, NameNotFound | AddressesRefused):
                self._cache.pop(server_name, None)  # an answer, if not the one hoped for
            return self._last_known(server_name, error)
        now = self._clock()
        self._failures.pop(server_name, None)
        _keep(
            self._cache, server_name, _Entry(target, now + min(max(route.ttl, MIN_TTL), MAX_TTL), now + STALE)
        )
        return target

    def _failed(self, server_name: str) -> None:
        old = self._failures.get(server_name)
        count = old.count + 1 if old is not None else 1
        pause = min(MAX_FAILURE, FIRST_FAILURE * 2.0 ** min(count - 1, 10))
        _keep(self._failures, server_name, _Failure(self._clock() + pause, count))

    def _last_known(self, server_name: str, error: Unreachable) -> Target:
        """Where the server was: the name servers are out of order, the server may not be."""
        entry = self._cache.get(server_name)
        if entry is not None and self._clock() < entry.stale_until:
            return entry.target
        raise error

    async def route(self, server_name: str, *, plain: bool = False) -> Route:
        """Where a server name leads now, past the cache of addresses. Raises Unreachable."""
        host, port = _split(server_name)
        delegated = None
        if port is None and not plain:
            delegated = await self._well_known.lookup(host)  # step 2
            if delegated is not None:
                host, port = _split(delegated)
        tls_name = None if plain else host
        if port is not None:
            addresses, ttl = await self._addresses(host, port)
            return Route("1" if delegated is None else "2.1", f"{host}:{port}", tls_name, [addresses], ttl)
        found = await self._srv(host)
        if found is not None:
            return Route("3" if delegated is None else "2.3", host, tls_name, *found)
        addresses, ttl = await self._addresses(host, DEFAULT_PORT)
        return Route("4" if delegated is None else "2.4", host, tls_name, [addresses], ttl)

    async def _addresses(self, host: str, port: int) -> tuple[list[Address], int]:
        answer = await self._dns.addresses(host)
        return [Address(ip, port) for ip in answer.addresses], answer.ttl

    async def _srv(self, host: str) -> tuple[list[list[Address]], int] | None:
        """The addresses behind the SRV records, a list for each priority; None without records."""
        try:
            answer = await self._dns.srv(f"_matrix._tcp.{host}")
        except NameNotFound:
            return None
        records = self._in_order(answer.records)
        if not records:
            return None
        if all(record.target in ("", ".") for record in records):
            raise NameNotFound("SRV record says that there is no federation")
        usable = [record for record in records if _usable(record)]
        found = await asyncio.gather(
            *(self._addresses(record.target, record.port) for record in usable), return_exceptions=True
        )
        groups: dict[int, list[Address]] = {}
        ttl = answer.ttl
        for record, result in zip(usable, found, strict=True):
            if isinstance(result, tuple):
                groups.setdefault(record.priority, []).extend(result[0])
                ttl = min(ttl, result[1])
            elif not isinstance(result, FederationError):
                raise result
        if not groups:
            raise Unreachable("no target of the server's SRV records resolves")
        return list(groups.values()), ttl

    def _in_order(self, records: Iterable[SrvRecord]) -> list[SrvRecord]:
        """By priority; within one, at random by weight (RFC 2782)."""

        def rank(record: SrvRecord) -> tuple[int, float]:
            return record.priority, -(self._random.random() ** (1.0 / max(record.weight, 0.01)))

        return sorted(records, key=rank)

    def _target(self, host_header: str, tls_name: str | None, groups: Iterable[Iterable[Address]]) -> Target:
        """Only what the guard lets through. Raises Unreachable when nothing is left."""
        left = MAX_ADDRESSES
        allowed: list[tuple[Address, ...]] = []
        for group in groups:
            kept = tuple(a for a in dict.fromkeys(group) if self._allowed(a))[:left]
            left -= len(kept)
            if kept:
                allowed.append(kept)
        if not allowed:
            raise AddressesRefused("every address is refused: private, special or a forbidden port")
        return Target(host_header, tls_name, allowed[0], tuple(allowed[1:]))

    def _allowed(self, address: Address) -> bool:
        return address.port not in FORBIDDEN_PORTS and self._guard.is_allowed(address.ip)


def _keep(cache: OrderedDict[str, T], key: str, value: T) -> None:
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > MAX_ENTRIES:
        cache.popitem(last=False)


def _usable(record: SrvRecord) -> bool:
    return record.target not in ("", ".") and 0 < record.port < 65536 and is_server_name(record.target)


def _split(server_name: str) -> tuple[str, int | None]:
    """Host and port of a name that has the grammar of a server name."""
    host, colon, port = server_name.partition(":")
    return host, int(port) if colon else None
