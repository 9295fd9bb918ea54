"""The list of public rooms: what it says of a room, its search and its pages (CS API §Listing rooms)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.protocol.room_versions import room_version
from lmserver.rooms.client_format import Shown, shown
from lmserver.storage import public_list
from lmserver.storage.database import Executor
from lmserver.storage.public_list import RoomState

MAX_LISTED: Final = 10_000
MAX_PAGE: Final = 500
MAX_TERM: Final = 255
MAX_TYPES: Final = 20
KEPT_SECONDS: Final = 5.0
"""How long what was read of the rooms serves other readers."""

JsonObject = dict[str, Any]

TYPES: Final = (
    "m.room.create",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.encryption",
)
_FIELDS: Final = (
    ("name", "m.room.name", "name"),
    ("topic", "m.room.topic", "topic"),
    ("canonical_alias", "m.room.canonical_alias", "alias"),
    ("avatar_url", "m.room.avatar", "url"),
    ("room_type", "m.room.create", "type"),
)


class BadQuery(ValueError):
    """What is asked of the list makes no sense; the text says why."""


@dataclass(frozen=True, slots=True)
class ListQuery:
    """One page: `start` rooms are left out, `limit` are shown. `types` None: of every type; in it,
    None stands for rooms without one."""

    limit: int = 100
    start: int = 0
    term: str | None = None
    types: frozenset[str | None] | None = None


@dataclass(frozen=True, slots=True)
class ListedRoom:
    """One room's entry in the specification's form; `federated` if other servers may join it."""

    joined: int
    entry: JsonObject
    federated: bool


def parse_query(limit: object, since: object, wanted: object) -> ListQuery:
    """Limit, since and filter as they came; raises BadQuery."""
    if limit is not None and type(limit) is not int:
        raise BadQuery("limit is not a number")
    if since is not None and not (
        isinstance(since, str) and since.isascii() and since.isdigit() and len(since) < 10
    ):
        raise BadQuery("since is not a token")
    if not isinstance(wanted, Mapping | None):
        raise BadQuery("filter is not an object")
    term, types = (wanted or {}).get("generic_search_term"), (wanted or {}).get("room_types")
    if not isinstance(term, str | None) or len(term or "") > MAX_TERM:
        raise BadQuery("generic_search_term is not a short text")
    if types is not None and not (
        isinstance(types, list) and len(types) <= MAX_TYPES and all(isinstance(t, str | None) for t in types)
    ):
        raise BadQuery("room_types is not a short list of types")
    return ListQuery(
        max(1, min(MAX_PAGE, 100 if limit is None else int(limit))),
        int(since) if since else 0,
        (term or "").strip().casefold() or None,
        None if types is None else frozenset(types),
    )


class PublicList:
    """Published rooms, those with most people first."""

    def __init__(self, db: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._clock = clock
        self._lock = asyncio.Lock()
        self._kept: tuple[float, list[ListedRoom]] | None = None

    def changed(self) -> None:
        """A room has come or gone: the next reader sees it."""
        self._kept = None

    async def page(self, query: ListQuery, *, for_servers: bool = False) -> JsonObject:
        """The answer; `for_servers` leaves out rooms that other servers cannot join."""
        listed = [
            room
            for room in await self._rooms()
            if (room.federated or not for_servers) and _wanted(room.entry, query)
        ]
        end = query.start + query.limit
        answer: JsonObject = {
            "chunk": [room.entry for room in listed[query.start : end]],
            "total_room_count_estimate": len(listed),
        }
        if end < len(listed):
            answer["next_batch"] = str(end)
        if query.start > 0:
            answer["prev_batch"] = str(max(0, query.start - query.limit))
        return answer

    async def _rooms(self) -> list[ListedRoom]:
        async with self._lock:
            now = self._clock()
            if self._kept is None or now - self._kept[0] > KEPT_SECONDS:
                found = await public_list.published(self._db, TYPES, MAX_LISTED)
                rooms = sorted(
                    (listed(room) for room in found), key=lambda r: (-r.joined, r.entry["room_id"])
                )
                self._kept = (now, rooms)
            return self._kept[1]


def _wanted(entry: JsonObject, query: ListQuery) -> bool:
    if query.types is not None and entry.get("room_type") not in query.types:
        return False
    return query.term is None or any(
        query.term in entry.get(key, "").casefold() for key in ("name", "topic", "canonical_alias")
    )


def listed(room: RoomState) -> ListedRoom:
    """What strangers may know of a room (CS API §PublishedRoomsChunk)."""
    version = room_version(room.room_version)
    state = {e.type: e for e in (shown(stored, version) for stored in room.events)}
    entry: JsonObject = {
        "room_id": room.room_id,
        "num_joined_members": room.joined,
        "world_readable": _text(state, "m.room.history_visibility", "history_visibility") == "world_readable",
        "guest_can_join": _text(state, "m.room.guest_access", "guest_access") == "can_join",
        "join_rule": _text(state, "m.room.join_rules", "join_rule") or "invite",
    }
    for key, type_, field in _FIELDS:
        value = _text(state, type_, field)
        if value is not None:
            entry[key] = value
    create = state.get("m.room.create")
    return ListedRoom(room.joined, entry, create is None or create.content.get("m.federate") is not False)


def _text(state: Mapping[str, Shown], type_: str, field: str) -> str | None:
    event = state.get(type_)
    value = None if event is None else event.content.get(field)
    return value if isinstance(value, str) else None


def cleaned(chunk: object, limit: int) -> list[JsonObject]:
    """Entries of another server's list, of those only what is as specified."""
    found = [_cleaned(entry) for entry in chunk[:limit]] if isinstance(chunk, list) else []
    return [entry for entry in found if entry is not None]


_TEXTS: Final[Sequence[str]] = ("name", "topic", "canonical_alias", "avatar_url", "room_type", "join_rule")
MAX_TEXT: Final = 10_000


def _cleaned(entry: object) -> JsonObject | None:
    if not isinstance(entry, dict):
        return None
    room_id, members = entry.get("room_id"), entry.get("num_joined_members")
    if not isinstance(room_id, str) or not room_id.startswith("!") or len(room_id) > 255:
        return None
    kept: JsonObject = {
        "room_id": room_id,
        "num_joined_members": members if type(members) is int and members >= 0 else 0,
        "world_readable": entry.get("world_readable") is True,
        "guest_can_join": entry.get("guest_can_join") is True,
    }
    for name in _TEXTS:
        value = entry.get(name)
        if isinstance(value, str) and len(value) <= MAX_TEXT:
            kept[name] = value
    return kept
