"""The steps, each as the server itself takes it; the first that fails for good ends the check."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lmserver.federation_check.endpoints import Endpoints
from lmserver.federation_check.report import Report, Status
from lmserver.federation_check.tls_probe import connect, handshake
from lmserver.federation_client.addresses import FORBIDDEN_PORTS, AddressGuard
from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.connector import Address, PinnedHttp, Target, tls_context
from lmserver.federation_client.dns_lookup import Dns
from lmserver.federation_client.errors import NameNotFound, Unreachable
from lmserver.federation_client.resolver import Resolver, Route
from lmserver.federation_client.well_known import NoDelegation, WellKnown
from lmserver.protocol.ids import is_server_name
from lmserver.protocol.signatures import SigningKey

WARN_DAYS = 14
MAX_ADDRESSES = 8


@dataclass(frozen=True, slots=True)
class Setting:
    """What a check is made with. `key` signs one request, if there is one; `plain` servers are spoken to
    without TLS; `wall` is seconds since the epoch."""

    dns: Dns
    guard: AddressGuard
    ca_file: Path | None = None
    key: SigningKey | None = None
    plain: frozenset[str] = frozenset()
    wall: Callable[[], float] = time.time
    well_known_port: int = 443


class _Ended(Exception):
    """Nothing that follows could be judged."""


async def check(server: str, setting: Setting) -> Report:
    """Take every step; never raises for what the server does."""
    report = Report(server)
    http = PinnedHttp(setting.guard, tls_context(setting.ca_file))
    try:
        await _Check(report, setting, http).run(server)
    except _Ended:
        pass
    finally:
        await http.close()
    return report


class _Check:
    def __init__(self, report: Report, setting: Setting, http: PinnedHttp) -> None:
        self._report = report
        self._setting = setting
        self._http = http

    async def run(self, server: str) -> None:
        setting = self._setting
        self._name(server)
        plain = server in setting.plain
        well_known = WellKnown(
            setting.dns, self._http, time.monotonic, setting.wall, port=setting.well_known_port
        )
        resolver = Resolver(
            setting.dns, setting.guard, self._http, wall=setting.wall, well_known_port=setting.well_known_port
        )
        try:
            await self._delegation(server, well_known, plain=plain)
            route = await self._resolution(server, resolver, plain=plain)
            target = await self._reachable(route)
            endpoints = Endpoints(self._report, self._http, target, setting.wall)
            if not await endpoints.keys(server):
                raise _Ended
            await endpoints.version()
            await self._signed(server, endpoints, resolver)
        finally:
            await resolver.close()

    def _name(self, server: str) -> None:
        if is_server_name(server):
            self._report.add("name", Status.OK, "is a server name")
            return
        self._fail(
            "name",
            "is not a server name",
            "A DNS name with an optional port, such as example.org: no https://, no path, no IP address.",
        )

    async def _delegation(self, server: str, well_known: WellKnown, *, plain: bool) -> None:
        host, colon, _ = server.partition(":")
        if colon or plain:
            why = "the name has a port" if colon else "plain HTTP by configuration"
            self._report.add("delegation", Status.SKIPPED, f"not asked for: {why}")
            return
        url = f"https://{host}/.well-known/matrix/server"
        try:
            delegated, seconds = await well_known.fetch(host)
        except NoDelegation as error:
            self._report.add(
                "delegation",
                Status.OK if error.final else Status.NOTE,
                f"none: {url}: {error}",
                "" if error.final else "Fine unless the server is to be found through it.",
            )
            return
        self._report.add("delegation", Status.OK, f"{url} leads to {delegated} for {seconds / 3600:.1f} h")

    async def _resolution(self, server: str, resolver: Resolver, *, plain: bool) -> Route:
        try:
            route = await resolver.route(server, plain=plain)
        except NameNotFound as error:
            self._fail(
                "resolution",
                error.detail,
                "Publish an A or AAAA record for the name, or say where the server is with"
                " .well-known/matrix/server or a SRV record _matrix._tcp.",
            )
        except Unreachable as error:
            self._fail(
                "resolution",
                error.detail,
                "DNS gives no answer: see whether other names resolve here, then look at the name's own"
                " name servers.",
            )
        found = ", ".join(_shown(a) for group in route.groups for a in group[:MAX_ADDRESSES])
        self._report.add("resolution", Status.OK, f"step {route.step} of the draft: {found}")
        return route

    async def _reachable(self, route: Route) -> Target:
        """The target with the addresses that work."""
        addresses = [a for group in route.groups for a in group][:MAX_ADDRESSES]
        usable = self._allowed(addresses)
        works = [address for address in usable if await self._tcp(address, alone=len(usable) == 1)]
        if not works and len(usable) > 1:
            self._fail("connection", "to none of the addresses", "Each is told above.")
        if works and route.tls_name is not None:
            name = route.tls_name
            works = [address for address in works if await self._tls(address, name)]
        if not works:
            raise _Ended
        return Target(route.host_header, route.tls_name, tuple(works))

    def _allowed(self, addresses: list[Address]) -> list[Address]:
        """Those that the guard lets through; others are only noted while there are any."""
        guard = self._setting.guard
        allowed = [a for a in addresses if a.port not in FORBIDDEN_PORTS and guard.is_allowed(a.ip)]
        status = Status.NOTE if allowed else Status.FAILED
        for address in addresses:
            if address in allowed:
                self._report.add("address", Status.OK, f"{_shown(address)} may be connected to")
            elif address.port in FORBIDDEN_PORTS:
                self._report.add(
                    "address", status, f"{_shown(address)}: the port belongs to another protocol",
                    "Other servers will not connect to it: choose 443, 8448 or another one above 1024.",
                )  # fmt: skip
            else:
                self._report.add(
                    "address", status, f"{_shown(address)} is private, local or special",
                    "Others will refuse it too: publish a public address. In a private network allow it"
                    " in federation.allowed_networks and give --config.",
                )  # fmt: skip
        if not allowed:
            raise _Ended
        return allowed

    async def _tcp(self, address: Address, *, alone: bool) -> bool:
        try:
            seconds = await connect(address)
        except OSError as error:
            silent = isinstance(error, TimeoutError)
            self._report.add(
                "connection",
                Status.FAILED if alone else Status.NOTE,
                f"{_shown(address)}: {'no answer' if silent else _words(error)}",
                "A firewall may swallow it: open the port."
                if silent
                else "Nothing listens there: start the server, or correct the address and port.",
            )
            return False
        self._report.add("connection", Status.OK, f"{_shown(address)} in {seconds * 1000:.0f} ms")
        return True

    async def _tls(self, address: Address, name: str) -> bool:
        try:
            seen = await handshake(address, name, self._setting.ca_file)
        except OSError as error:
            self._report.add(
                "TLS",
                Status.FAILED,
                f"{_shown(address)}: {_words(error)}",
                "The port has to speak TLS 1.3.",
            )
            return False
        if seen.problem:
            shown = f"{seen.version}, certificate for {', '.join(seen.names) or 'no name'} by {seen.issuer}"
            self._report.add(
                "TLS", Status.FAILED, f"{_shown(address)}: {seen.problem} ({shown})", seen.advice
            )
            return False
        self._report.add("TLS", Status.OK, f"{seen.version}, HTTP {seen.alpn or 'not negotiated'}")
        days = (seen.not_after - self._setting.wall()) / 86400
        self._report.add(
            "certificate",
            Status.OK if days > WARN_DAYS else Status.NOTE,
            f"for {', '.join(seen.names)} by {seen.issuer}, {days:.0f} days left",
            "" if days > WARN_DAYS else "Renew it in time.",
        )
        return True

    async def _signed(self, server: str, endpoints: Endpoints, resolver: Resolver) -> None:
        key = self._setting.key
        if key is None:
            self._report.add("signed request", Status.SKIPPED, "give --config to sign one with your key")
        elif key.server_name == server:
            self._report.add("signed request", Status.SKIPPED, "a server does not ask itself")
        else:
            client = FederationClient(
                key.server_name, key, resolver, self._http, plain_http_servers=self._setting.plain
            )
            await endpoints.signed(server, client, key)

    def _fail(self, name: str, detail: str, advice: str) -> NoReturn:
        self._report.add(name, Status.FAILED, detail, advice)
        raise _Ended


def _words(error: OSError) -> str:
    """asyncio puts the address where the reason belongs."""
    if error.errno is not None and type(error).__module__ != "ssl":
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _shown(address: Address) -> str:
    return f"[{address.ip}]:{address.port}" if ":" in address.ip else f"{address.ip}:{address.port}"
