"""GET of web pages that users name: what a server does in its own network's name for a stranger (attack M5).

Only http and https, on the ports of the web, to names (no addresses) that resolve to addresses the guard
lets through; the address checked is the one connected to, and every redirect is a new URL. Nothing of
ours is sent but the language, and nothing compressed is taken.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from yarl import URL

from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.connector import Address, PinnedHttp, Target
from lmserver.federation_client.dns_lookup import Dns
from lmserver.federation_client.errors import AddressesRefused, BadResponse, FederationError, Unreachable
from lmserver.federation_client.streaming import StreamedResponse
from lmserver.protocol.ids import is_server_name

PORTS = frozenset((80, 443))
MAX_URL = 2048
MAX_AUTHORITY = 300
MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)


class WebPages:
    """Fetches pages; `language` of `open` is an Accept-Language."""

    def __init__(self, dns: Dns, guard: AddressGuard) -> None:
        self._dns = dns
        self._guard = guard
        # The web is wider than federation: TLS 1.2 will do.
        self._http = PinnedHttp(guard, ssl.create_default_context(), limit=64, limit_per_host=4)

    @asynccontextmanager
    async def open(self, url: str, language: str | None) -> AsyncIterator[tuple[str, StreamedResponse]]:
        """The 200 answer, and the URL it came from after redirects. Its deadline is the caller's.

        Raises Unreachable or BadResponse; the reader TimeoutError and aiohttp's errors as these too.
        """
        try:
            async with AsyncExitStack() as stack:
                place = parsed(url)
                for _ in range(MAX_REDIRECTS + 1):
                    response = await stack.enter_async_context(self._get(place, language))
                    if response.status not in _REDIRECTS:
                        break
                    place = parsed(response.headers.get("Location", ""), place)
                    await stack.aclose()
                else:
                    raise BadResponse("too many redirects")
                if response.status != 200:
                    raise BadResponse("the page is not there", f"status {response.status}")
                yield str(place), StreamedResponse(response)
        except FederationError:
            raise
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        await self._http.close()

    @asynccontextmanager
    async def _get(self, place: URL, language: str | None) -> AsyncIterator[aiohttp.ClientResponse]:
        host, port = place.raw_host or "", place.port or 0
        answer = await self._dns.addresses(host)
        addresses = tuple(Address(ip, port) for ip in answer.addresses if self._guard.is_allowed(ip))
        if not addresses:
            raise AddressesRefused("every address is refused")
        header = host if place.explicit_port is None else f"{host}:{port}"
        target = Target(header, host if place.scheme == "https" else None, addresses)
        headers = {"Accept": "text/html, image/*;q=0.9, */*;q=0.1", "Accept-Encoding": "identity"}
        if language:
            headers["Accept-Language"] = language
        async with self._http.request(
            "GET", target, place.raw_path_qs, headers=headers, body=None
        ) as response:
            yield response


def parsed(url: str, base: URL | None = None) -> URL:
    """A URL that may be fetched, its name in ASCII. Lengths are looked at first: encoding a name costs
    more than its length (attack Q5). Raises Unreachable."""
    try:
        if len(url) > MAX_URL or any(len(part) > MAX_AUTHORITY for part in url.split("/")[2:3]):
            raise Unreachable("URL is too long")
        place = URL(url) if base is None else base.join(URL(url))
        host = place.raw_host or ""
        is_name = is_server_name(host) and not host.replace(".", "").isdigit() and "." in host
        if place.scheme not in ("http", "https") or place.user is not None or place.password is not None:
            raise Unreachable("URL is not followed")
        if not is_name or place.port not in PORTS or len(str(place)) > MAX_URL:
            raise Unreachable("URL is not followed")
        return place.with_fragment(None)
    except (ValueError, TypeError) as error:
        raise Unreachable("URL is not valid") from error
