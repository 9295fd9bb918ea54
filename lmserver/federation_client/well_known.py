"""Delegation by /.well-known/matrix/server, and what we remember of it (D04 §GET /.well-known/matrix/server).

A failure here never fails the resolution: it only means that there is no delegation. Redirects are followed
by us, hop by hop, because each hop names a host that a stranger chose.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import aiohttp
import structlog

from lmserver.federation_client.addresses import FORBIDDEN_PORTS
from lmserver.federation_client.connector import Address, PinnedHttp, Target, read_body
from lmserver.federation_client.dns_lookup import Dns
from lmserver.federation_client.errors import BadResponse, FederationError
from lmserver.federation_client.single_flight import SingleFlight
from lmserver.protocol import canonical_json
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.ids import is_server_name

PATH = "/.well-known/matrix/server"
MAX_BODY = 50 * 1024
MAX_REDIRECTS = 5
DEADLINE = 6.0  # less than any request waits, so that a silent host leaves time for the next steps
DEFAULT_TTL = 24 * 3600.0
MAX_TTL = 48 * 3600.0
MIN_TTL = 300.0
FIRST_FAILURE_TTL = 60.0
MAX_FAILURE_TTL = 3600.0
MAX_ENTRIES = 10_000

_MAX_AGE = re.compile(r"(?:^|[\s,])max-age\s*=\s*\"?([0-9]{1,10})", re.IGNORECASE)
_NOT_STORED = re.compile(r"(?:^|[\s,])no-(?:store|cache)(?:$|[\s,=])", re.IGNORECASE)
_URI = re.compile(r"[!-~]+")

log = structlog.get_logger(__name__)


class NoDelegation(Exception):
    """`final`: the host said so; otherwise it may only be out of order just now."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True, slots=True)
class _Entry:
    delegated: str | None
    expires: float
    keep_until: float = 0.0  # an answer once good outlives a passing failure, never 48 hours
    failures: int = 0


class WellKnown:
    """Delegation lookups with a cache; `clock` is monotonic seconds, `wall` seconds since the epoch."""

    def __init__(
        self,
        dns: Dns,
        http: PinnedHttp,
        clock: Callable[[], float],
        wall: Callable[[], float],
        *,
        port: int = 443,
    ) -> None:
        self._dns = dns
        self._http = http
        self._clock = clock
        self._wall = wall
        self._port = port
        self._cache: OrderedDict[str, _Entry] = OrderedDict()
        self._flights: SingleFlight[_Entry] = SingleFlight()

    async def lookup(self, hostname: str) -> str | None:
        """The delegated server name of a host, or None; never raises FederationError."""
        entry = self._cache.get(hostname)
        if entry is None or entry.expires <= self._clock():
            entry = await self._flights.run(hostname, lambda: self._refresh(hostname))
        return entry.delegated

    async def fetch(self, hostname: str) -> tuple[str, float]:
        """The delegated server name and the seconds it may be kept, asked for past the cache.

        Raises NoDelegation.
        """
        try:
            async with asyncio.timeout(DEADLINE):
                return await self._fetch(hostname)
        except TimeoutError as error:
            raise NoDelegation("no answer in time", final=False) from error
        except (FederationError, ProtocolError, aiohttp.ClientError, OSError, ValueError) as error:
            raise NoDelegation(_reason(error), final=False) from error

    async def close(self) -> None:
        await self._flights.close()

    async def _refresh(self, hostname: str) -> _Entry:
        old = self._cache.get(hostname)
        try:
            delegated, ttl = await self.fetch(hostname)
            now = self._clock()
            entry = _Entry(delegated, now + ttl, now + MAX_TTL)
        except NoDelegation as error:
            log.debug("no_delegation", server=hostname, reason=str(error))
            entry = self._after_failure(old, final=error.final)
        self._cache[hostname] = entry
        self._cache.move_to_end(hostname)
        if len(self._cache) > MAX_ENTRIES:
            self._cache.popitem(last=False)
        return entry

    def _after_failure(self, old: _Entry | None, *, final: bool) -> _Entry:
        now = self._clock()
        failures = old.failures + 1 if old is not None else 1
        ttl = min(MAX_FAILURE_TTL, FIRST_FAILURE_TTL * 2.0 ** min(failures - 1, 10))
        if old is not None and old.delegated is not None and not final and now < old.keep_until:
            return _Entry(old.delegated, min(now + ttl, old.keep_until), old.keep_until, failures)
        return _Entry(None, now + ttl, failures=failures)

    async def _fetch(self, hostname: str) -> tuple[str, float]:
        url = f"https://{hostname}:{self._port}{PATH}" if self._port != 443 else f"https://{hostname}{PATH}"
        for _ in range(MAX_REDIRECTS + 1):
            target, uri = await self._hop(url)
            async with self._http.request(
                "GET", target, uri, headers={"Accept": "application/json"}, body=None
            ) as response:
                if response.status in (301, 302, 303, 307, 308):
                    url = urljoin(url, response.headers.get("Location", ""))
                    continue
                if response.status != 200:
                    raise NoDelegation(f"status {response.status}", final=response.status < 500)
                body = await read_body(response, MAX_BODY)
                return _delegated(body), self._ttl(response)
        raise NoDelegation("too many redirects", final=True)

    async def _hop(self, url: str) -> tuple[Target, str]:
        """Where one URL leads. https only, a DNS name only, no user name, no port of another protocol."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or 443
        uri = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if parts.scheme != "https" or "@" in parts.netloc or len(url) > 2048 or not _URI.fullmatch(uri):
            raise NoDelegation("redirect not followed", final=True)
        if not is_server_name(host) or port in FORBIDDEN_PORTS:
            raise NoDelegation("redirect not followed", final=True)
        answer = await self._dns.addresses(host)
        host_header = host if port == 443 else f"{host}:{port}"
        return Target(host_header, host, tuple(Address(ip, port) for ip in answer.addresses)), uri

    def _ttl(self, response: aiohttp.ClientResponse) -> float:
        control = ",".join(response.headers.getall("Cache-Control", []))
        max_age = _MAX_AGE.search(control)
        if _NOT_STORED.search(control):
            ttl = 0.0
        elif max_age is not None:
            ttl = float(max_age[1])
        elif "Expires" in response.headers:
            ttl = self._until(response.headers["Expires"])
        else:
            ttl = DEFAULT_TTL
        return min(MAX_TTL, max(MIN_TTL, ttl))

    def _until(self, date: str) -> float:
        try:
            return parsedate_to_datetime(date).timestamp() - self._wall()
        except (ValueError, OverflowError, TypeError):
            return 0.0


def _reason(error: Exception) -> str:
    return (error.detail if isinstance(error, FederationError) and error.detail else str(error))[:200]


def _delegated(body: bytes) -> str:
    """`m.server` of a well-known document. Raises a ProtocolError or BadResponse."""
    name = canonical_json.parse_object(body).get("m.server")
    if not isinstance(name, str) or not is_server_name(name):
        raise BadResponse("delegation is not a server name")
    return name
