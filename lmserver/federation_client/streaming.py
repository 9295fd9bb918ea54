"""An answer that is read as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp

from lmserver.federation_client.connector import READ_CHUNK
from lmserver.federation_client.errors import BadResponse, ResponseTooLarge

STALL_SECONDS = 20.0
"""How long the other server may be silent in the middle of a body."""


class StreamedResponse:
    """A 200 answer whose body is not here yet."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def content_type(self) -> str:
        """The header as it came; it may be empty."""
        return self._response.headers.get("Content-Type", "")

    @property
    def disposition(self) -> str | None:
        return self._response.headers.get("Content-Disposition")

    async def chunks(self, limit: int) -> AsyncIterator[bytes]:
        """The body. Raises BadResponse when it is encoded, ResponseTooLarge over `limit`, TimeoutError
        when nothing comes, aiohttp.ClientError when it ends early."""
        if self._response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            raise BadResponse("response has an encoding that was not asked for")
        size = 0
        while True:
            async with asyncio.timeout(STALL_SECONDS):
                chunk = await self._response.content.read(READ_CHUNK)
            if not chunk:
                return
            size += len(chunk)
            if size > limit:
                raise ResponseTooLarge("response is too large")
            yield chunk
