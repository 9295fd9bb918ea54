"""Notifications to push gateways, whose URLs any user may choose (Push Gateway API).

The same guard stands before them as before other servers: names are resolved once, and no private address
is connected to.
"""

from __future__ import annotations

import asyncio
import ssl
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import orjson

from lmserver.federation_client.addresses import FORBIDDEN_PORTS, AddressGuard
from lmserver.federation_client.connector import Address, PinnedHttp, Target, read_body
from lmserver.federation_client.dns_lookup import Dns
from lmserver.federation_client.errors import FederationError
from lmserver.protocol.ids import is_server_name

PATH: Final = "/_matrix/push/v1/notify"
SECONDS: Final = 20.0
MAX_ANSWER: Final = 64 * 1024
MAX_URL: Final = 2_048


class BadGateway(ValueError):
    """No URL of a push gateway; the text says why."""


class GatewayFailed(Exception):
    """The gateway did not take the notification."""


class PushGateways:
    """Sends to whatever gateway a pusher names; those of `plain_http` may be without TLS."""

    def __init__(
        self, dns: Dns, guard: AddressGuard, context: ssl.SSLContext, plain_http: frozenset[str]
    ) -> None:
        # Gateways are no Matrix servers: what the draft asks of those cannot be asked of them.
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._dns = dns
        self._http = PinnedHttp(guard, context, limit=100, limit_per_host=4)
        self._plain = plain_http

    def check(self, url: str) -> None:
        """Raises BadGateway for what cannot be a gateway's URL."""
        if len(url) > MAX_URL or not url.isascii() or not url.isprintable():
            raise BadGateway("url is not valid")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise BadGateway("url is not valid") from None
        if parts.path != PATH or parts.query or parts.fragment or "@" in parts.netloc:
            raise BadGateway(f"url does not end with {PATH}")
        if parts.scheme == "http" and parts.netloc in self._plain:
            return
        if (
            parts.scheme != "https"
            or not is_server_name(host)
            or _is_address(host)
            or port in FORBIDDEN_PORTS
        ):
            raise BadGateway("url is not https with a name")

    async def notify(self, url: str, notification: dict[str, Any]) -> list[str]:
        """Push keys the gateway no longer wants to hear of. Raises GatewayFailed."""
        try:
            self.check(url)
            async with asyncio.timeout(SECONDS):
                return await self._notify(url, notification)
        except (BadGateway, FederationError, aiohttp.ClientError, OSError, ValueError) as error:
            raise GatewayFailed(type(error).__name__) from error

    async def _notify(self, url: str, notification: dict[str, Any]) -> list[str]:
        parts = urlsplit(url)
        host, plain = parts.hostname or "", parts.scheme == "http"
        port = parts.port or (80 if plain else 443)
        answer = await self._dns.addresses(host)
        addresses = tuple(Address(ip, port) for ip in answer.addresses)
        target = Target(parts.netloc, None if plain else host, addresses)
        body = orjson.dumps({"notification": notification})
        headers = {"Content-Type": "application/json"}
        async with self._http.request("POST", target, PATH, headers=headers, body=body) as response:
            found = await read_body(response, MAX_ANSWER)
            if response.status != 200:
                raise GatewayFailed(f"status {response.status}")
        return _rejected(found)

    async def close(self) -> None:
        await self._http.close()


def _rejected(body: bytes) -> list[str]:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []  # it has taken the notification: sending it again would double it
    rejected = answer.get("rejected") if isinstance(answer, dict) else None
    return [key for key in rejected if isinstance(key, str)] if isinstance(rejected, list) else []


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
