"""What a client asks for, parsed strictly once (MSC4186 §Request Body).

Two forms are understood: the one under the unstable prefix, which clients send, and the one of the
proposal's last text. Wrong types, missing members and values out of bounds are told apart as the
errors of BadRequest; unknown members are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple

import orjson

from lmserver.protocol import ids
from lmserver.rooms.sync.feeds import MAX_MESSAGES

MAX_LISTS: Final = 100
MAX_SUBSCRIPTIONS: Final = 500
MAX_RANGES: Final = 20
MAX_INDEX: Final = 1_000_000
MAX_TIMELINE: Final = 100
MAX_PATTERNS: Final = 200
"""Elements of one required_state."""
MAX_REQUIRED_BYTES: Final = 64 * 1024
"""All different elements of required_state of one request, as JSON."""
MAX_NAMES: Final = 500
"""Spaces, tags, types, rooms or lists named in one place."""
MAX_TEXT: Final = 255
MEMBER: Final = "m.room.member"
EXTENSIONS: Final = ("to_device", "e2ee", "account_data", "receipts", "typing")


class BadRequest(ValueError):
    """400 with `errcode`: M_BAD_JSON for a wrong type, M_MISSING_PARAM, M_INVALID_PARAM for a value."""

    def __init__(self, errcode: str, error: str) -> None:
        super().__init__(error)
        self.errcode = errcode


class Pattern(NamedTuple):
    """State entries a client wants; None is any. Any type without a key leaves member events out: they
    are asked for by name, or lazily (LAZY). `but` are (type, key) it does not want."""

    type: str | None
    state_key: str | None
    but: tuple[tuple[str | None, str | None], ...] = ()

    def wants(self, type_: str, state_key: str | None) -> bool:
        """Whether an entry is wanted that has the pattern's own type and key."""
        return not any(t in (None, type_) and k in (None, state_key) for t, k in self.but)


LAZY: Final = Pattern(MEMBER, "$LAZY")
Required = frozenset[Pattern]


@dataclass(frozen=True, slots=True)
class RoomConfig:
    """What is wanted of a room; configs of one room are combined to a superset."""

    timeline_limit: int
    required: Required

    def combined(self, other: RoomConfig) -> RoomConfig:
        return RoomConfig(max(self.timeline_limit, other.timeline_limit), self.required | other.required)


@dataclass(frozen=True, slots=True)
class ListFilters:
    """Conditions a room has to meet, all of them; None is no condition."""

    is_dm: bool | None = None
    is_encrypted: bool | None = None
    is_invite: bool | None = None
    spaces: frozenset[str] | None = None
    room_types: frozenset[str | None] | None = None
    not_room_types: frozenset[str | None] | None = None
    tags: frozenset[str] | None = None
    not_tags: frozenset[str] | None = None
    name_like: str | None = None


@dataclass(frozen=True, slots=True)
class ListRequest:
    """A window into the rooms that pass `filters`; `ranges` are inclusive, None is all."""

    ranges: tuple[tuple[int, int], ...] | None
    filters: ListFilters
    config: RoomConfig


@dataclass(frozen=True, slots=True)
class ExtensionRequest:
    """`lists` and `rooms` limit it to rooms of these lists and subscriptions; None is all of them."""

    lists: frozenset[str] | None = None
    rooms: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class SlidingRequest:
    """One request. `digest` tells it from one that asks for something else; where the client stands
    (`pos`, `to_device_since`) is no part of that."""

    conn_id: str
    lists: Mapping[str, ListRequest] = field(default_factory=dict)
    subscriptions: Mapping[str, RoomConfig] = field(default_factory=dict)
    extensions: Mapping[str, ExtensionRequest] = field(default_factory=dict)
    to_device_since: str | None = None
    to_device_limit: int = MAX_MESSAGES
    digest: bytes = b""


