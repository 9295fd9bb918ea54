"""GET /keys/changes: the `device_lists` of /sync between two tokens of the client's choice (CS API
§GET /keys/changes), for a client that has kept its keys but begins to sync anew."""

from __future__ import annotations

from collections.abc import Iterable

from lmserver.rooms.sync.device_lists import DeviceListChanges, device_list_changes
from lmserver.rooms.sync.feeds import Feeds
from lmserver.rooms.sync.tokens import SyncToken
from lmserver.storage import room_reads
from lmserver.storage.database import Executor
from lmserver.storage.room_reads import MemberEntry


class KeyChanges:
    """Whose devices changed for a user between two positions of the stream."""

    def __init__(self, db: Executor, feeds: Feeds) -> None:
        self._db = db
        self._feeds = feeds

    async def between(self, user_id: str, since: SyncToken, upto: SyncToken | None) -> DeviceListChanges:
        """Up to now where no end is given. After a restore of the database everybody has changed."""
        settled, upcoming, epoch = await room_reads.sync_positions(self._db)
        start = since.stream if since.epoch == epoch and since.stream <= upcoming else 0
        end = settled if upto is None or upto.epoch != epoch else min(settled, upto.stream)
        entries = await room_reads.memberships_at(self._db, user_id, end)
        newly, left = await self._moves(user_id, entries, start)
        steady = [e.room_id for e in entries if e.membership == "join" and e.room_id not in newly]
        spans = await room_reads.spans(self._db, steady, start, end) if steady and start < end else []
        changes = await room_reads.member_changes(self._db, spans) if spans else []
        return await device_list_changes(self._db, self._feeds, user_id, start, end, changes, newly, left)

    async def _moves(
        self, user_id: str, entries: Iterable[MemberEntry], since: int
    ) -> tuple[set[str], dict[str, int]]:
        """Rooms joined, and rooms left with the position of that."""
        newly: set[str] = set()
        left: dict[str, int] = {}
        for entry in entries:
            if entry.stream_xid < since:
                continue
            before = await room_reads.membership_before(self._db, entry.room_id, user_id, since)
            was_in = before is not None and before.membership == "join"
            if entry.membership == "join" and not was_in:
                newly.add(entry.room_id)
            elif entry.membership != "join" and was_in:
                left[entry.room_id] = entry.from_position
        return newly, left
