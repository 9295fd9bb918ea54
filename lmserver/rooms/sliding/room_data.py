"""What an answer says of rooms: everything the first time, then what changed (MSC4186 §Room results).

All rooms of an answer are read together, a few round trips for each question and none for each room.
Of a joined room the client gets the current state and the newest events it may see; of a room left
what was there until then; of an invite what the invite said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lmserver.rooms.client_format import ClientEvent, Shown, shown
from lmserver.rooms.reading import Access, Reader, Reading
from lmserver.rooms.sliding.connection import Sent
from lmserver.rooms.sliding.pending import PendingRooms
from lmserver.rooms.sliding.request import LAZY, MEMBER, Pattern, RoomConfig
from lmserver.rooms.sliding.room_list import UserRoom
from lmserver.rooms.sync.tokens import RoomToken
from lmserver.rooms.unread import Unread
from lmserver.storage import room_batches, sliding_rooms
from lmserver.storage.database import Executor
from lmserver.storage.room_batches import Point, Stretch
from lmserver.storage.room_log import StoredEvent
from lmserver.storage.sliding_rooms import LOWEST, StateWant

MAX_HEROES: Final = 5
MAX_MEMBERS: Final = 100
"""Lazily sent members that are remembered for a room; of others the event is sent again."""
SPARE: Final = 20
"""Further events that are read when some may be of users the reader ignores."""
MAX_BUMP_SCAN: Final = 500
BUMPING: Final = (
    "m.room.create", "m.room.message", "m.room.encrypted", "m.sticker", "m.call.invite", "m.poll.start",
    "org.matrix.msc3381.poll.start", "m.beacon_info", "org.matrix.msc3672.beacon_info",
)  # fmt: skip
"""Types that move a room up in a client's list (MSC4186 §Common fields, bump_stamp)."""


@dataclass(frozen=True, slots=True)
class RoomPlan:
    """A room that may be in the answer. `sent` is what the client has of it, None for nothing, `since`
    the stream position that reaches to; `read` says that the user's own read receipt moved."""

    room: UserRoom
    config: RoomConfig
    lists: Sequence[str]
    is_dm: bool
    sent: Sent | None
    since: int
    read: bool = False

    @property
    def room_id(self) -> str:
        return self.room.room_id

    @property
    def initial(self) -> bool:
        return self.sent is None

    @property
    def has_events(self) -> bool:
        return self.sent is None or self.room.changed >= self.since

    @property
    def dm_changed(self) -> bool:
        return self.sent is not None and self.sent.is_dm != self.is_dm

    @property
    def expanded(self) -> bool:
        """Whether older events are wanted than were sent."""
        return self.sent is not None and self.config.timeline_limit > self.sent.timeline_limit

    @property
    def new_patterns(self) -> frozenset[Pattern]:
        """State that is wanted and was not before."""
        had = frozenset() if self.sent is None else self.sent.required
        return self.config.required - had - {LAZY}

    @property
    def may_have_news(self) -> bool:
        return self.has_events or self.dm_changed or self.expanded or self.read or bool(self.new_patterns)


@dataclass(frozen=True, slots=True)
class RoomResult:
    """A room's part of the answer, what the client has after it, and the IDs of the events in its
    timeline."""

    body: dict[str, Any]
    members: tuple[str, ...] = ()
    limited: bool = False
    event_ids: tuple[str, ...] = ()