def parse_request(body: Mapping[str, Any], user_id: str) -> SlidingRequest:
    """A whole body; raises BadRequest."""
    lists = _object(body, "lists")
    subscriptions = _object(body, "room_subscriptions")
    extensions = _object(body, "extensions")
    _at_most(lists, MAX_LISTS, "lists")
    _at_most(subscriptions, MAX_SUBSCRIPTIONS, "room_subscriptions")
    enabled = {
        name: _extension(fields, name)
        for name in EXTENSIONS
        if _flag(fields := _object(extensions, name), "enabled")
    }
    to_device = _object(extensions, "to_device")
    windows = {_short(key, "a list's name"): _list(value, user_id) for key, value in lists.items()}
    rooms = {_room(key): _config(_is_object(value, key), user_id) for key, value in subscriptions.items()}
    _check_size([*(window.config for window in windows.values()), *rooms.values()])
    return SlidingRequest(
        _text(body, "conn_id") or "",
        windows,
        rooms,
        enabled,
        _text(to_device, "since") or None,
        max(1, min(_integer(to_device, "limit", MAX_MESSAGES, MAX_INDEX), MAX_MESSAGES)),
        _digest(lists, subscriptions, extensions),
    )


def _check_size(configs: Iterable[RoomConfig]) -> None:
    """A connection remembers what was asked for."""
    patterns = {pattern for config in configs for pattern in config.required}
    if len(orjson.dumps([tuple(pattern) for pattern in patterns])) > MAX_REQUIRED_BYTES:
        raise BadRequest("M_INVALID_PARAM", "required_state asks for too much")


