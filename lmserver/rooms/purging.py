"""Deleting rooms: our users leave, other servers hear of it, and then every row goes, some at a time.

What is to be done stands in the database and goes on after a restart. While it does, nobody of ours can
join the room (`room_purges.is_closed`), so nothing new comes among what is being deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import structlog

from lmserver.rooms.background import repeat
from lmserver.rooms.outcomes import MembershipError
from lmserver.rooms.turns import Turns
from lmserver.storage import room_log, room_purges
from lmserver.storage.database import Connection, Database, UniqueViolation
from lmserver.storage.room_purges import COMPLETE, DELETING, FAILED, Purge

POLL_SECONDS: Final = 2.0
LEAVE_MS: Final = 600_000
"""How long hubs are asked to let our users go, and other servers given to take the last events."""
AT_ONCE: Final = 20
PURGES_AT_ONCE: Final = 5
ROWS_AT_ONCE: Final = 1000
ROOMS_AT_ONCE: Final = 500
KEEP_MS: Final = 30 * 24 * 3600 * 1000
BY_ITSELF: Final = "nobody of this server is in the room"

log = structlog.get_logger(__name__)


class Leaving(Protocol):
    """How a user leaves one room."""

    async def leave(self, user_id: str, room_id: str, reason: str | None = None) -> None: ...


class AlreadyPurging(Exception):
    """The room is being deleted."""


class RoomPurges:
    """Deletions of rooms; `alone` holds back joins of a room meanwhile."""

    def __init__(
        self,
        db: Database,
        turns: Turns,
        membership: Leaving,
        alone: Callable[[str], AbstractAsyncContextManager[None]],
        clock: Callable[[], int],
        keep_empty_ms: int | None,
    ) -> None:
        self._db = db
        self._turns = turns
        self._membership = membership
        self._alone = alone
        self._clock = clock
        self._keep_empty_ms = keep_empty_ms
        self._due = asyncio.Event()
        self._ended: dict[str, asyncio.Event] = {}

    async def begin(self, room_id: str, by: str, *, deletes: bool, forced: bool) -> str:
        """Let a room be deleted beside the requests; what it is asked for by. Raises AlreadyPurging."""
        delete_id = secrets.token_urlsafe(12)
        try:
            await room_purges.begin(
                self._db, delete_id, room_id, by, deletes=deletes, forced=forced, now_ms=self._clock()
            )
        except UniqueViolation:
            raise AlreadyPurging(room_id) from None
        self._due.set()
        return delete_id

    async def wait(self, delete_id: str, seconds: float) -> None:
        """Until a deletion of this process has ended, or for so long."""
        ended = self._ended.setdefault(delete_id, asyncio.Event())
        try:
            async with asyncio.timeout(seconds):
                purge = await room_purges.one(self._db, delete_id)
                if purge is not None and purge.ended_ts is None:
                    await ended.wait()
        except TimeoutError:
            return
        finally:
            self._ended.pop(delete_id, None)

    async def run(self) -> None:
        """Until cancelled."""
        await repeat("room purges", 0.0, self._wait_and_check)

    async def _wait_and_check(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._due.wait()
        self._due.clear()
        await self.check()

    async def check(self) -> None:
        """Go on with every deletion."""
        for purge in await room_purges.active(self._db, PURGES_AT_ONCE):
            if purge.status == DELETING or await self._left(purge):
                await self._delete(purge)

    # -- the users ------------------------------------------------------------------------------

    async def _left(self, purge: Purge) -> bool:
        """Whether the users have left, or waiting for more is of no use, and the rows may go."""
        error = await self._let_go(purge)
        overdue = self._clock() - purge.started_ts >= LEAVE_MS
        if error is not None and not purge.forced:
            if overdue:
                await self._end(purge, FAILED)
            return False
        if not purge.deletes:
            await self._end(purge, COMPLETE)
            return False
        return purge.forced or overdue or not await room_purges.is_owed(self._db, purge.room_id)

    async def _let_go(self, purge: Purge) -> str | None:
        """One round; what keeps somebody in the room that may change, if anything does."""
        after, error = "", None
        while page := await room_purges.ours_in(
            self._db, purge.room_id, self._turns.our_name, after, AT_ONCE
        ):
            left: list[str] = []
            for user_id, membership in page:
                failure = await self._leave(user_id, purge.room_id)
                if failure is None and membership == "join":
                    left.append(user_id)
                error = failure or error
                if failure is not None:
                    break
            await room_purges.note_left(self._db, purge.delete_id, left, error)
            if error is not None:
                break
            after = page[-1][0]
        return error

    async def _leave(self, user_id: str, room_id: str) -> str | None:
        try:
            await self._membership.leave(user_id, room_id)
        except MembershipError as refused:
            # What the room refuses for good is not asked again.
            return refused.reason if refused.status >= 500 or refused.status == 429 else None
        return None

    # -- the rows -------------------------------------------------------------------------------

    async def _delete(self, purge: Purge) -> None:
        room_id = purge.room_id
        if purge.status != DELETING:
            async with self._alone(room_id):
                await self._db.run(lambda db: self._remove_room(db, purge))
            log.info("room_purge", room_id=room_id, requested_by=purge.requested_by)
        self._turns.forget(room_id)
        while removed := await room_purges.remove_rows(self._db, room_id, ROWS_AT_ONCE):
            await room_purges.go_on(self._db, purge.delete_id, removed)
        self._turns.forget(room_id)  # somebody may have read it while it was going
        await self._end(purge, COMPLETE)
        log.info("room_purged", room_id=room_id)

    async def _remove_room(self, db: Connection, purge: Purge) -> None:
        await room_log.lock_head(db, purge.room_id)
        await room_purges.remove_room(db, purge.room_id, self._turns.our_name)
        await room_purges.go_on(db, purge.delete_id, 0)

    async def _end(self, purge: Purge, status: str) -> None:
        await room_purges.end(self._db, purge.delete_id, status, self._clock())
        if purge.delete_id in self._ended:
            self._ended[purge.delete_id].set()

    # -- rooms that nobody here is in -----------------------------------------------------------

    async def tidy(self) -> None:
        """Note which rooms nobody of ours is in, and delete those where that is so for long enough."""
        now, our_name, after = self._clock(), self._turns.our_name, ""
        await room_purges.forget(self._db, now - KEEP_MS)
        if self._keep_empty_ms is None:
            return
        while (
            last := await room_purges.note_empty(self._db, our_name, after, ROOMS_AT_ONCE, now)
        ) is not None:
            after = last
        for room_id in await room_purges.empty_since(
            self._db, our_name, now - self._keep_empty_ms, ROOMS_AT_ONCE
        ):
            try:
                await self.begin(room_id, BY_ITSELF, deletes=True, forced=False)
            except AlreadyPurging:
                continue