@dataclass(slots=True)
class _Frame:
    """One room while it is put together. `after` is the client's last position, None for none; `upto`
    and `at` end what the user may be told of events and state."""

    plan: RoomPlan
    access: Access
    after: int | None
    upto: int
    at: int | None
    own_event: Shown | None = None
    stretch: Stretch | None = None
    whole: bool = True
    timeline: list[Shown] = field(default_factory=list)
    num_live: int = 0
    limited: bool = False
    state: dict[str, Shown] = field(default_factory=dict)
    entries: dict[tuple[str, str], tuple[int, Shown]] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    members_changed: bool = False

    @property
    def lazy(self) -> bool:
        return LAZY in self.plan.config.required

    def is_new(self, position: int) -> bool:
        return self.after is None or position > self.after


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

    async def _frames(self, reader: Reader, plans: Sequence[RoomPlan]) -> list[_Frame]:
        afters = await self._afters(plans)
        plans = [p if afters[p.room_id] is not None else replace(p, sent=None) for p in plans]
        steady = {p.room_id for p in plans if self._is_steady(p)}
        others = [p.room_id for p in plans if p.room_id not in steady]
        accesses = await self._reading.accesses(reader.user_id, others) if others else {}
        if steady:
            accesses |= await self._reading.accesses_of_member(reader.user_id, sorted(steady))
        own_events = await self._own_events(plans, accesses)
        frames: list[_Frame] = []
        for plan in plans:
            access = accesses.get(plan.room_id)
            if access is None:
                continue
            after = afters[plan.room_id]
            if plan.room.left:
                frames.append(_left(plan, access, after, own_events.get(plan.room_id)))
            else:
                frames.append(_Frame(plan, access, after, plan.room.head, plan.room.head + 1))
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
        return {row.room_id: shown(row, accesses[row.room_id].version) for row in stored}

    # -- timelines ------------------------------------------------------------------------------

    async def _timelines(self, frames: Sequence[_Frame], since: int | None) -> None:
        by_limit: dict[int, list[_Frame]] = {}
        for frame in frames:
            _place(frame)
            if frame.stretch is not None:
                by_limit.setdefault(frame.plan.config.timeline_limit, []).append(frame)
        for limit, chosen in by_limit.items():
            stretches = [frame.stretch for frame in chosen if frame.stretch is not None]
            # One more tells whether there are more, the spare ones stand in for what is not shown.
            most = limit + 1 + (SPARE if any(frame.access.ignored for frame in chosen) else 0)
            newest = await room_batches.newest(self._db, stretches, most)
            for frame in chosen:
                rows = newest.get(frame.plan.room_id, [])
                _fill(frame, rows, limit, since, more=len(rows) == most)

    # -- state ----------------------------------------------------------------------------------

    async def _states(self, frames: Sequence[_Frame]) -> None:
        """The state that is wanted, and what the summary is made of."""
        wants: list[StateWant] = []
        for frame in frames:
            wants += _wants(frame)
        found = await sliding_rooms.state_entries(self._db, wants)
        stretches = [
            Stretch(f.plan.room_id, f.after + 1, f.upto)
            for f in frames
            if f.after is not None and f.upto > f.after
        ]
        members = await sliding_rooms.with_member_changes(self._db, stretches)
        for frame in frames:
            frame.members_changed = frame.after is None or frame.plan.room_id in members
            for position, stored in found.get(frame.plan.room_id, {}).values():
                if stored.soft_failed is None:
                    _note(frame, position, shown(stored, frame.access.version))

    async def _lazy_members(self, frames: Sequence[_Frame]) -> None:
        """Member events of those who appear in the timeline, as far as the client lacks them, and of
        those it has where they changed (MSC4186 §Lazy loaded memberships)."""
        wants: list[StateWant] = []
        for frame in frames:
            if frame.lazy and frame.at is not None:
                wants += _lazy_wants(frame, frame.at)
        found = await sliding_rooms.state_entries(self._db, wants)
        for frame in frames:
            for _, stored in found.get(frame.plan.room_id, {}).values():
                event = shown(stored, frame.access.version)
                frame.state[event.event_id] = event
                frame.members = (*(m for m in frame.members if m != event.state_key), event.state_key or "")
            frame.members = frame.members[-MAX_MEMBERS:]

    # -- bodies ---------------------------------------------------------------------------------

    async def _bodies(self, reader: Reader, frames: Sequence[_Frame]) -> dict[str, RoomResult]:
        frames = [frame for frame in frames if _has_news(frame)]
        rendered = await self._reading.render_rooms(
            reader, [(f.access, [*f.timeline, *f.state.values()]) for f in frames]
        )
        summaries = await self._summaries(reader, frames)
        stamps = await self._stamps(frames)
        counts = await self._counts(reader, frames)
        found: dict[str, RoomResult] = {}
        for frame, events in zip(frames, rendered, strict=True):
            room_id = frame.plan.room_id
            body = self._common(frame.plan) | _events_part(frame, events) | _named(frame)
            body |= summaries.get(room_id, {}) | counts.get(room_id, {})
            if room_id in stamps:
                body["bump_stamp"] = min(stamps[room_id], self._clock())
            ids = tuple(event.event_id for event in frame.timeline)
            found[room_id] = RoomResult(body, frame.members, frame.limited, ids)
        return found

    async def _summaries(self, reader: Reader, frames: Sequence[_Frame]) -> dict[str, dict[str, Any]]:
        """Member counts where memberships changed, and heroes where there is no name besides."""
        chosen = [
            f for f in frames if f.plan.room.membership == "join" and (f.members_changed or _name_changed(f))
        ]
        people = await room_batches.people(
            self._db, [Point(f.plan.room_id, f.upto + 1) for f in chosen], MAX_HEROES + 1
        ) if chosen else {}  # fmt: skip
        nameless = {
            f.plan.room_id: [u for u in people[f.plan.room_id].first if u != reader.user_id][:MAX_HEROES]
            for f in chosen
            if _name(f) is None
        }
        events = await self._heroes(chosen, nameless)
        answers: dict[str, dict[str, Any]] = {}
        for frame in chosen:
            room_id = frame.plan.room_id
            counts = people[room_id]
            answers[room_id] = {"joined_count": counts.joined, "invited_count": counts.invited}
            if room_id in nameless:
                answers[room_id]["heroes"] = [
                    _hero(user, events.get((room_id, user))) for user in nameless[room_id]
                ]
        return answers

    async def _heroes(
        self, frames: Sequence[_Frame], users: Mapping[str, Sequence[str]]
    ) -> dict[tuple[str, str], Shown]:
        wants = [
            StateWant(f.plan.room_id, f.upto + 1, MEMBER, user)
            for f in frames
            for user in users.get(f.plan.room_id, ())
        ]
        found = await sliding_rooms.state_entries(self._db, wants)
        versions = {f.plan.room_id: f.access.version for f in frames}
        events = [
            (room_id, shown(stored, versions[room_id]))
            for room_id, entries in found.items()
            for _, stored in entries.values()
        ]
        return {(room_id, event.state_key or ""): event for room_id, event in events}

    async def _stamps(self, frames: Sequence[_Frame]) -> dict[str, int]:
        """When joined rooms last had activity a person would notice, where that is news."""
        joined = [f for f in frames if f.plan.room.membership == "join"]
        stretches: list[Stretch] = []
        for frame in joined:
            lowest = frame.access.room.min_position if frame.after is None else frame.after + 1
            visible = frame.access.visible.within(lowest, frame.upto)
            if visible:
                stretches.append(Stretch(frame.plan.room_id, visible[-1][0], frame.upto))
        newest = (
            await sliding_rooms.newest_of_types(self._db, stretches, BUMPING, MAX_BUMP_SCAN)
            if stretches
            else {}
        )
        return {f.plan.room_id: f.plan.room.member_ts for f in joined if f.after is None} | newest

    async def _counts(self, reader: Reader, frames: Sequence[_Frame]) -> dict[str, dict[str, Any]]:
        """Unread notifications, those in threads too: no extension tells of them apart."""
        joined = [f.plan.room_id for f in frames if f.plan.room.membership == "join"]
        counts = await self._unread.of(reader.user_id, joined) if joined else {}
        return {room_id: found.whole.as_json() for room_id, found in counts.items()}


