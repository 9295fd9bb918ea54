"""Rooms as operators look through them: by name, hub and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.storage.database import Executor
from lmserver.storage.list_page import ListPage
from lmserver.storage.people import escaped

TEXT_ORDERS: Final = frozenset({"name", "canonical_alias", "version", "hub", "public"})
SIZE_ORDERS: Final = frozenset({"joined_members", "joined_local_members", "state_events"})


@dataclass(frozen=True, slots=True)
class RoomQuery:
    """Which rooms; `term` is looked for in names, aliases, IDs and hubs."""

    term: str | None = None
    empty: bool | None = None


@dataclass(frozen=True, slots=True)
class ListedRoom:
    """One room; `entries` are current state events, `blocked` if our users may not enter it."""

    room_id: str
    room_version: str
    hub_server: str
    hold: str | None
    is_published: bool
    blocked: bool
    joined: int
    joined_local: int
    entries: int
    head_position: int
    min_position: int


async def page(db: Executor, query: RoomQuery, part: ListPage) -> list[str]:
    """The rooms of one page; room IDs decide between equals, those without a name come last."""
    if part.order_by in SIZE_ORDERS:
        return await _by_size(db, query, part)
    rows = await db.fetch(
        # What is looked for stands in canonical JSON, where only NUL is written so that it can be no text.
        "SELECT room_id FROM (SELECT r.room_id, r.room_version, r.hub_server, r.is_public, n.value AS name,"
        " a.value AS alias FROM rooms AS r"
        " LEFT JOIN LATERAL (SELECT CASE WHEN position('\\x5c7530303030'::bytea IN e.pdu) = 0"
        " THEN convert_from(e.pdu, 'UTF8')::json #>> '{content,name}' END AS value"
        " FROM room_state AS s JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id = r.room_id AND s.type = 'm.room.name' AND s.state_key = ''"
        " AND s.to_position IS NULL AND e.redacted_by IS NULL) AS n ON true"
        " LEFT JOIN LATERAL (SELECT CASE WHEN position('\\x5c7530303030'::bytea IN e.pdu) = 0"
        " THEN convert_from(e.pdu, 'UTF8')::json #>> '{content,alias}' END AS value"
        " FROM room_state AS s JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id = r.room_id AND s.type = 'm.room.canonical_alias' AND s.state_key = ''"
        " AND s.to_position IS NULL AND e.redacted_by IS NULL) AS a ON true) AS f"
        " WHERE ($1::text IS NULL OR room_id = $2 OR lower(name) LIKE $1 ESCAPE '!'"
        " OR lower(alias) LIKE $1 ESCAPE '!' OR lower(hub_server) LIKE $1 ESCAPE '!')"
        " AND ($3::boolean IS NULL OR $3 <> EXISTS (SELECT FROM room_state AS m WHERE m.room_id = f.room_id"
        " AND m.type = 'm.room.member' AND m.to_position IS NULL AND m.membership = 'join'))"
        " ORDER BY CASE WHEN NOT $5 THEN CASE $4 WHEN 'version' THEN room_version WHEN 'hub' THEN hub_server"
        " WHEN 'canonical_alias' THEN alias WHEN 'public' THEN is_public::text ELSE lower(name) END END,"
        " CASE WHEN $5 THEN CASE $4 WHEN 'version' THEN room_version WHEN 'hub' THEN hub_server"
        " WHEN 'canonical_alias' THEN alias WHEN 'public' THEN is_public::text ELSE lower(name) END END"
        " DESC NULLS LAST, room_id OFFSET $6 LIMIT $7",
        *_filters(query),
        *part.arguments,
    )
    return [row["room_id"] for row in rows]


async def _by_size(db: Executor, query: RoomQuery, part: ListPage) -> list[str]:
    """The largest first, `descending` the smallest."""
    rows = await db.fetch(
        "SELECT room_id FROM (SELECT r.room_id, r.hub_server, c.joined, CASE $4"
        " WHEN 'joined_members' THEN c.joined WHEN 'joined_local_members' THEN c.ours ELSE c.entries END"
        " AS size FROM rooms AS r JOIN (SELECT s.room_id, count(*) AS entries,"
        " count(*) FILTER (WHERE s.type = 'm.room.member' AND s.membership = 'join') AS joined,"
        " count(*) FILTER (WHERE s.type = 'm.room.member' AND s.membership = 'join'"
        " AND EXISTS (SELECT FROM accounts AS a WHERE a.user_id = s.state_key)) AS ours"
        " FROM room_state AS s WHERE s.to_position IS NULL GROUP BY s.room_id) AS c"
        " ON c.room_id = r.room_id) AS f"
        " WHERE ($1::text IS NULL OR room_id = $2 OR lower(hub_server) LIKE $1 ESCAPE '!'"
        " OR EXISTS (SELECT FROM room_state AS s JOIN events AS e ON e.event_id = s.event_id"
        " AND e.room_id = s.room_id WHERE s.room_id = f.room_id"
        " AND s.type IN ('m.room.name', 'm.room.canonical_alias') AND s.state_key = ''"
        " AND s.to_position IS NULL AND e.redacted_by IS NULL AND lower(CASE"
        " WHEN position('\\x5c7530303030'::bytea IN e.pdu) = 0 THEN CASE s.type WHEN 'm.room.name'"
        " THEN convert_from(e.pdu, 'UTF8')::json #>> '{content,name}'"
        " ELSE convert_from(e.pdu, 'UTF8')::json #>> '{content,alias}' END END) LIKE $1 ESCAPE '!'))"
        " AND ($3::boolean IS NULL OR $3 = (joined = 0))"
        " ORDER BY CASE WHEN $5 THEN size ELSE -size END, room_id OFFSET $6 LIMIT $7",
        *_filters(query),
        *part.arguments,
    )
    return [row["room_id"] for row in rows]


async def count(db: Executor, query: RoomQuery) -> int:
    """How many there are on all pages."""
    found: int = await db.fetchval(
        "SELECT count(*) FROM rooms AS r WHERE ($1::text IS NULL OR r.room_id = $2"
        " OR lower(r.hub_server) LIKE $1 ESCAPE '!' OR EXISTS (SELECT FROM room_state AS s JOIN events AS e"
        " ON e.event_id = s.event_id AND e.room_id = s.room_id WHERE s.room_id = r.room_id"
        " AND s.type IN ('m.room.name', 'm.room.canonical_alias') AND s.state_key = ''"
        " AND s.to_position IS NULL AND e.redacted_by IS NULL AND lower(CASE"
        " WHEN position('\\x5c7530303030'::bytea IN e.pdu) = 0 THEN CASE s.type WHEN 'm.room.name'"
        " THEN convert_from(e.pdu, 'UTF8')::json #>> '{content,name}'"
        " ELSE convert_from(e.pdu, 'UTF8')::json #>> '{content,alias}' END END) LIKE $1 ESCAPE '!'))"
        " AND ($3::boolean IS NULL OR $3 <> EXISTS (SELECT FROM room_state AS m WHERE m.room_id = r.room_id"
        " AND m.type = 'm.room.member' AND m.to_position IS NULL AND m.membership = 'join'))",
        *_filters(query),
    )
    return found


def _filters(query: RoomQuery) -> tuple[object, ...]:
    term = query.term or None
    return (None if term is None else f"%{escaped(term.lower())}%", term, query.empty)


async def details(db: Executor, room_ids: Sequence[str]) -> list[ListedRoom]:
    """What is known of each of these rooms that is here, in their order."""
    rows = await db.fetch(
        "SELECT r.room_id, r.room_version, r.hub_server, r.hold, r.head_position, r.min_position,"
        " EXISTS (SELECT FROM published_rooms AS p WHERE p.room_id = r.room_id) AS is_published,"
        " EXISTS (SELECT FROM blocked_rooms AS b WHERE b.room_id = r.room_id) AS blocked,"
        " c.joined, c.joined_local, c.entries FROM unnest($1::text[]) WITH ORDINALITY AS n (room_id, place)"
        " JOIN rooms AS r ON r.room_id = n.room_id CROSS JOIN LATERAL (SELECT count(*) AS entries,"
        " count(*) FILTER (WHERE s.type = 'm.room.member' AND s.membership = 'join') AS joined,"
        " count(*) FILTER (WHERE s.type = 'm.room.member' AND s.membership = 'join'"
        " AND EXISTS (SELECT FROM accounts AS a WHERE a.user_id = s.state_key)) AS joined_local"
        " FROM room_state AS s WHERE s.room_id = r.room_id AND s.to_position IS NULL) AS c ORDER BY n.place",
        list(room_ids),
    )
    return [_listed(row) for row in rows]


def _listed(row: Any) -> ListedRoom:
    return ListedRoom(*(row[name] for name in ListedRoom.__slots__))


async def members(db: Executor, room_id: str) -> list[str]:
    """Everybody who is in a room."""
    rows = await db.fetch(
        "SELECT state_key FROM room_state WHERE room_id = $1 AND type = 'm.room.member'"
        " AND to_position IS NULL AND membership = 'join' ORDER BY state_key",
        room_id,
    )
    return [row["state_key"] for row in rows]
