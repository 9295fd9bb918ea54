"""Searching messages (CS API §Server Side Search): in rooms that are not encrypted, of what the user
may see, without those they ignore.

Hits are checked one by one after they are found, and what a user may not see is neither counted nor
otherwise told of. A request looks at MAX_SCANNED hits; a client goes on from there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.rooms.access import Access, Reader
from lmserver.rooms.client_format import ClientEvent, Shown, shown
from lmserver.rooms.reading import Reading
from lmserver.rooms.sync.filters import EventFilter, parse_event_filter
from lmserver.rooms.sync.tokens import RoomToken
from lmserver.storage import message_search, room_log
from lmserver.storage.database import Executor
from lmserver.storage.message_search import SEARCHED, Cursor, Hit

CHUNK: Final = 100
MAX_SCANNED: Final = 1_000
MAX_LIMIT: Final = 50
MAX_CONTEXT: Final = 20
MAX_TERM: Final = 500
MAX_WORDS: Final = 20
GROUPS: Final = ("room_id", "sender")

JsonObject = dict[str, Any]


class BadSearch(ValueError):
    """What is asked for is not as specified; the text says what."""


@dataclass(frozen=True, slots=True)
class Around:
    """How many events before and after a hit are told, and the profiles of who sent them."""

    before: int
    after: int
    profiles: bool


@dataclass(frozen=True, slots=True)
class Query:
    """`room_events` of a search whose types have been checked."""

    term: str
    keys: tuple[str, ...]
    wanted: EventFilter
    limit: int
    by_rank: bool
    around: Around | None
    with_state: bool
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A hit that the user may see."""

    hit: Hit
    event: Shown
    access: Access


def parse_query(value: object) -> Query:
    """`search_categories.room_events`; raises BadSearch or BadFilter."""
    fields = _object(value, "room_events")
    term = fields.get("search_term")
    if not isinstance(term, str) or len(term) > MAX_TERM or not _is_text(term):
        raise BadSearch("search_term is not a short text")
    keys = fields.get("keys", list(SEARCHED.values()))
    if not isinstance(keys, list) or not all(key in SEARCHED.values() for key in keys):
        raise BadSearch("keys has one that is not searched")
    order = fields.get("order_by", "rank")
    if order not in ("rank", "recent"):
        raise BadSearch("order_by is rank or recent")
    wanted = parse_event_filter(fields.get("filter", {}))
    around = fields.get("event_context")
    return Query(
        term=term,
        keys=tuple(dict.fromkeys(keys)),
        wanted=wanted,
        limit=max(1, min(10 if wanted.limit is None else wanted.limit, MAX_LIMIT)),
        by_rank=order == "rank",
        around=None if around is None else _around(_object(around, "event_context")),
        with_state=fields.get("include_state") is True,
        groups=_groups(_object(fields.get("groupings", {}), "groupings")),
    )


def _is_text(value: str) -> bool:
    """Whether PostgreSQL can hold it: no NUL, no half of a surrogate pair."""
    return "\0" not in value and not any(0xD800 <= ord(c) <= 0xDFFF for c in value)


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadSearch(f"{name} is not an object")
    return value


def _around(fields: Mapping[str, Any]) -> Around:
    limits = [fields.get(name, 5) for name in ("before_limit", "after_limit")]
    if not all(type(limit) is int for limit in limits):
        raise BadSearch("before_limit or after_limit is not a number")
    before, after = (max(0, min(limit, MAX_CONTEXT)) for limit in limits)
    return Around(before, after, fields.get("include_profile") is True)


def _groups(fields: Mapping[str, Any]) -> tuple[str, ...]:
    entries = fields.get("group_by", [])
    if not isinstance(entries, list) or len(entries) > len(GROUPS):
        raise BadSearch("group_by is not a short list")
    names = [entry.get("key") if isinstance(entry, dict) else None for entry in entries]
    if not all(name in GROUPS for name in names):
        raise BadSearch("group_by has a key that is not known")
    return tuple(name for name in GROUPS if name in names)


def parse_token(text: str, query: Query) -> Cursor:
    """Raises BadSearch for what we never gave out."""
    match = re.fullmatch(r"([rn])([0-9.e+-]{1,40})_(\$[A-Za-z0-9_-]{1,254})", text)
    try:
        key = float(match[2]) if match is not None else math.nan
    except ValueError:
        key = math.nan
    if match is None or (match[1] == "r") != query.by_rank or not 0 <= key < 2**53:
        raise BadSearch("next_batch is not a token of this search")
    return Cursor(key, match[3])


def _token(cursor: Cursor, query: Query) -> str:
    return f"{'r' if query.by_rank else 'n'}{cursor.key!r}_{cursor.event_id}"


