"""Telling others that our key has leaked: who knows a key as good takes requests signed with it for hours.

A server that gets a request signed with a key it does not know asks for our keys at once, and drops the
old one (D04 §Validity). So one request to each server does, whatever it asks for and is answered.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from lmserver.federation_client.client import Response, quote_path
from lmserver.federation_client.errors import FederationError
from lmserver.federation_client.room_api import UNSTABLE

MAX_AT_ONCE: Final = 20
ROUNDS: Final = 3
ROUND_SECONDS: Final = 65.0
"""A server that has asked for our keys within the last minute does not ask again."""

log = structlog.get_logger(__name__)


class Requests(Protocol):
    """The part of FederationClient that is needed."""

    async def request(self, method: str, destination: str, path: str, *, timeout: float) -> Response: ...


async def tell(client: Requests, servers: Sequence[str], *, pause: float = ROUND_SECONDS) -> list[str]:
    """Make each server see our new key; returns those that did not answer or still refuse it."""
    missing = list(servers)
    for number in range(ROUNDS):
        if number and missing:
            await asyncio.sleep(pause)
        missing = await _round(client, missing)
    log.info("leaked_key_told", servers=len(servers) - len(missing), not_told=len(missing))
    return missing


async def _round(client: Requests, servers: Sequence[str]) -> list[str]:
    places = asyncio.Semaphore(MAX_AT_ONCE)

    async def one(server: str) -> bool:
        path = f"{UNSTABLE}/event" + quote_path("$" + secrets.token_urlsafe(32))
        async with places:
            try:
                response = await client.request("GET", server, path, timeout=20.0)
            except FederationError:
                return False
        return response.status != 401

    told = await asyncio.gather(*(one(server) for server in servers))
    return [server for server, done in zip(servers, told, strict=True) if not done]
