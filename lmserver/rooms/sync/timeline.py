"""Rooms' parts of a /sync answer: timeline, the state before it, summary and counts.

State is linear, so what a client misses before its timeline is exactly the state events between
its last position and the timeline's start; no states are compared. Every question is asked for all
rooms of an answer at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lmserver.rooms.access import Access, Reader
from lmserver.rooms.client_format import Extras, Shown, client_event, told
from lmserver.rooms.reading import Reading
from lmserver.rooms.sync.filters import SyncFilter
from lmserver.rooms.sync.lazy import Members
from lmserver.rooms.sync.tokens import RoomToken
from lmserver.storage import room_batches
from lmserver.storage.database import Executor
from lmserver.storage.room_batches import People, Point, Stretch
from lmserver.storage.room_log import StoredEvent

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

    @property
    def senders(self) -> set[str]:
        return {event.sender for event in self.events}


@dataclass(frozen=True, slots=True)
class RoomPlan:
    """What is told of one room. `full_state` beside the window's events; `anew` when the client may
    have an older timeline that does not go on here; `summary` when counts or heroes changed."""

    access: Access
    window: Window
    full_state: bool = False
    anew: bool = False
    summary: bool = False

    @property
    def whole(self) -> bool:
        return self.full_state or self.window.after is None

    @property
    def lowest(self) -> int:
        return self.access.room.min_position if self.window.after is None else self.window.after + 1


@dataclass(frozen=True, slots=True)
class Form:
    """How the reader wants rooms told: the filter, `state_after` names the section that takes the
    place of `state` (MSC4222), `members` what lazy loading may leave out."""

    wanted: SyncFilter
    state_after: Sequence[str] = ()
    members: Members = field(default_factory=Members)


class RoomSections:
    """Builds the room parts of one reader's answers."""

    def __init__(self, db: Executor, reading: Reading) -> None:
        self._db = db
        self._reading = reading

    # -- joined and left rooms ------------------------------------------------------------------

    async def section(
        self, access: Access, reader: Reader, window: Window, wanted: SyncFilter, *, full_state: bool
    ) -> dict[str, Any]:
        """`timeline` and `state` of one room (CS API §GET /sync, Joined Room)."""
        plan = RoomPlan(access, window, full_state=full_state)
        return (await self.sections(reader, [plan], Form(wanted)))[access.room_id]

    async def sections(
        self, reader: Reader, plans: Sequence[RoomPlan], form: Form
    ) -> dict[str, dict[str, Any]]:
        """`timeline`, `state` and `summary` of rooms, by room ID."""
        people, timelines = await asyncio.gather(
            self._people([p for p in plans if p.summary]), self._timelines(plans, form.wanted)
        )
        states = await self._states(reader, plans, timelines, people, form)
        rooms: list[tuple[Access, Sequence[Shown]]] = []
        for plan in plans:
            room_id = plan.access.room_id
            rooms += [(plan.access, timelines[room_id].events), (plan.access, states[room_id])]
        rendered = await self._reading.render_rooms(reader, rooms, _form(form.wanted))
        found: dict[str, dict[str, Any]] = {}
        for index, plan in enumerate(plans):
            room_id = plan.access.room_id
            timeline, state = timelines[room_id], states[room_id]
            if form.wanted.lazy:
                _note_members(form.members, room_id, [*state, *timeline.events])
            events = rendered[2 * index]
            section: dict[str, Any] = {
                "timeline": {"events": events, "limited": timeline.limited, "prev_batch": timeline.prev_batch}
            }
            for name in form.state_after or ("state",):
                section[name] = {"events": rendered[2 * index + 1]}
            if plan.summary:
                section["summary"] = _summary(people.get(room_id, NOBODY), reader)
            found[room_id] = section
        return found

    # -- timelines ------------------------------------------------------------------------------

    async def _timelines(self, plans: Sequence[RoomPlan], wanted: SyncFilter) -> dict[str, Timeline]:
        """The newest events of all rooms are read together; rooms of which too few of them are shown to
        the reader are searched one by one."""
        stretches = {p.access.room_id: s for p in plans if (s := _last_visible(p, wanted)) is not None}
        limit = wanted.timeline_limit
        stored = await room_batches.newest(self._db, list(stretches.values()), limit + 1) if stretches else {}
        found: dict[str, Timeline] = {}
        for plan in plans:
            access, stretch = plan.access, stretches.get(plan.access.room_id)
            if stretch is None:
                found[access.room_id] = Timeline([], plan.anew, plan.window.upto + 1)
                continue
            rows = stored.get(access.room_id, [])
            events = wanted.timeline.chosen(access.heard(self._shown(access, rows)))
            if len(events) < limit < len(rows):
                found[access.room_id] = await self._search(plan, stretch, wanted)
            else:
                found[access.room_id] = _timeline(
                    plan, stretch, stretch.last, events[:limit], len(rows) > limit
                )
        return found

    async def _search(self, plan: RoomPlan, stretch: Stretch, wanted: SyncFilter) -> Timeline:
        page = await self._reading.backwards(
            plan.access, stretch.last, wanted.timeline_limit, wanted.timeline.passes, stretch.first - 1
        )
        end = stretch.last
        if not page.events and page.end is not None and wanted.timeline.lets_all_pass:
            end = page.end  # nothing of all that was read may be shown: the timeline begins before it
        return _timeline(plan, stretch, end, page.events, page.end is not None)

    # -- state ----------------------------------------------------------------------------------

    async def _states(
        self,
        reader: Reader,
        plans: Sequence[RoomPlan],
        timelines: Mapping[str, Timeline],
        people: Mapping[str, People],
        form: Form,
    ) -> dict[str, list[Shown]]:
        """The state at each timeline's start, whole or as the change since the client's last; with
        `state_after` at its end. With lazy loading only the members that are needed."""
        wanted = form.wanted
        plans = [plan for plan in plans if wanted.state.room_passes(plan.access.room_id)]
        # A timeline from which the filter took something does not tell all state that changed in it.
        to_end = {
            p.access.room_id for p in plans if form.state_after or not wanted.whole_timeline(p.access.room_id)
        }
        ends = {
            room_id: p.window.upto + 1 if room_id in to_end else timelines[room_id].start
            for p in plans
            for room_id in (p.access.room_id,)
        }
        stored = await self._whole_states([p for p in plans if p.whole], ends, lazy=wanted.lazy)
        gaps = [
            Stretch(room_id, p.lowest, ends[room_id] - 1)
            for p in plans
            for room_id in (p.access.room_id,)
            if not p.whole and (room_id in to_end or timelines[room_id].limited)
        ]
        if gaps:
            stored |= await room_batches.state_changes(self._db, gaps)
        found = {
            p.access.room_id: _last_of_each(
                await self._reading.shown_many(stored.get(p.access.room_id, ()), p.access)
            )
            for p in plans
        }
        if not form.state_after:
            for room_id in to_end:
                found[room_id] = _not_in(timelines[room_id], found[room_id])
        if wanted.lazy:
            await self._lazily(reader, plans, timelines, people, ends, form, found)
        result: dict[str, list[Shown]] = {room_id: [] for room_id in timelines}
        for room_id, events in found.items():
            result[room_id] = wanted.state.chosen(events)
        return result

    async def _whole_states(
        self, plans: Sequence[RoomPlan], ends: Mapping[str, int], *, lazy: bool
    ) -> dict[str, list[StoredEvent]]:
        points = _points((p.access, ends[p.access.room_id]) for p in plans)
        return await room_batches.states(self._db, points, members=not lazy) if points else {}

    async def _lazily(
        self,
        reader: Reader,
        plans: Sequence[RoomPlan],
        timelines: Mapping[str, Timeline],
        people: Mapping[str, People],
        ends: Mapping[str, int],
        form: Form,
        found: dict[str, list[Shown]],
    ) -> None:
        """Members of the timeline's senders and those the room is named after, but whom the client
        knows; the reader's own in a room that is new to the client. Of changes in a gap also those
        of members it knows."""
        known = form.members.known
        missing: list[tuple[Access, int, str]] = []
        for plan in plans:
            room_id = plan.access.room_id
            needed = timelines[room_id].senders
            if room_id in people:
                needed |= set(people[room_id].first)
            if plan.whole:
                needed.add(reader.user_id)
            changed = {e.state_key for e in found[room_id] if e.type == "m.room.member"}
            found[room_id] = [
                e
                for e in found[room_id]
                if e.type != "m.room.member"
                or e.state_key in needed
                or e.state_key == reader.user_id
                or (room_id, e.state_key) in known
            ]
            told_again = plan.whole or form.wanted.redundant_members
            missing += [
                (plan.access, ends[room_id], user_id)
                for user_id in sorted(needed - changed)
                if told_again or (room_id, user_id) not in known
            ]
        for room_id, members in (await self._members(missing)).items():
            found[room_id] += members

    async def _members(self, wanted: Sequence[tuple[Access, int, str]]) -> dict[str, list[Shown]]:
        """Member events at points; the newest that may be seen of those who have none there, because
        history from before our join is not all here."""
        if not wanted:
            return {}
        by_room = {access.room_id: access for access, _, _ in wanted}
        found = await self._members_at([(access, access.state_at(at), user) for access, at, user in wanted])
        later = [
            (access, access.state_position, user)
            for access, _, user in wanted
            if access.room.min_position > 0
            and user not in {row.state_key for row in found.get(access.room_id, ())}
        ]
        for room_id, events in (await self._members_at(later)).items():
            found.setdefault(room_id, []).extend(events)
        return {room_id: found[room_id] for room_id in by_room if room_id in found}

    async def _members_at(self, wanted: Sequence[tuple[Access, int | None, str]]) -> dict[str, list[Shown]]:
        rows = [(access, at, user) for access, at, user in wanted if at is not None]
        if not rows:
            return {}
        by_room = {access.room_id: access for access, _, _ in rows}
        stored = await room_batches.member_events(
            self._db, [Point(access.room_id, at) for access, at, _ in rows], [user for _, _, user in rows]
        )
        return {room_id: self._shown(by_room[room_id], events) for room_id, events in stored.items()}

    def _shown(self, access: Access, stored: Iterable[StoredEvent]) -> list[Shown]:
        return self._reading.shown_all(stored, access)

    # -- summary --------------------------------------------------------------------------------

    async def _people(self, plans: Sequence[RoomPlan]) -> dict[str, People]:
        points = _points((p.access, p.window.upto + 1) for p in plans)
        return await room_batches.people(self._db, points, MAX_HEROES + 1) if points else {}

    async def summary(self, access: Access, reader: Reader, position: int) -> dict[str, Any]:
        """How many are in the room and whom to name it after (CS API §GET /sync, RoomSummary)."""
        found = await room_batches.people(self._db, [Point(access.room_id, position)], MAX_HEROES + 1)
        return _summary(found.get(access.room_id, NOBODY), reader)

    # -- rooms the user is not in ---------------------------------------------------------------

    async def left(
        self, access: Access, reader: Reader, window: Window, own_event: Shown, form: Form
    ) -> dict[str, Any]:
        """A room the user left, was removed from or never got into: up to that event only."""
        position = 0 if own_event.position is None else own_event.position
        if position not in access.visible:
            # Never joined: the member event is all there is to see, and it concerns the reader.
            own = [(access, [own_event])]
            [events] = await self._reading.render_rooms(reader, own, _form(form.wanted))
            prev_batch = str(RoomToken(position - 1))
            return {
                "timeline": {"events": events, "limited": False, "prev_batch": prev_batch},
                **{name: {"events": []} for name in form.state_after or ("state",)},
            }
        plan = RoomPlan(access, Window(window.after, min(window.upto, position)))
        return (await self.sections(reader, [plan], form))[access.room_id]


