"""What an answer says of rooms: everything the first time, then what changed (MSC4186 §Room results).

All rooms of an answer are read together, a few round trips for each question and none for each room.
Of a joined room the client gets the current state and the newest events it may see; of a room left
what was there until then; of an invite what the invite said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from lmserver.rooms.access import Access, Reader
from lmserver.rooms.client_format import Shown, told
from lmserver.rooms.reading import PIECE, Reading
from lmserver.rooms.sliding.frames import BUMPING, Frame, RoomPlan, hero, left_room
from lmserver.rooms.sliding.pending import PendingRooms
from lmserver.rooms.sliding.request import MEMBER
from lmserver.rooms.unread import Unread
from lmserver.storage import room_batches, sliding_rooms
from lmserver.storage.database import Executor
from lmserver.storage.room_batches import Point, Stretch
from lmserver.storage.sliding_rooms import StateWant

MAX_HEROES: Final = 5
MAX_MEMBERS: Final = 100
"""Lazily sent members that are remembered for a room; of others the event is sent again."""
SPARE: Final = 20
"""Further events that are read when some may be of users the reader ignores."""
MAX_BUMP_SCAN: Final = 500


@dataclass(frozen=True, slots=True)
class RoomResult:
    """A room's part of the answer, what the client has after it, and the IDs of the events in its
    timeline."""

    body: dict[str, Any]
    members: tuple[str, ...] = ()
    limited: bool = False
    event_ids: tuple[str, ...] = ()


class RoomData:
    """Builds the rooms of an answer."""

    def __init__(
        self, db: Executor, reading: Reading, unread: Unread, pending: PendingRooms, clock: Callable[[], int]
    ) -> None:
        self._db = db
        self._reading = reading
        self._unread = unread
        self._pending = pending
        self._clock = clock

    async def results(
        self, reader: Reader, plans: Sequence[RoomPlan], since: int | None
    ) -> dict[str, RoomResult]:
        """The rooms of these that have something to say, in their order; `since` is the connection's
        stream position, which tells what has just happened."""
        if not plans:
            return {}
        found = await self._outsides(reader, plans)
        frames = await self._frames(reader, [p for p in plans if p.room.told is None and not p.room.pending])
        await self._timelines(frames, since)
        await self._states(frames)
        await self._lazy_members(frames)
        found |= await self._bodies(reader, frames)
        return {p.room_id: found[p.room_id] for p in plans if p.room_id in found}

    # -- rooms the user is not in ---------------------------------------------------------------

    async def _outsides(self, reader: Reader, plans: Sequence[RoomPlan]) -> dict[str, RoomResult]:
        """Invites and knocks, and what became of those the client knows of."""
        chosen = [p for p in plans if p.has_events and (p.room.pending or p.room.told is not None)]
        stripped = await self._pending.stripped(reader.user_id, [p.room for p in chosen if p.room.pending])
        found: dict[str, RoomResult] = {}
        for plan in chosen:
            body = self._common(plan)
            if plan.room.pending:
                body["invite_state"] = stripped.get(plan.room_id, [])
            else:
                own = self._pending.own_event(plan.room)
                events = [] if own is None else [self._reading.render_alone(own)]
                body |= {"required_state": events, "timeline": events}
            found[plan.room_id] = RoomResult(body)
        return found

    def _common(self, plan: RoomPlan) -> dict[str, Any]:
        body: dict[str, Any] = {"initial": plan.initial, "membership": plan.room.membership}
        if plan.lists:
            body["lists"] = list(plan.lists)
        if plan.room.membership != "join" and plan.has_events:
            body["bump_stamp"] = min(plan.room.member_ts, self._clock())
        if plan.is_dm if plan.initial else plan.dm_changed:
            body["is_dm"] = plan.is_dm
        return body

    # -- frames ---------------------------------------------------------------------------------

    async def _frames(self, reader: Reader, plans: Sequence[RoomPlan]) -> list[Frame]:
        afters = await self._afters(plans)
        plans = [p if afters[p.room_id] is not None else replace(p, sent=None) for p in plans]
        steady = {p.room_id for p in plans if self._is_steady(p)}
        others = [p.room_id for p in plans if p.room_id not in steady]
        accesses = await self._reading.accesses(reader.user_id, others) if others else {}
        if steady:
            accesses |= await self._reading.accesses_of_member(reader.user_id, sorted(steady))
        own_events = await self._own_events(plans, accesses)
        frames: list[Frame] = []
        for plan in plans:
            access = accesses.get(plan.room_id)
            if access is None:
                continue
            after = afters[plan.room_id]
            if plan.room.left:
                frames.append(left_room(plan, access, after, own_events.get(plan.room_id)))
            else:
                frames.append(Frame(plan, access, after, plan.room.head, plan.room.head + 1))
        return frames

    @staticmethod
    def _is_steady(plan: RoomPlan) -> bool:
        """Whether the user was joined all through what will be read."""
        return (
            plan.sent is not None and plan.sent.membership == "join" and plan.room.membership == "join"
            and not plan.expanded and plan.room.member_xid < plan.since
        )  # fmt: skip

    async def _afters(self, plans: Sequence[RoomPlan]) -> dict[str, int | None]:
        """The last position the client has of each room."""
        afters: dict[str, int | None] = {
            # Where nothing happened since, the client has all there is.
            p.room_id: None if p.initial else p.room.head
            for p in plans
        }
        asked = [(p.room_id, p.since) for p in plans if not p.initial and p.has_events]
        for room_id, before in (await sliding_rooms.positions_before(self._db, asked)).items():
            afters[room_id] = None if before is None else before[0]
        return afters

    async def _own_events(
        self, plans: Sequence[RoomPlan], accesses: Mapping[str, Access]
    ) -> dict[str, Shown]:
        wanted = [(p.room_id, p.room.event_id) for p in plans if p.room.left and p.room_id in accesses]
        stored = await room_batches.events_by_id(self._db, wanted) if wanted else []
        return {row.room_id: accesses[row.room_id].shown(row) for row in stored}

    # -- timelines ------------------------------------------------------------------------------

    async def _timelines(self, frames: Sequence[Frame], since: int | None) -> None:
        by_limit: dict[int, list[Frame]] = {}
        for frame in frames:
            frame.place()
            if frame.stretch is not None:
                by_limit.setdefault(frame.plan.config.timeline_limit, []).append(frame)
        for limit, chosen in by_limit.items():
            stretches = [frame.stretch for frame in chosen if frame.stretch is not None]
            # One more tells whether there are more, the spare ones stand in for what is not shown.
            most = limit + 1 + (SPARE if any(frame.access.ignored for frame in chosen) else 0)
            newest = await room_batches.newest(self._db, stretches, most)
            for frame in chosen:
                rows = newest.get(frame.plan.room_id, [])
                frame.fill(rows, limit, since, more=len(rows) == most)

    # -- state ----------------------------------------------------------------------------------

    async def _states(self, frames: Sequence[Frame]) -> None:
        """The state that is wanted, and what the summary is made of."""
        wants: list[StateWant] = []
        for frame in frames:
            wants += frame.wants()
        found = await sliding_rooms.state_entries(self._db, wants)
        stretches = [
            Stretch(f.plan.room_id, f.after + 1, f.upto)
            for f in frames
            if f.after is not None and f.upto > f.after and not f.quiet
        ]
        members = await sliding_rooms.with_member_changes(self._db, stretches)
        for frame in frames:
            frame.members_changed = frame.after is None or frame.plan.room_id in members
            for count, (position, stored) in enumerate(found.get(frame.plan.room_id, {}).values(), 1):
                if stored.soft_failed is None:
                    frame.note(position, frame.access.shown(stored))
                if count % PIECE == 0:
                    await asyncio.sleep(0)

    async def _lazy_members(self, frames: Sequence[Frame]) -> None:
        """Member events of those who appear in the timeline, as far as the client lacks them, and of
        those it has where they changed (MSC4186 §Lazy loaded memberships)."""
        wants: list[StateWant] = []
        for frame in frames:
            if frame.lazy and frame.at is not None:
                wants += frame.lazy_wants(frame.at)
        found = await sliding_rooms.state_entries(self._db, wants)
        for frame in frames:
            for _, stored in found.get(frame.plan.room_id, {}).values():
                event = frame.access.shown(stored)
                frame.state[event.event_id] = event
                frame.members = (*(m for m in frame.members if m != event.state_key), event.state_key or "")
            frame.members = frame.members[-MAX_MEMBERS:]

    # -- bodies ---------------------------------------------------------------------------------

    async def _bodies(self, reader: Reader, frames: Sequence[Frame]) -> dict[str, RoomResult]:
        frames = [frame for frame in frames if frame.has_news]
        rendered = await self._reading.render_rooms(
            reader, [(f.access, [*f.timeline, *f.state.values()]) for f in frames], told
        )
        summaries = await self._summaries(reader, frames)
        stamps = await self._stamps(frames)
        counts = await self._counts(reader, frames)
        found: dict[str, RoomResult] = {}
        for frame, events in zip(frames, rendered, strict=True):
            room_id = frame.plan.room_id
            body = self._common(frame.plan) | frame.events_part(events) | frame.named()
            body |= summaries.get(room_id, {}) | counts.get(room_id, {})
            if room_id in stamps:
                body["bump_stamp"] = min(stamps[room_id], self._clock())
            ids = tuple(event.event_id for event in frame.timeline)
            found[room_id] = RoomResult(body, frame.members, frame.limited, ids)
        return found

    async def _summaries(self, reader: Reader, frames: Sequence[Frame]) -> dict[str, dict[str, Any]]:
        """Member counts where memberships changed, and heroes where there is no name besides."""
        chosen = [
            f for f in frames if f.plan.room.membership == "join" and (f.members_changed or f.name_changed)
        ]
        people = await room_batches.people(
            self._db, [Point(f.plan.room_id, f.upto + 1) for f in chosen], MAX_HEROES + 1
        ) if chosen else {}  # fmt: skip
        nameless = {
            f.plan.room_id: [u for u in people[f.plan.room_id].first if u != reader.user_id][:MAX_HEROES]
            for f in chosen
            if f.name is None
        }
        events = await self._heroes(chosen, nameless)
        answers: dict[str, dict[str, Any]] = {}
        for frame in chosen:
            room_id = frame.plan.room_id
            counts = people[room_id]
            answers[room_id] = {"joined_count": counts.joined, "invited_count": counts.invited}
            if room_id in nameless:
                answers[room_id]["heroes"] = [
                    hero(user, events.get((room_id, user))) for user in nameless[room_id]
                ]
        return answers

    async def _heroes(
        self, frames: Sequence[Frame], users: Mapping[str, Sequence[str]]
    ) -> dict[tuple[str, str], Shown]:
        wants = [
            StateWant(f.plan.room_id, f.upto + 1, MEMBER, user)
            for f in frames
            for user in users.get(f.plan.room_id, ())
        ]
        found = await sliding_rooms.state_entries(self._db, wants)
        accesses = {f.plan.room_id: f.access for f in frames}
        events = [
            (room_id, accesses[room_id].shown(stored))
            for room_id, entries in found.items()
            for _, stored in entries.values()
        ]
        return {(room_id, event.state_key or ""): event for room_id, event in events}

    async def _stamps(self, frames: Sequence[Frame]) -> dict[str, int]:
        """When joined rooms last had activity a person would notice, where that is news."""
        joined = [f for f in frames if f.plan.room.membership == "join"]
        stretches: list[Stretch] = []
        for frame in joined:
            if frame.seen_all:
                continue
            lowest = frame.access.room.min_position if frame.after is None else frame.after + 1
            visible = frame.access.visible.within(lowest, frame.upto)
            if visible:
                stretches.append(Stretch(frame.plan.room_id, visible[-1][0], frame.upto))
        newest = (
            await sliding_rooms.newest_of_types(self._db, stretches, BUMPING, MAX_BUMP_SCAN)
            if stretches
            else {}
        )
        seen = {f.plan.room_id: f.bumped_at for f in joined if f.seen_all and f.bumped_at is not None}
        begun = {f.plan.room_id: f.plan.room.member_ts for f in joined if f.after is None}
        return begun | seen | newest

    async def _counts(self, reader: Reader, frames: Sequence[Frame]) -> dict[str, dict[str, Any]]:
        """Unread notifications, those in threads too: no extension tells of them apart."""
        joined = [f.plan.room_id for f in frames if f.plan.room.membership == "join"]
        counts = await self._unread.of(reader.user_id, joined) if joined else {}
        return {room_id: found.whole.as_json() for room_id, found in counts.items()}