# -- one room -----------------------------------------------------------------------------------


def _left(plan: RoomPlan, access: Access, after: int | None, own_event: Shown | None) -> _Frame:
    """A room the user is out of: up to that event, and nothing but it where it ended no stay."""
    at = plan.room.from_position
    ended_stay = plan.sent is None or plan.sent.membership == "join"
    if own_event is not None and own_event.position == at and at in access.visible and ended_stay:
        return _Frame(plan, access, after, at, access.state_position, own_event)
    frame = _Frame(plan, access, at, at, None, own_event, whole=False)
    if own_event is not None:
        frame.timeline = [own_event]
    return frame


def _place(frame: _Frame) -> None:
    """Where the timeline may come from: a piece of the list without holes, because behind hidden events
    there may be state the client must get."""
    if not frame.whole:
        return
    old = frame.after is None or frame.plan.expanded
    lowest = frame.access.room.min_position if old else (frame.after or 0) + 1
    stretches = frame.access.visible.within(lowest, frame.upto)
    if not stretches:
        return
    first, last = stretches[-1]
    frame.stretch = Stretch(frame.plan.room_id, first, last)
    frame.limited = len(stretches) > 1 or (not old and first > lowest)


def _fill(frame: _Frame, rows: Sequence[StoredEvent], limit: int, since: int | None, *, more: bool) -> None:
    """The timeline out of a stretch's newest rows, newest first; `more` says that it has older ones."""
    acceptable = [(row, shown(row, frame.access.version)) for row in rows if row.soft_failed is None]
    events = [(row, event) for row, event in acceptable if not frame.access.ignores(event)]
    if _brings_nothing(frame, len(events)):
        frame.limited = False
        return
    frame.limited |= more or len(events) > limit
    frame.num_live = 0 if since is None else sum(row.stream_xid >= since for row, _ in events[:limit])
    frame.timeline = [event for _, event in reversed(events[:limit])]


