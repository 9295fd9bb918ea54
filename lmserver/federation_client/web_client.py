"""Requests to URLs that the operator has named, or somebody the operator trusts: one request, one small
answer, no redirects. Addresses are checked, and the one that was checked is connected to.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

import aiohttp
from yarl import URL

from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.connector import Address, PinnedHttp, Target, read_body
from lmserver.federation_client.dns_lookup import Dns
from lmserver.federation_client.errors import AddressesRefused, FederationError, Unreachable

MAX_URL = 8192


@dataclass(frozen=True, slots=True)
class WebAnswer:
    status: int
    body: bytes


class WebClient:
    """HTTP and HTTPS by URL. `guard` decides which addresses may be spoken to."""

    def __init__(self, dns: Dns, guard: AddressGuard, context: ssl.SSLContext) -> None:
        self._dns = dns
        self._guard = guard
        self._http = PinnedHttp(guard, context, limit=128, limit_per_host=8)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        seconds: float,
        max_answer: int,
    ) -> WebAnswer:
        """The answer, whatever its status. Raises Unreachable or BadResponse."""
        try:
            async with asyncio.timeout(seconds):
                target, uri = await self._target(url)
                async with self._http.request(
                    method, target, uri, headers=dict(headers), body=body
                ) as response:
                    return WebAnswer(response.status, await read_body(response, max_answer))
        except FederationError:
            raise
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        await self._http.close()

    async def _target(self, url: str) -> tuple[Target, str]:
        if len(url) > MAX_URL:
            raise Unreachable("URL is too long")
        place = URL(url)
        host = place.raw_host or ""
        if place.scheme not in ("http", "https") or not host or place.user is not None:
            raise Unreachable("URL is not followed")
        port = place.port or 0
        found = [host] if _is_address(host) else (await self._dns.addresses(host)).addresses
        addresses = tuple(Address(ip, port) for ip in found if self._guard.is_allowed(ip))
        if not addresses:
            raise AddressesRefused("every address is refused")
        shown = f"[{host}]" if ":" in host else host
        header = shown if place.explicit_port is None else f"{shown}:{port}"
        return Target(header, host if place.scheme == "https" else None, addresses), place.raw_path_qs


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
