"""Users whose account has ended leave their rooms, decline their invites and take back their knocks.

What remains to be done stands in the database, because hubs of other servers may be away for long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from lmserver.rooms.background import repeat
from lmserver.rooms.outcomes import MembershipError
from lmserver.storage import departures, outside, room_state, stream
from lmserver.storage.database import Database
from lmserver.storage.departures import Departure

POLL_SECONDS: Final = 2.0
FIRST_PAUSE_MS: Final = 10_000
MAX_PAUSE_MS: Final = 3_600_000
BATCH: Final = 20
ENDING: Final = frozenset({"join", "invite", "knock"})


class Leaving(Protocol):
    """How a user leaves one room."""

    async def leave(self, user_id: str, room_id: str, reason: str | None = None) -> None: ...


class Departures:
    """Lets them go, room by room, until there is none left."""

    def __init__(self, db: Database, membership: Leaving, clock: Callable[[], int]) -> None:
        self._db = db
        self._membership = membership
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled."""
        await repeat("departures", POLL_SECONDS, self.check)

    async def check(self) -> None:
        """Go on with every user whose turn it is."""
        for departure in await departures.due(self._db, self._clock(), BATCH):
            if await self._depart(departure.user_id):
                await departures.done(self._db, departure.user_id)
            else:
                await departures.later(self._db, departure.user_id, self._clock() + _pause(departure))

    async def _depart(self, user_id: str) -> bool:
        """Whether nothing is left that could be done later."""
        done = True
        for room_id in await self._rooms(user_id):
            try:
                await self._membership.leave(user_id, room_id)
            except MembershipError as error:
                # What the room refuses for good is not asked again.
                done = done and error.status < 500 and error.status != 429
        return done

    async def _rooms(self, user_id: str) -> list[str]:
        inside = await room_state.user_memberships(self._db, user_id)
        beside = await outside.of_user(self._db, user_id, 0, await stream.settled(self._db))
        rooms = {m.room_id for m in inside if m.membership in ENDING}
        return sorted(rooms | {m.room_id for m in beside if m.pending})


def _pause(departure: Departure) -> int:
    return min(FIRST_PAUSE_MS << min(departure.tries, 20), MAX_PAUSE_MS)
