"""A transaction ID makes a request happen once (D04 §Transaction Identifiers): the first answer is
stored and given to every repetition, whatever its body, and survives the peer's hanging up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from lmserver.storage import inbound
from lmserver.storage.database import Database
from lmserver.storage.inbound import StoredResponse
from lmserver.web.endpoint import Reply
from lmserver.web.errors import bad_json

MAX_TXN_ID = 255
MAX_STORED = 256 * 1024
"""A longer answer is not kept: it follows from the event, made again."""


class Once:
    """Requests in progress by (origin, endpoint, transaction ID)."""

    def __init__(self, db: Database, clock: Callable[[], int]) -> None:
        self._db = db
        self._clock = clock
        self._in_flight: dict[tuple[str, str, str], asyncio.Task[StoredResponse]] = {}

    async def share(
        self, origin: str, endpoint: str, txn_id: str, work: Callable[[], Awaitable[StoredResponse]]
    ) -> Reply:
        """Run `work`, or wait for the same transaction's; it goes on when the peer hangs up."""
        if not txn_id or len(txn_id) > MAX_TXN_ID or "\0" in txn_id:
            raise bad_json("the transaction ID is not valid")
        key = (origin, endpoint, txn_id)
        task = self._in_flight.get(key)
        if task is None:
            task = asyncio.ensure_future(_run(work))
            self._in_flight[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        answer = await asyncio.shield(task)
        return Reply(answer.status, answer.body)

    async def stored(
        self, origin: str, endpoint: str, txn_id: str, work: Callable[[], Awaitable[bytes]]
    ) -> Reply:
        """The stored answer, or that of `work` (a 200), stored. A refusal is an exception and is
        not stored: the room may allow tomorrow what it refuses today."""

        async def first() -> StoredResponse:
            known = await inbound.response(self._db, origin, endpoint, txn_id)
            if known is not None:
                return known
            answer = StoredResponse(200, await work())
            if len(answer.body) > MAX_STORED:
                return answer
            return await inbound.finish(self._db, origin, endpoint, txn_id, answer, self._clock())

        return await self.share(origin, endpoint, txn_id, first)

    async def close(self) -> None:
        """Let requests in progress finish."""
        await asyncio.gather(*self._in_flight.values(), return_exceptions=True)

    def _finished(self, key: tuple[str, str, str], task: asyncio.Task[StoredResponse]) -> None:
        self._in_flight.pop(key, None)
        if not task.cancelled():
            task.exception()  # the peer may have gone: nobody else asks for it


async def _run(work: Callable[[], Awaitable[StoredResponse]]) -> StoredResponse:
    return await work()