NOBODY: Final = People(0, 0, ())


def _last_visible(plan: RoomPlan, wanted: SyncFilter) -> Stretch | None:
    """The last stretch of a window the reader may see: a timeline has no holes, because behind hidden
    events there may be state the client must get."""
    if not wanted.timeline.room_passes(plan.access.room_id):
        return None
    stretches = plan.access.visible.within(plan.lowest, plan.window.upto)
    return Stretch(plan.access.room_id, *stretches[-1]) if stretches else None


def _timeline(
    plan: RoomPlan, stretch: Stretch, last: int, newest_first: list[Shown], cut_off: bool
) -> Timeline:
    events = newest_first[::-1]
    hidden_before = stretch.first > plan.lowest and (
        plan.window.after is not None or bool(plan.access.visible.within(plan.lowest, stretch.first - 1))
    )
    start = events[0].position if events else None
    return Timeline(events, cut_off or hidden_before or plan.anew, last + 1 if start is None else start)


def _points(wanted: Iterable[tuple[Access, int]]) -> list[Point]:
    """The states before positions, as far as the reader may see them."""
    found = [(access.room_id, access.state_at(position)) for access, position in wanted]
    return [Point(room_id, at) for room_id, at in found if at is not None]


def _last_of_each(events: Sequence[Shown]) -> list[Shown]:
    return list({(e.type, e.state_key): e for e in events}.values())


def _not_in(timeline: Timeline, state: Sequence[Shown]) -> list[Shown]:
    """State the timeline does not set itself."""
    told = {(e.type, e.state_key) for e in timeline.events if e.state_key is not None}
    return [e for e in state if (e.type, e.state_key) not in told]


def _form(wanted: SyncFilter) -> Callable[[Sequence[Shown], Extras], list[Any]]:
    """The form a client wants events in."""
    if wanted.shows_whole_events:
        return told

    def picked(events: Sequence[Shown], extras: Extras) -> list[Any]:
        return [wanted.form(event, client_event(event, None, extras)) for event in events]

    return picked


def _note_members(members: Members, room_id: str, events: Iterable[Shown]) -> None:
    for event in events:
        if event.type == "m.room.member" and event.state_key is not None:
            members.told[room_id, event.state_key] = event.event_id


def _summary(people: People, reader: Reader) -> dict[str, Any]:
    return {
        "m.heroes": [user for user in people.first if user != reader.user_id][:MAX_HEROES],
        "m.joined_member_count": people.joined,
        "m.invited_member_count": people.invited,
    }
