"""DNS without getaddrinfo: no thread per slow name, no odd literals read as addresses.

`Dns` is what the resolver needs; `SystemDns` answers from the hosts file and the system's name servers.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver

from lmserver.federation_client.errors import NameNotFound, Unreachable

MAX_ADDRESSES = 8
MAX_SRV = 10
HOSTS_TTL = 300
SECOND_FAMILY = 0.5
MAX_QUERIES = 2048
LOOK_SECONDS = 5.0
_LOCALHOST = ("127.0.0.1", "::1")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AddressAnswer:
    """IP addresses in plain notation and how many seconds they may be kept."""

    addresses: tuple[str, ...]
    ttl: int


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """One SRV record (RFC 2782); `target` has no trailing dot."""

    priority: int
    weight: int
    port: int
    target: str


@dataclass(frozen=True, slots=True)
class SrvAnswer:
    records: tuple[SrvRecord, ...]
    ttl: int


class Dns(Protocol):
    """Both raise NameNotFound when there is no such record and Unreachable when DNS does not answer."""

    async def addresses(self, host: str) -> AddressAnswer: ...

    async def srv(self, name: str) -> SrvAnswer: ...


class _FileBacked(Generic[T]):
    """What a file says, read again within seconds of its change; `read` gets the file and the last value."""

    def __init__(self, path: Path, read: Callable[[Path, T | None], T]) -> None:
        self._path = path
        self._read = read
        self._stamp = self._now()
        self._value = read(path, None)
        self._look_at = time.monotonic() + LOOK_SECONDS

    def get(self) -> T:
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            stamp = self._now()
            if stamp != self._stamp:
                self._stamp = stamp
                self._value = self._read(self._path, self._value)
        return self._value

    def _now(self) -> tuple[int, int] | None:
        try:
            state = self._path.stat()
        except OSError:
            return None
        return state.st_ino, state.st_mtime_ns


class SystemDns:
    """Hosts file first, then the name servers of resolv.conf, with short timeouts; both are followed.
    A `resolver` takes the place of resolv.conf."""

    def __init__(
        self,
        *,
        lifetime: float = 5.0,
        timeout: float = 2.0,
        hosts_file: Path = Path("/etc/hosts"),
        resolv_conf: Path = Path("/etc/resolv.conf"),
        resolver: dns.asyncresolver.Resolver | None = None,
    ) -> None:
        self._lifetime = lifetime
        self._timeout = timeout
        self._resolver: Callable[[], dns.asyncresolver.Resolver] = (
            _FileBacked(resolv_conf, _read_resolver).get if resolver is None else lambda: resolver
        )
        self._hosts = _FileBacked(hosts_file, _read_hosts)
        self._slots = asyncio.Semaphore(_most_queries())

    async def addresses(self, host: str) -> AddressAnswer:
        name = host.lower().rstrip(".")
        if name == "localhost" or name.endswith(".localhost"):
            return AddressAnswer(_LOCALHOST, HOSTS_TTL)
        local = self._hosts.get().get(name)
        if local:
            return AddressAnswer(local, HOSTS_TTL)
        return _merge(await self._both_families(name))

    async def srv(self, name: str) -> SrvAnswer:
        answer = await self._query(name, "SRV")
        records = [
            SrvRecord(r.priority, r.weight, r.port, r.target.to_text(omit_final_dot=True))
            for r in list(answer.rrset or ())[:MAX_SRV]
        ]
        return SrvAnswer(tuple(records), answer.rrset.ttl if answer.rrset else 0)

    async def _both_families(self, name: str) -> list[dns.resolver.Answer | BaseException]:
        """A and AAAA side by side; when one brings addresses, the other has half a second left."""
        tasks = [asyncio.create_task(self._query(name, kind)) for kind in ("A", "AAAA")]
        try:
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                found = any(task.exception() is None for task in done)
                await asyncio.wait(pending, timeout=SECOND_FAMILY if found else None)
            return [task.exception() or task.result() for task in tasks if task.done()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _query(self, name: str, kind: str) -> dns.resolver.Answer:
        try:
            async with self._slots:
                resolver = self._resolver()
                resolver.timeout = self._timeout
                return await resolver.resolve(
                    dns.name.from_text(name), kind, search=False, lifetime=self._lifetime
                )
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer) as error:
            raise NameNotFound(f"no such name: {error}") from error
        except (dns.exception.DNSException, OSError, UnicodeError, ValueError) as error:
            raise Unreachable(f"name lookup failed: {error}") from error


def _merge(answers: Iterable[dns.resolver.Answer | BaseException]) -> AddressAnswer:
    """A and AAAA together: one of them is enough."""
    addresses: list[str] = []
    ttls: list[int] = []
    failure: BaseException | None = None
    for answer in answers:
        if isinstance(answer, BaseException):
            if failure is None or isinstance(failure, NameNotFound):
                failure = answer
        elif answer.rrset is not None:
            addresses += [record.address for record in list(answer.rrset)[:MAX_ADDRESSES]]
            ttls.append(answer.rrset.ttl)
    if addresses:
        return AddressAnswer(tuple(addresses), min(ttls))
    raise failure or NameNotFound("no such name")


def _most_queries() -> int:
    """Each query has a socket of its own; a quarter of the files we may open is theirs at most."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_QUERIES if soft < 0 else max(32, min(MAX_QUERIES, soft // 4))


def _read_resolver(path: Path, last: dns.asyncresolver.Resolver | None) -> dns.asyncresolver.Resolver:
    """A file that names no name server, or is being written, changes nothing."""
    try:
        return dns.asyncresolver.Resolver(filename=str(path))
    except (dns.exception.DNSException, OSError, ValueError):
        return last or dns.asyncresolver.Resolver(configure=False)


def _read_hosts(path: Path, _: object) -> dict[str, tuple[str, ...]]:
    """Names of a hosts file; lines that are not understood are skipped."""
    hosts: dict[str, tuple[str, ...]] = {}
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return hosts
    for line in text.splitlines():
        fields = line.split("#", 1)[0].split()
        if len(fields) < 2:
            continue
        try:
            address = str(ip_address(fields[0]))
        except ValueError:
            continue
        for name in fields[1:]:
            hosts[name.lower()] = (*hosts.get(name.lower(), ()), address)
    return hosts
