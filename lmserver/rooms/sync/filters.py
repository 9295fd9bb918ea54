"""Filters as clients write them (CS API §Filtering), parsed strictly once and asked often.

A wrong type is told to the client; unknown keys are left alone, because clients send keys of
other specification versions. Limits are clamped, never refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmserver.rooms.client_format import ClientEvent, Shown

DEFAULT_TIMELINE = 10
MAX_TIMELINE = 100
MAX_LIST = 1_000
MAX_WILDCARDS = 50
MAX_DEPTH = 20

_PARTS = re.compile(r"(?:\\.|[^.\\])+", re.DOTALL)
_ESCAPED = re.compile(r"\\([.\\])")


class BadFilter(ValueError):
    """The filter is not shaped as specified: 400 M_BAD_JSON."""


@dataclass(frozen=True, slots=True)
class TypePatterns:
    """Event types, some with `*` for any sequence of characters, split at their stars."""

    exact: frozenset[str]
    wild: tuple[tuple[str, ...], ...]

    def match(self, type_: str) -> bool:
        return type_ in self.exact or any(_matches(parts, type_) for parts in self.wild)


def _matches(parts: tuple[str, ...], text: str) -> bool:
    """The first part at the start, the last at the end, the others in between, leftmost first."""
    first, *middle, last = parts
    if not text.startswith(first) or len(text) < len(first) + len(last) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


@dataclass(frozen=True, slots=True)
class EventFilter:
    """EventFilter and RoomEventFilter of the specification, without what nobody sends.

    None stands for "not given"; an empty `types` lets nothing through.
    """

    limit: int | None = None
    types: TypePatterns | None = None
    not_types: TypePatterns | None = None
    senders: frozenset[str] | None = None
    not_senders: frozenset[str] = frozenset()
    rooms: frozenset[str] | None = None
    not_rooms: frozenset[str] = frozenset()
    contains_url: bool | None = None
    lazy_load_members: bool = False
    include_redundant_members: bool = False
    unread_thread_notifications: bool = False

    def type_passes(self, type_: str) -> bool:
        if self.not_types is not None and self.not_types.match(type_):
            return False
        return self.types is None or self.types.match(type_)

    def sender_passes(self, sender: str) -> bool:
        return sender not in self.not_senders and (self.senders is None or sender in self.senders)

    def room_passes(self, room_id: str) -> bool:
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)

    def passes(self, event: Shown) -> bool:
        """Whether a room's event is wanted."""
        if not self.type_passes(event.type) or not self.sender_passes(event.sender):
            return False
        return self.contains_url is None or isinstance(event.content.get("url"), str) == self.contains_url

    def chosen(self, events: list[Shown]) -> list[Shown]:
        """Those that are wanted."""
        return events if self.lets_all_pass else [event for event in events if self.passes(event)]

    @property
    def lets_all_pass(self) -> bool:
        return (
            self.types is None and self.not_types is None and self.senders is None
            and not self.not_senders and self.contains_url is None
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SyncFilter:
    """The filter of one /sync request."""

    timeline: EventFilter = field(default_factory=EventFilter)
    state: EventFilter = field(default_factory=EventFilter)
    ephemeral: EventFilter = field(default_factory=EventFilter)
    room_account_data: EventFilter = field(default_factory=EventFilter)
    account_data: EventFilter = field(default_factory=EventFilter)
    presence: EventFilter = field(default_factory=EventFilter)
    rooms: frozenset[str] | None = None
    not_rooms: frozenset[str] = frozenset()
    include_leave: bool = False
    event_fields: tuple[tuple[str, ...], ...] | None = None
    federation_format: bool = False

    def room_passes(self, room_id: str) -> bool:
        return room_id not in self.not_rooms and (self.rooms is None or room_id in self.rooms)

    @property
    def timeline_limit(self) -> int:
        limit = self.timeline.limit
        return DEFAULT_TIMELINE if limit is None else max(1, min(limit, MAX_TIMELINE))

    @property
    def lazy(self) -> bool:
        return self.state.lazy_load_members or self.timeline.lazy_load_members

    @property
    def redundant_members(self) -> bool:
        """Whether members are told again whom the client has been told of."""
        return self.state.include_redundant_members or self.timeline.include_redundant_members

    def whole_timeline(self, room_id: str) -> bool:
        """Whether a room's timeline has every event."""
        return self.timeline.lets_all_pass and self.timeline.room_passes(room_id)

    @property
    def shows_whole_events(self) -> bool:
        """Whether events go out in the one form that all clients share."""
        return self.event_fields is None and not self.federation_format

    def form(self, event: Shown, client_event: ClientEvent) -> ClientEvent:
        """An event in the form the client wants it in."""
        if self.federation_format:
            client_event = {**event.fields, "event_id": event.event_id}
        if self.event_fields is None:
            return client_event
        picked: ClientEvent = {}
        for path in self.event_fields:
            _pick(client_event, path, picked)
        return picked


def _pick(source: Mapping[str, Any], path: tuple[str, ...], into: dict[str, Any]) -> None:
    """Copy what stands at a path, if anything does."""
    for key in path[:-1]:
        inner = source.get(key)
        if not isinstance(inner, dict):
            return
        source = inner
    if path[-1] not in source:
        return
    for key in path[:-1]:
        into = into.setdefault(key, {})
        if not isinstance(into, dict):
            return
    into[path[-1]] = source[path[-1]]


def parse_sync_filter(value: object) -> SyncFilter:
    """A whole filter; raises BadFilter."""
    whole = _object(value, "filter")
    room = _object(whole.get("room", {}), "room")
    return SyncFilter(
        timeline=parse_event_filter(room.get("timeline", {})),
        state=parse_event_filter(room.get("state", {})),
        ephemeral=parse_event_filter(room.get("ephemeral", {})),
        room_account_data=parse_event_filter(room.get("account_data", {})),
        account_data=parse_event_filter(whole.get("account_data", {})),
        presence=parse_event_filter(whole.get("presence", {})),
        rooms=_names(room, "rooms"),
        not_rooms=_names(room, "not_rooms") or frozenset(),
        include_leave=_flag(room, "include_leave") or False,
        event_fields=_paths(_names(whole, "event_fields")),
        federation_format=_format(whole.get("event_format", "client")),
    )


def parse_event_filter(value: object) -> EventFilter:
    """One event filter; raises BadFilter."""
    fields = _object(value, "filter")
    limit = fields.get("limit")
    if limit is not None and type(limit) is not int:
        raise BadFilter("limit is not an integer")
    return EventFilter(
        limit=limit,
        types=_patterns(_names(fields, "types")),
        not_types=_patterns(_names(fields, "not_types")),
        senders=_names(fields, "senders"),
        not_senders=_names(fields, "not_senders") or frozenset(),
        rooms=_names(fields, "rooms"),
        not_rooms=_names(fields, "not_rooms") or frozenset(),
        contains_url=_flag(fields, "contains_url"),
        lazy_load_members=_flag(fields, "lazy_load_members") or False,
        include_redundant_members=_flag(fields, "include_redundant_members") or False,
        unread_thread_notifications=_flag(fields, "unread_thread_notifications") or False,
    )


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadFilter(f"{name} is not an object")
    return value


def _names(fields: Mapping[str, Any], key: str) -> frozenset[str] | None:
    value = fields.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_LIST or not all(isinstance(v, str) for v in value):
        raise BadFilter(f"{key} is not a list of at most {MAX_LIST} strings")
    return frozenset(value)


def _flag(fields: Mapping[str, Any], key: str) -> bool | None:
    value = fields.get(key)
    if value is not None and not isinstance(value, bool):
        raise BadFilter(f"{key} is not a boolean")
    return value


def _format(value: object) -> bool:
    if value not in ("client", "federation"):
        raise BadFilter("event_format is neither client nor federation")
    return value == "federation"


def _paths(fields: frozenset[str] | None) -> tuple[tuple[str, ...], ...] | None:
    """Dot-separated paths; a backslash before a dot or a backslash takes it literally. Shorter ones
    first, so that what is inside of them is there already."""
    if fields is None:
        return None
    paths = [tuple(_unescape(part) for part in _PARTS.findall(field)) for field in fields]
    return tuple(sorted((path for path in paths if 0 < len(path) <= MAX_DEPTH), key=len))


def _unescape(part: str) -> str:
    return _ESCAPED.sub(r"\1", part)


def _patterns(types: frozenset[str] | None) -> TypePatterns | None:
    if types is None:
        return None
    wild = [t for t in types if "*" in t]
    if len(wild) > MAX_WILDCARDS:
        raise BadFilter(f"more than {MAX_WILDCARDS} types have wildcards")
    return TypePatterns(types.difference(wild), tuple(tuple(t.split("*")) for t in sorted(wild)))
