"""A changed profile becomes a member event in each room its user is in (CS API §Events on Change of Profile
Information).

Rooms are told a few at a time. Whoever changed the profile waits for it, but not for hubs that are away:
those rooms are told beside the requests, and a change that comes meanwhile is told in the same run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from lmserver.protocol.events import EventDraft
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.outcomes import Rejected, RoomBusy
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.storage import people, room_state
from lmserver.storage.database import Database, DatabaseUnavailable

AT_ONCE: Final = 8
WAIT_SECONDS: Final = 3.0

log = structlog.get_logger(__name__)


class ProfileNews:
    """Tells rooms, one run for each user at a time."""

    def __init__(
        self,
        db: Database,
        engine: RoomEngine,
        profile_of: Callable[[str], Awaitable[dict[str, Any]]],
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._engine = engine
        self._profile_of = profile_of
        self._clock = clock
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()

    async def changed(self, user_id: str) -> None:
        """Tell the rooms of a local user; returns when they know, or after WAIT_SECONDS."""
        content = await self._profile_of(user_id)
        await people.seen(self._db, {user_id: content}, new_only=False)
        run = self._runs.get(user_id)
        if run is None:
            run = asyncio.create_task(self._run(user_id), name=f"profile of {user_id}")
            self._runs[user_id] = run
        else:
            self._again.add(user_id)
        await asyncio.wait([run], timeout=WAIT_SECONDS)

    async def _run(self, user_id: str) -> None:
        try:
            while True:
                self._again.discard(user_id)
                await self._tell(user_id)
                if user_id not in self._again:
                    return
        except DatabaseUnavailable:
            log.warning("profile_not_told_everywhere", user_id=user_id)
        except Exception as error:  # a task has nobody else to tell
            log.error("profile_not_told_everywhere", user_id=user_id, exc_info=error)
        finally:
            del self._runs[user_id]
            self._again.discard(user_id)

    async def _tell(self, user_id: str) -> None:
        content = {"membership": "join", **await self._profile_of(user_id)}
        places = asyncio.Semaphore(AT_ONCE)
        rooms = await room_state.joined_rooms(self._db, user_id)
        await asyncio.gather(*(self._tell_room(room_id, user_id, content, places) for room_id in rooms))

    async def _tell_room(
        self, room_id: str, user_id: str, content: dict[str, Any], places: asyncio.Semaphore
    ) -> None:
        async with places:
            view = await self._engine.view(room_id)
            member = None if view is None else view.get("m.room.member", user_id)
            if member is None or member.content == content:
                return
            draft = EventDraft(room_id, "m.room.member", user_id, content, self._clock(), user_id)
            try:
                [outcome] = await self._engine.send([draft])
            except (HubSilent, RoomBusy):
                return  # what was handed to a silent hub is sent to it until it answers
            if isinstance(outcome, Rejected):
                log.info("profile_not_told", room_id=room_id, user_id=user_id, reason=outcome.reason)

    async def close(self) -> None:
        """Stop telling; the next change tells what is left."""
        runs = list(self._runs.values())
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
