"""GET /keys/changes: the `device_lists` of /sync between two tokens of the client's choice (CS API
§GET /keys/changes), for a client that has kept its keys but begins to sync anew."""

from __future__ import annotations

from lmserver.rooms.sync.device_lists import DeviceListChanges, device_list_changes
from lmserver.rooms.sync.feeds import Feeds
from lmserver.rooms.sync.intervals import Intervals
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.sync.memberships import UserRooms
from lmserver.rooms.sync.tokens import SyncToken
from lmserver.storage import room_reads
from lmserver.storage.database import Executor


class KeyChanges:
    """Whose devices changed for a user between two positions of the stream."""

    def __init__(self, db: Executor, journal: Journal, feeds: Feeds) -> None:
        self._db = db
        self._intervals = Intervals(db, journal)
        self._feeds = feeds

    async def between(self, user_id: str, since: SyncToken, upto: SyncToken | None) -> DeviceListChanges:
        """Up to now where no end is given. After a restore of the database everybody has changed."""
        settled, upcoming, epoch = await room_reads.sync_positions(self._db)
        start = since.stream if since.epoch == epoch and since.stream <= upcoming else 0
        end = settled if upto is None or upto.epoch != epoch else min(settled, upto.stream)
        entries = await room_reads.memberships_at(self._db, user_id, end)
        joined = {e.room_id: e for e in entries if e.membership == "join"}
        interval = await self._intervals.read(
            user_id,
            UserRooms(entries, joined, frozenset(joined), frozenset()),
            SyncToken(start, 0, epoch),
            SyncToken(end, 0, epoch),
            may_know=False,
        )
        return await device_list_changes(
            self._db,
            self._feeds,
            user_id,
            start,
            end,
            interval.member_changes,
            interval.newly_joined,
            {e.room_id: e.from_position for e in entries if e.room_id in interval.left},
        )