def _brings_nothing(frame: _Frame, found: int) -> bool:
    """Whether a longer timeline is what the client had already."""
    sent = frame.plan.sent
    return (
        sent is not None and frame.plan.expanded and not frame.plan.has_events
        and found <= sent.timeline_limit
    )  # fmt: skip


def _wants(frame: _Frame) -> list[StateWant]:
    if frame.at is None:
        return []
    room_id, at = frame.plan.room_id, frame.at
    after = LOWEST if frame.after is None else frame.after
    new = frame.plan.new_patterns
    wants = [
        StateWant(room_id, at, p.type, p.state_key, LOWEST if p in new else after)
        for p in frame.plan.config.required
        if p != LAZY
    ]
    return [*wants, StateWant(room_id, at, "m.room.name", ""), StateWant(room_id, at, "m.room.avatar", "")]


def _note(frame: _Frame, position: int, event: Shown) -> None:
    """Keep an entry: for what the room is called, and for the client where it asked for it."""
    key = event.state_key or ""
    if key == "" and event.type in ("m.room.name", "m.room.avatar"):
        frame.entries[event.type, key] = (position, event)
    new = frame.plan.new_patterns
    for pattern in frame.plan.config.required:
        if (pattern in new or frame.is_new(position)) and _matches(pattern, event.type, key):
            frame.state[event.event_id] = event
            return


def _matches(pattern: Pattern, type_: str, key: str) -> bool:
    if pattern.type is None and pattern.state_key is None and type_ == MEMBER:
        return False
    return pattern.type in (None, type_) and pattern.state_key in (None, key) and pattern.wants(type_, key)


def _lazy_wants(frame: _Frame, at: int) -> list[StateWant]:
    sent = frame.plan.sent
    known = () if sent is None or LAZY not in sent.required else sent.members
    frame.members = known
    needed = {event.sender for event in frame.timeline}
    needed |= {event.state_key or "" for event in frame.timeline if event.type == MEMBER}
    room_id, after = frame.plan.room_id, LOWEST if frame.after is None else frame.after
    wants = [StateWant(room_id, at, MEMBER, user) for user in sorted(needed.difference(known))]
    if frame.members_changed:
        wants += [StateWant(room_id, at, MEMBER, user, after) for user in known]
    return wants


def _has_news(frame: _Frame) -> bool:
    plan = frame.plan
    return bool(
        plan.has_events or plan.dm_changed or plan.read or frame.state or (plan.expanded and frame.timeline)
    )


def _events_part(frame: _Frame, events: Sequence[ClientEvent]) -> dict[str, Any]:
    timeline, state = list(events[: len(frame.timeline)]), list(events[len(frame.timeline) :])
    if frame.own_event is not None and frame.own_event.event_id not in frame.state:
        # Clients look here for their own membership.
        state += [e for e in timeline if e["event_id"] == frame.own_event.event_id]
    part: dict[str, Any] = {"required_state": state, "timeline": timeline}
    if timeline or frame.after is None:
        start = frame.timeline[0].position if timeline else frame.upto + 1
        part["prev_batch"] = str(RoomToken((start or 0) - 1))
        part["limited"] = frame.limited
        part["num_live"] = frame.num_live
    if frame.plan.expanded and timeline:
        part["unstable_expanded_timeline"] = True
    return part


def _text(frame: _Frame, type_: str, field_: str) -> str | None:
    entry = frame.entries.get((type_, ""))
    value = None if entry is None else entry[1].content.get(field_)
    return value if isinstance(value, str) and value else None


def _name(frame: _Frame) -> str | None:
    return _text(frame, "m.room.name", "name")


def _name_changed(frame: _Frame) -> bool:
    entry = frame.entries.get(("m.room.name", ""))
    return entry is not None and frame.is_new(entry[0])


def _named(frame: _Frame) -> dict[str, Any]:
    """Name and avatar: as they are the first time, then when they change, null for gone."""
    part: dict[str, Any] = {}
    for key, type_, field_ in (("name", "m.room.name", "name"), ("avatar", "m.room.avatar", "url")):
        entry = frame.entries.get((type_, ""))
        value = _text(frame, type_, field_)
        if entry is not None and frame.is_new(entry[0]) and (value is not None or frame.after is not None):
            part[key] = value
    return part


def _hero(user_id: str, event: Shown | None) -> dict[str, Any]:
    hero = {"user_id": user_id}
    for key in ("displayname", "avatar_url"):
        value = None if event is None else event.content.get(key)
        if isinstance(value, str):
            hero[key] = value
    return hero
