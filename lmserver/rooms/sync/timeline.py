"""One room's part of a /sync answer: timeline, the state before it, summary and counts.

State is linear, so what a client misses before its timeline is exactly the state events between
its last position and the timeline's start; no states are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.rooms.client_format import ClientEvent, Shown
from lmserver.rooms.reading import Access, Reader, Reading
from lmserver.rooms.sync.filters import SyncFilter
from lmserver.rooms.sync.tokens import RoomToken
from lmserver.storage import room_reads, room_state
from lmserver.storage.database import Executor

MAX_HEROES: Final = 5


@dataclass(frozen=True, slots=True)
class Window:
    """Positions (after, upto] of one room. `after` None: the client knows nothing of the room."""

    after: int | None
    upto: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """Visible events of a window, oldest first; `start` is the position of the first."""

    events: list[Shown]
    limited: bool
    start: int

    @property
    def prev_batch(self) -> str:
        return str(RoomToken(self.start - 1))


class RoomSections:
    """Builds the room parts of one reader's answers."""

    def __init__(self, db: Executor, reading: Reading) -> None:
        self._db = db
        self._reading = reading

    # -- joined and left rooms ------------------------------------------------------------------

    async def section(
        self, access: Access, reader: Reader, window: Window, wanted: SyncFilter, *, full_state: bool
    ) -> dict[str, Any]:
        """`timeline` and `state` of a room (CS API §GET /sync, Joined Room)."""
        timeline = await self._timeline(access, window, wanted)
        state = await self._state_before(access, reader, window, timeline, wanted, full_state)
        return {
            "timeline": {
                "events": await self._reading.render(access, reader, timeline.events, with_room_id=False),
                "limited": timeline.limited,
                "prev_batch": timeline.prev_batch,
            },
            "state": {"events": await self._reading.render(access, reader, state, with_room_id=False)},
        }

    async def _timeline(self, access: Access, window: Window, wanted: SyncFilter) -> Timeline:
        if not wanted.timeline.room_passes(access.room_id):
            return Timeline([], False, window.upto + 1)
        lowest = access.room.min_position if window.after is None else window.after + 1
        stretches = access.visible.within(lowest, window.upto)
        if not stretches:
            return Timeline([], False, window.upto + 1)
        # A timeline has no holes: behind hidden events there may be state the client must get.
        first, last = stretches[-1]
        page = await self._reading.backwards(
            access, last, wanted.timeline_limit, wanted.timeline.passes, first - 1
        )
        events = page.events[::-1]
        limited = page.end is not None or len(stretches) > 1 or (window.after is not None and first > lowest)
        start = events[0].position if events else None
        return Timeline(events, limited, last + 1 if start is None else start)

    async def _state_before(
        self,
        access: Access,
        reader: Reader,
        window: Window,
        timeline: Timeline,
        wanted: SyncFilter,
        full: bool,
    ) -> list[Shown]:
        """The state at the timeline's start, whole or as the change since the client's last."""
        if not wanted.state.room_passes(access.room_id):
            return []
        senders = {e.sender for e in timeline.events}
        whole = full or window.after is None
        if whole:
            found = await self._whole_state(access, timeline.start, wanted, senders | {reader.user_id})
        elif timeline.limited:
            found = await self._changed_state(access, window, timeline.start)
        else:
            found = []
        if wanted.lazy and not whole:
            found = await self._only_needed_members(access, found, timeline, reader, senders)
        return [e for e in found if wanted.state.type_passes(e.type) and wanted.state.sender_passes(e.sender)]

    async def _whole_state(
        self, access: Access, position: int, wanted: SyncFilter, users: Iterable[str]
    ) -> list[Shown]:
        if not wanted.lazy:
            return await self._reading.state(access, position)
        at = access.state_at(position)
        if at is None:
            return []
        stored = await room_reads.state_without_members(self._db, access.room_id, at)
        heroes = await room_reads.first_members(self._db, access.room_id, at, MAX_HEROES + 1)
        members = await self._reading.members_named(access, at, [*users, *heroes])
        return self._reading.shown_all(stored, access.version) + members

    async def _changed_state(self, access: Access, window: Window, start: int) -> list[Shown]:
        """State events of the gap between the window's begin and the timeline, the last of each."""
        after = window.after if window.after is not None else access.room.min_position - 1
        changes = await room_state.state_changes(self._db, access.room_id, after, start - 1)
        last = {(e.type, e.state_key): e for e in self._reading.shown_all(changes, access.version)}
        return list(last.values())

    async def _only_needed_members(
        self, access: Access, found: Sequence[Shown], timeline: Timeline, reader: Reader, senders: set[str]
    ) -> list[Shown]:
        """Lazy loading: members of the timeline's senders, and the reader's own."""
        needed = senders | {reader.user_id}
        kept = [e for e in found if e.type != "m.room.member" or e.state_key in needed]
        had = {e.state_key for e in kept if e.type == "m.room.member"}
        if senders - had:
            kept += await self._reading.members_named(access, timeline.start, senders - had)
        return kept

    # -- summary --------------------------------------------------------------------------------

    async def summary(self, access: Access, reader: Reader, position: int) -> dict[str, Any]:
        """How many are in the room and whom to name it after (CS API §GET /sync, RoomSummary)."""
        joined, invited = await room_reads.member_counts_at(self._db, access.room_id, position)
        first = await room_reads.first_members(self._db, access.room_id, position, MAX_HEROES + 1)
        return {
            "m.heroes": [user for user in first if user != reader.user_id][:MAX_HEROES],
            "m.joined_member_count": joined,
            "m.invited_member_count": invited,
        }

    # -- rooms the user is not in ---------------------------------------------------------------

    async def left(
        self, access: Access, reader: Reader, window: Window, own_event: Shown, wanted: SyncFilter
    ) -> dict[str, Any]:
        """A room the user left, was removed from or never got into: up to that event only."""
        position = 0 if own_event.position is None else own_event.position
        if position not in access.visible:
            # Never joined: the member event is all there is to see, and it concerns the reader.
            return {
                "timeline": {
                    "events": await self._render_own(access, reader, own_event),
                    "limited": False,
                    "prev_batch": str(RoomToken(position - 1)),
                },
                "state": {"events": []},
            }
        upto = min(window.upto, position)
        return await self.section(access, reader, Window(window.after, upto), wanted, full_state=False)

    async def _render_own(self, access: Access, reader: Reader, own_event: Shown) -> list[ClientEvent]:
        return await self._reading.render(access, reader, [own_event], with_room_id=False)
