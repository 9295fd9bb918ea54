"""Finding out what changed for one user between two stream positions: from the journal, or by
asking the database where the journal does not reach back so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmserver.rooms.sync.interval import Interval
from lmserver.rooms.sync.journal import Journal, position_of
from lmserver.rooms.sync.memberships import UserRooms
from lmserver.rooms.sync.tokens import SyncToken
from lmserver.storage import room_batches, room_reads
from lmserver.storage.database import Executor
from lmserver.storage.room_batches import Stretch
from lmserver.storage.room_reads import MemberChange, MemberEntry, RoomSpan


class Intervals:
    """Reads the outline of an answer: which rooms have news, and of which kind."""

    def __init__(self, db: Executor, journal: Journal) -> None:
        self._db = db
        self._journal = journal

    async def read(
        self, user_id: str, rooms: UserRooms, since: SyncToken | None, upto: SyncToken, *, may_know: bool
    ) -> Interval:
        """The interval [since, upto) for a user whose rooms at its end are given; from the database
        alone unless `may_know`. Whoever uses the journal for a known interval asks it afterwards
        whether it still covered it."""
        if since is None:
            return Interval(None, upto, rooms.joined, rooms.ignored)
        known = may_know and self._journal.covers(since.stream) and upto.stream <= self._journal.end
        differ = not known or self._journal.membership_changed(user_id, since.stream)
        changed = [e for e in rooms.entries if e.stream_xid >= since.stream] if differ else []
        spans = await self._spans(rooms.joined, since.stream, upto.stream, known=known)
        newly, left = await self._moves(user_id, changed, since.stream)
        steady = [s for s in spans.values() if s.room_id not in newly]
        return Interval(
            since,
            upto,
            rooms.joined,
            rooms.ignored,
            frozenset(newly),
            frozenset(left),
            frozenset(e.room_id for e in changed),
            spans,
            await self._member_changes(steady, since.stream, upto.stream, known=known),
            known,
            differ,
        )

    async def _spans(
        self, joined: Mapping[str, MemberEntry], since: int, upto: int, *, known: bool
    ) -> dict[str, RoomSpan]:
        if not joined or since >= upto:
            return {}
        wanted = list(joined)
        found: dict[str, RoomSpan] = {}
        if known:
            touched = [room_id for room_id in joined if self._journal.has_events(room_id, since)]
            wanted = []
            for room_id in touched:
                events = self._journal.events(room_id, since, upto)
                if events:
                    first, last = position_of(events[0]), position_of(events[-1])
                    found[room_id] = RoomSpan(room_id, first - 1, last)
                else:
                    wanted.append(room_id)
        if wanted:
            found |= {s.room_id: s for s in await room_reads.spans(self._db, wanted, since, upto)}
        return found

    async def _moves(
        self, user_id: str, changed: Sequence[MemberEntry], since: int
    ) -> tuple[set[str], set[str]]:
        """Rooms joined and rooms left: of those joined at both ends the ones that were left between."""
        newly: set[str] = set()
        left: set[str] = set()
        stayed: list[Stretch] = []
        for entry in changed:
            before = await room_reads.membership_before(self._db, entry.room_id, user_id, since)
            was_joined = before is not None and before.membership == "join"
            if entry.membership != "join":
                left |= {entry.room_id} if was_joined else set()
            elif before is None or not was_joined:
                newly.add(entry.room_id)
            else:
                stayed.append(Stretch(entry.room_id, before.from_position + 1, entry.from_position))
        if stayed:
            between = await room_batches.own_memberships(self._db, stayed, user_id)
            newly |= {room_id for room_id, had in between.items() if any(m != "join" for m in had)}
        return newly, left

    async def _member_changes(
        self, spans: Sequence[RoomSpan], since: int, upto: int, *, known: bool
    ) -> list[MemberChange]:
        if known:
            spans = [s for s in spans if self._may_have_members(s.room_id, since, upto)]
        return await room_reads.member_changes(self._db, spans) if spans else []

    def _may_have_members(self, room_id: str, since: int, upto: int) -> bool:
        events = self._journal.events(room_id, since, upto)
        return not events or any(event.member is not None for event in events)