def _digest(lists: Any, subscriptions: Any, extensions: Mapping[str, Any]) -> bytes:
    settings = {
        name: {k: v for k, v in value.items() if k != "since"} if isinstance(value, dict) else value
        for name, value in extensions.items()
    }
    try:
        data = orjson.dumps([lists, subscriptions, settings], option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        raise BadRequest("M_BAD_JSON", "a number is too large, or a text is not Unicode") from None
    return sha256(data).digest()[:16]


def _list(value: Any, user_id: str) -> ListRequest:
    fields = _is_object(value, "a list")
    ranges: Any = fields.get("ranges")
    if ranges is None and fields.get("range") is not None:
        ranges = [fields["range"]]
    return ListRequest(
        None if ranges is None else _ranges(ranges),
        _filters(_object(fields, "filters")),
        _config(fields, user_id),
    )


def _ranges(value: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list):
        raise BadRequest("M_BAD_JSON", "ranges is not a list")
    _at_most(value, MAX_RANGES, "ranges")
    return tuple(_range(one) for one in value)


def _range(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or any(type(v) is not int for v in value):
        raise BadRequest("M_BAD_JSON", "a range is not a pair of integers")
    first, last = value
    if not 0 <= first <= last <= MAX_INDEX:
        raise BadRequest(
            "M_INVALID_PARAM", f"a range is not within 0 and {MAX_INDEX}, or ends before it begins"
        )
    return first, last


def _filters(fields: Mapping[str, Any]) -> ListFilters:
    invite = _flag(fields, "is_invite")
    return ListFilters(
        is_dm=_flag(fields, "is_dm"),
        is_encrypted=_flag(fields, "is_encrypted"),
        is_invite=_flag(fields, "is_invited") if invite is None else invite,
        spaces=_names(fields, "spaces"),
        room_types=_types(fields, "room_types"),
        not_room_types=_types(fields, "not_room_types"),
        tags=_names(fields, "tags"),
        not_tags=_names(fields, "not_tags"),
        name_like=_text(fields, "room_name_like"),
    )


# -- room configs -------------------------------------------------------------------------------


def _config(fields: Mapping[str, Any], user_id: str) -> RoomConfig:
    for name in ("timeline_limit", "required_state"):
        if fields.get(name) is None:
            raise BadRequest("M_MISSING_PARAM", f"{name} is missing")
    limit = _integer(fields, "timeline_limit", 0, MAX_INDEX)
    return RoomConfig(min(limit, MAX_TIMELINE), _required(fields["required_state"], user_id))


def _required(value: Any, user_id: str) -> Required:
    if isinstance(value, list):
        _at_most(value, MAX_PATTERNS, "required_state")
        return _closed({_pair(one, user_id) for one in value})
    if not isinstance(value, dict):
        raise BadRequest("M_BAD_JSON", "required_state is neither a list nor an object")
    but = tuple(sorted(_elements(value, "exclude"), key=repr))
    wanted = {Pattern(type_, key, but) for type_, key in _elements(value, "include")}
    return _closed(wanted | ({LAZY} if _flag(value, "lazy_members") else set()))


def _closed(patterns: set[Pattern]) -> Required:
    """Any state includes all members, unless they are loaded lazily."""
    if LAZY not in patterns:
        patterns |= {Pattern(MEMBER, None, p.but) for p in patterns if p.type is None and p.state_key is None}
    return frozenset(patterns)


def _pair(value: Any, user_id: str) -> Pattern:
    if not isinstance(value, list) or len(value) != 2 or any(not isinstance(v, str) for v in value):
        raise BadRequest("M_BAD_JSON", "an element of required_state is not a pair of strings")
    type_, key = (_short(v, "required_state") for v in value)
    if key == "$ME":
        key = user_id
    return Pattern(None if type_ == "*" else type_, None if key == "*" else key)


def _elements(fields: Mapping[str, Any], name: str) -> set[tuple[str | None, str | None]]:
    value = fields.get(name)
    if value is None:
        return set()
    if not isinstance(value, list):
        raise BadRequest("M_BAD_JSON", f"{name} is not a list")
    _at_most(value, MAX_PATTERNS, name)
    return {(_text(e, "type"), _text(e, "state_key")) for e in (_is_object(v, name) for v in value)}


# -- extensions ---------------------------------------------------------------------------------


def _extension(fields: Mapping[str, Any], name: str) -> ExtensionRequest:
    lists, rooms = _names(fields, "lists"), _names(fields, "rooms")
    return ExtensionRequest(
        None if lists is not None and "*" in lists else lists,
        None if rooms is not None and "*" in rooms else rooms,
    )


# -- JSON ---------------------------------------------------------------------------------------


def _is_object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest("M_BAD_JSON", f"{name[:MAX_TEXT]} is not an object")
    return value


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.get(name)
    return {} if value is None else _is_object(value, name)


def _at_most(value: Any, most: int, name: str) -> None:
    if len(value) > most:
        raise BadRequest("M_INVALID_PARAM", f"{name} has more than {most} elements")


def _flag(fields: Mapping[str, Any], name: str) -> bool | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest("M_BAD_JSON", f"{name} is not a boolean")
    return value


def _integer(fields: Mapping[str, Any], name: str, default: int, most: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not int:
        raise BadRequest("M_BAD_JSON", f"{name} is not an integer")
    if not 0 <= value <= most:
        raise BadRequest("M_INVALID_PARAM", f"{name} is not within 0 and {most}")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRequest("M_BAD_JSON", f"{name} is not a string")
    return _short(value, name)


def _short(value: str, name: str) -> str:
    """A text that a column can hold and an event could have."""
    if len(value) > MAX_TEXT or "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise BadRequest("M_INVALID_PARAM", f"{name} is no text of at most {MAX_TEXT} characters")
    return value


def _room(value: str) -> str:
    """A room ID's shape is asked for, so that the database is not asked for what no room can have."""
    if not ids.is_room_id(value):
        raise BadRequest("M_INVALID_PARAM", "room_subscriptions names what is no room ID")
    return value


def _strings(fields: Mapping[str, Any], name: str) -> list[Any] | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, list):
        raise BadRequest("M_BAD_JSON", f"{name} is not a list")
    _at_most(value, MAX_NAMES, name)
    return value


def _names(fields: Mapping[str, Any], name: str) -> frozenset[str] | None:
    value = _strings(fields, name)
    if value is None:
        return None
    if not all(isinstance(v, str) for v in value):
        raise BadRequest("M_BAD_JSON", f"{name} is not a list of strings")
    return frozenset(_short(v, name) for v in value)


def _types(fields: Mapping[str, Any], name: str) -> frozenset[str | None] | None:
    value = _strings(fields, name)
    if value is None:
        return None
    if not all(v is None or isinstance(v, str) for v in value):
        raise BadRequest("M_BAD_JSON", f"{name} is not a list of strings and nulls")
    return frozenset(None if v is None else _short(v, name) for v in value)
