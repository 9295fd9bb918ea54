"""One room while its part of an answer is put together: what is asked for, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from lmserver.rooms.access import Access
from lmserver.rooms.client_format import Shown
from lmserver.rooms.sliding.connection import Sent
from lmserver.rooms.sliding.request import LAZY, MEMBER, Pattern, RoomConfig
from lmserver.rooms.sliding.room_list import UserRoom
from lmserver.rooms.sync.tokens import RoomToken
from lmserver.storage.room_batches import Stretch
from lmserver.storage.room_log import StoredEvent
from lmserver.storage.sliding_rooms import LOWEST, StateWant

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


@dataclass(slots=True)
class Frame:
    """One room while it is put together. `after` is the client's last position, None for none; `upto`
    and `at` end what the user may be told of events and state. `whole` is false where nothing but the
    user's own member event may be told; `members` are those the client has lazily. `seen_all` says that
    every event since `after` was read for the timeline: then `has_state` and `bumped_at` (ms) tell of all."""

    plan: RoomPlan
    access: Access
    after: int | None
    upto: int
    at: int | None
    stretch: Stretch | None = None
    whole: bool = True
    timeline: list[Shown] = field(default_factory=list)
    num_live: int = 0
    limited: bool = False
    state: dict[str, Shown] = field(default_factory=dict)
    entries: dict[tuple[str, str], tuple[int, Shown]] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    members_changed: bool = False
    seen_all: bool = False
    has_state: bool = False
    bumped_at: int | None = None

    @property
    def quiet(self) -> bool:
        """Whether the timeline shows that no state changed, and none is wanted that was not before."""
        return self.seen_all and not self.has_state and not self.plan.new_patterns

    @property
    def lazy(self) -> bool:
        return LAZY in self.plan.config.required

    def is_new(self, position: int) -> bool:
        return self.after is None or position > self.after

    def place(self) -> None:
        """Where the timeline may come from: a piece of the list without holes, because behind hidden events
        there may be state the client must get."""
        if not self.whole:
            return
        old = self.after is None or self.plan.expanded
        lowest = self.access.room.min_position if old else (self.after or 0) + 1
        stretches = self.access.visible.within(lowest, self.upto)
        if not stretches:
            return
        first, last = stretches[-1]
        self.stretch = Stretch(self.plan.room_id, first, last)
        self.limited = len(stretches) > 1 or (not old and first > lowest)
        self.seen_all = not old and not self.limited

    def fill(self, rows: Sequence[StoredEvent], limit: int, since: int | None, *, more: bool) -> None:
        """The timeline out of a stretch's newest rows, newest first; `more` says that it has older ones."""
        acceptable = [(row, self.access.shown(row)) for row in rows if row.soft_failed is None]
        events = [(row, event) for row, event in acceptable if not self.access.ignores(event)]
        if self._brings_nothing(len(events)):
            self.limited = False
            return
        self.limited |= more or len(events) > limit
        self.seen_all &= not more
        self.has_state = any(event.state_key is not None for _, event in acceptable)
        self.bumped_at = max(
            (row.received_ts for row, event in events if event.type in BUMPING), default=None
        )
        self.num_live = 0 if since is None else sum(row.stream_xid >= since for row, _ in events[:limit])
        self.timeline = [event for _, event in reversed(events[:limit])]

    def _brings_nothing(self, found: int) -> bool:
        """Whether a longer timeline is what the client had already."""
        sent = self.plan.sent
        return (
            sent is not None and self.plan.expanded and not self.plan.has_events
            and found <= sent.timeline_limit
        )  # fmt: skip

    def wants(self) -> list[StateWant]:
        """The state to read: what was asked for as far as it is news, and what the room is called."""
        if self.at is None or self.quiet:
            return []
        room_id, at = self.plan.room_id, self.at
        after = LOWEST if self.after is None else self.after
        new = self.plan.new_patterns
        wants = [
            StateWant(room_id, at, p.type, p.state_key, LOWEST if p in new else after)
            for p in self.plan.config.required
            if p != LAZY
        ]
        return [
            *wants,
            StateWant(room_id, at, "m.room.name", ""),
            StateWant(room_id, at, "m.room.avatar", ""),
        ]

    def note(self, position: int, event: Shown) -> None:
        """Keep an entry: for what the room is called, and for the client where it asked for it."""
        key = event.state_key or ""
        if key == "" and event.type in ("m.room.name", "m.room.avatar"):
            self.entries[event.type, key] = (position, event)
        new = self.plan.new_patterns
        for pattern in self.plan.config.required:
            if (pattern in new or self.is_new(position)) and _matches(pattern, event.type, key):
                self.state[event.event_id] = event
                return

    def lazy_wants(self, at: int) -> list[StateWant]:
        """Members of the timeline that the client lacks, and those it has where they changed."""
        sent = self.plan.sent
        known = () if sent is None or LAZY not in sent.required else sent.members
        self.members = known
        needed = {event.sender for event in self.timeline}
        needed |= {event.state_key or "" for event in self.timeline if event.type == MEMBER}
        room_id, after = self.plan.room_id, LOWEST if self.after is None else self.after
        wants = [StateWant(room_id, at, MEMBER, user) for user in sorted(needed.difference(known))]
        if self.members_changed:
            wants += [StateWant(room_id, at, MEMBER, user, after) for user in known]
        return wants

    @property
    def has_news(self) -> bool:
        """Whether there is anything to tell, now that all is read."""
        plan = self.plan
        return bool(
            plan.has_events or plan.dm_changed or plan.read or self.state or (plan.expanded and self.timeline)
        )

    def events_part(self, events: Sequence[orjson.Fragment]) -> dict[str, Any]:
        """Timeline and state out of their rendered events, which come one after the other."""
        timeline, state = list(events[: len(self.timeline)]), list(events[len(self.timeline) :])
        part: dict[str, Any] = {"required_state": state, "timeline": timeline}
        if timeline or self.after is None:
            start = self.timeline[0].position if timeline else self.upto + 1
            part["prev_batch"] = str(RoomToken((start or 0) - 1))
            part["limited"] = self.limited
            part["num_live"] = self.num_live
        if self.plan.expanded and timeline:
            part["unstable_expanded_timeline"] = True
        return part

    def _text(self, type_: str, field_: str) -> str | None:
        entry = self.entries.get((type_, ""))
        value = None if entry is None else entry[1].content.get(field_)
        return value if isinstance(value, str) and value else None

    @property
    def name(self) -> str | None:
        """What m.room.name says, if anything."""
        return self._text("m.room.name", "name")

    @property
    def name_changed(self) -> bool:
        entry = self.entries.get(("m.room.name", ""))
        return entry is not None and self.is_new(entry[0])

    def named(self) -> dict[str, Any]:
        """Name and avatar: as they are the first time, then when they change, null for gone."""
        part: dict[str, Any] = {}
        for key, type_, field_ in (("name", "m.room.name", "name"), ("avatar", "m.room.avatar", "url")):
            entry = self.entries.get((type_, ""))
            value = self._text(type_, field_)
            if entry is not None and self.is_new(entry[0]) and (value is not None or self.after is not None):
                part[key] = value
        return part


def left_room(plan: RoomPlan, access: Access, after: int | None, own_event: Shown | None) -> Frame:
    """A room the user is out of: up to that event, and nothing but it where it ended no stay."""
    at = plan.room.from_position
    ended_stay = plan.sent is None or plan.sent.membership == "join"
    if own_event is not None and own_event.position == at and at in access.visible and ended_stay:
        frame = Frame(plan, access, after, at, access.state_position)
    else:
        frame = Frame(plan, access, at, at, None, whole=False)
        frame.timeline = [] if own_event is None else [own_event]
    if own_event is not None:
        frame.state[own_event.event_id] = own_event  # clients look here for their own membership
    return frame


def _matches(pattern: Pattern, type_: str, key: str) -> bool:
    if pattern.type is None and pattern.state_key is None and type_ == MEMBER:
        return False
    return pattern.type in (None, type_) and pattern.state_key in (None, key) and pattern.wants(type_, key)


def hero(user_id: str, event: Shown | None) -> dict[str, Any]:
    """One of those a room is named after (MSC4186 §StrippedHero)."""
    described = {"user_id": user_id}
    for key in ("displayname", "avatar_url"):
        value = None if event is None else event.content.get(key)
        if isinstance(value, str):
            described[key] = value
    return described
