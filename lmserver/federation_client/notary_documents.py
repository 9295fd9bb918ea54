"""What we know of others' keys for whoever asks us as a notary (D04 §Retrieving Server Keys).

Anybody may ask, and each name may be one that leads somewhere slow or private (attack K9). So what a
question makes us do is bounded: names fetched at once and a second, the time it takes, and the
servers we begin to keep keys of because a stranger named them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from lmserver.federation_client.keyring import Keyring
from lmserver.protocol import canonical_json
from lmserver.storage import server_keys
from lmserver.storage.database import Database
from lmserver.web.limits import Rate, RateLimiter

MAX_AT_ONCE: Final = 10
MAX_SECONDS: Final = 8.0
MAX_STRANGERS: Final = 5_000
MAX_DOCUMENTS: Final = 200
MAX_BYTES: Final = 1024 * 1024
FETCHES: Final = Rate(2.0, 100)
"""For everybody together: when they are used up, answers come from what is stored."""

_RATE: Final = "notary"


class NotaryDocuments:
    """Key documents as their servers signed them, refreshed at half of their life."""

    def __init__(
        self,
        db: Database,
        keyring: Keyring,
        clock: Callable[[], int],
        *,
        fetches: Rate = FETCHES,
        seconds: float = MAX_SECONDS,
    ) -> None:
        self._db = db
        self._keyring = keyring
        self._clock = clock
        self._limiter = RateLimiter({_RATE: fetches})
        self._seconds = seconds
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    async def documents(self, wanted: Mapping[str, int]) -> dict[str, list[canonical_json.JsonObject]]:
        """For each server name its documents, newest first: at least the one that fits in the answer.

        `wanted` is name to the time (ms) until which keys have to be valid to be of use; 0 gives
        also what is no longer valid, for the signatures of old events (D04 §GET /_matrix/key/v2/server).
        """
        await self._refresh(wanted)
        found: dict[str, list[canonical_json.JsonObject]] = {name: [] for name in wanted}
        used = 0
        for document in await server_keys.newest_documents(self._db, list(wanted), MAX_DOCUMENTS):
            used += len(document.document)
            if used > MAX_BYTES:
                break
            if document.valid_until_ts >= wanted[document.server]:
                found[document.server].append(canonical_json.parse_object(document.document))
        return found

    async def _refresh(self, wanted: Mapping[str, int]) -> None:
        """Ask the servers themselves, for so long; what comes later serves the next question."""
        tasks = [asyncio.create_task(self._one(name, until)) for name, until in wanted.items()]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, timeout=self._seconds)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _one(self, name: str, until: int) -> None:
        async with self._places:
            known = await self._keyring.known(name)
            if known.serves(self._clock(), until) or self._clock() < known.next_fetch:
                return
            if known.linearized is None and await server_keys.count(self._db) >= MAX_STRANGERS:
                return
            if self._limiter.take(_RATE, ""):
                return
            await self._keyring.refresh(name)