class Search:
    """Finds and tells."""

    def __init__(self, db: Executor, reading: Reading) -> None:
        self._db = db
        self._reading = reading

    async def search(self, reader: Reader, query: Query, start: Cursor | None) -> JsonObject:
        """`room_events` of the answer."""
        rooms = [
            room_id
            for room_id in await message_search.searchable_rooms(self._db, reader.user_id)
            if query.wanted.room_passes(room_id)
        ]
        found, end = await self._find(reader, query, rooms, start)
        answer: JsonObject = {
            "results": await self._results(reader, query, found),
            "count": len(found),
            "highlights": list(dict.fromkeys(re.findall(r"\w+", query.term.lower())))[:MAX_WORDS],
        }
        if end is not None:
            answer["next_batch"] = _token(end, query)
        if query.groups:
            answer["groups"] = {name: _grouped(found, name) for name in query.groups}
        if query.with_state:
            answer["state"] = await self._states(reader, found)
        return answer

    async def _find(
        self, reader: Reader, query: Query, rooms: Sequence[str], start: Cursor | None
    ) -> tuple[list[Found], Cursor | None]:
        """What may be seen of the hits from `start` on, and where to go on, None at the end."""
        find = message_search.best if query.by_rank else message_search.newest
        accesses: dict[str, Access | None] = {}
        found: list[Found] = []
        end = start
        for _ in range(0, MAX_SCANNED if rooms else 0, CHUNK):
            hits = await find(self._db, rooms, query.term, query.keys, end, CHUNK)
            events = await self._events(hits)
            for hit in hits:
                end = hit.cursor
                if hit.room_id not in accesses:
                    accesses[hit.room_id] = await self._reading.access(reader.user_id, hit.room_id)
                item = _seen(hit, accesses[hit.room_id], events, query)
                if item is not None:
                    found.append(item)
                if len(found) == query.limit:
                    return found, end
            if len(hits) < CHUNK:
                return found, None
        return found, end if rooms else None

    async def _events(self, hits: Sequence[Hit]) -> dict[str, room_log.StoredEvent]:
        by_room: dict[str, list[str]] = {}
        for hit in hits:
            by_room.setdefault(hit.room_id, []).append(hit.event_id)
        return {
            stored.event_id: stored
            for room_id, event_ids in by_room.items()
            for stored in await room_log.events_by_id(self._db, room_id, event_ids)
        }

    # -- telling --------------------------------------------------------------------------------

    async def _results(self, reader: Reader, query: Query, found: Sequence[Found]) -> list[JsonObject]:
        rendered: dict[str, ClientEvent] = {}
        for room in _by_room(found):
            events = [item.event for item in room]
            whole = await self._reading.render(room[0].access, reader, events)
            rendered |= {event["event_id"]: event for event in whole}
        results: list[JsonObject] = []
        for item in found:
            result: JsonObject = {"rank": item.hit.rank, "result": rendered[item.event.event_id]}
            if query.around is not None:
                result["context"] = await self._context(reader, query.around, item)
            results.append(result)
        return results

    async def _context(self, reader: Reader, around: Around, item: Found) -> JsonObject:
        access, at = item.access, item.hit.position
        older = newer = []
        if around.before:
            older = (await self._reading.backwards(access, at - 1, around.before, _any)).events
        if around.after:
            newer = (await self._reading.forwards(access, at, around.after, _any)).events
        context: JsonObject = {
            "events_before": await self._reading.render(access, reader, older),
            "events_after": await self._reading.render(access, reader, newer),
            "start": str(RoomToken((older[-1].position or 0) - 1 if older else at - 1)),
            "end": str(RoomToken(newer[-1].position or 0 if newer else at)),
        }
        if around.profiles:
            senders = [event.sender for event in (*older, item.event, *newer)]
            members = await self._reading.members_named(access, at + 1, senders)
            context["profile_info"] = {event.state_key: _profile(event) for event in members}
        return context

    async def _states(self, reader: Reader, found: Sequence[Found]) -> JsonObject:
        """The state of each room, of its members only those who sent something found."""
        states: JsonObject = {}
        for room in _by_room(found):
            access = room[0].access
            senders = {item.event.sender for item in room}
            state = [
                event
                for event in await self._reading.state(access)
                if event.type != "m.room.member" or event.state_key in senders
            ]
            states[access.room_id] = await self._reading.render(access, reader, state)
        return states


def _seen(
    hit: Hit, access: Access | None, events: Mapping[str, room_log.StoredEvent], query: Query
) -> Found | None:
    stored = events.get(hit.event_id)
    if access is None or stored is None or hit.position not in access.visible:
        return None
    if stored.soft_failed is not None or stored.redacted_by is not None:
        return None
    event = shown(stored, access.version)
    wanted = query.wanted.passes(event) and not access.ignores(event) and not access.erases(event)
    return Found(hit, event, access) if wanted else None


def _by_room(found: Sequence[Found]) -> list[list[Found]]:
    rooms: dict[str, list[Found]] = {}
    for item in found:
        rooms.setdefault(item.access.room_id, []).append(item)
    return list(rooms.values())


def _grouped(found: Sequence[Found], name: str) -> JsonObject:
    groups: JsonObject = {}
    for order, item in enumerate(found):
        value = item.access.room_id if name == "room_id" else item.event.sender
        group = groups.setdefault(value, {"order": order, "results": []})
        group["results"].append(item.event.event_id)
    return groups


def _any(event: Shown) -> bool:
    return True


def _profile(event: Shown) -> JsonObject:
    fields = {name: event.content.get(name) for name in ("displayname", "avatar_url")}
    return {name: value for name, value in fields.items() if isinstance(value, str)}
