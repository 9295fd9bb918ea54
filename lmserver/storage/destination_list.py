"""Servers we send to as operators look at them: what waits for each, and how it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from lmserver.storage.database import Executor
from lmserver.storage.list_page import ListPage
from lmserver.storage.people import escaped

ORDERS: Final = frozenset({"destination", "failing_since", "retry_at"})


@dataclass(frozen=True, slots=True)
class DestinationQuery:
    """Which servers; `failing`: those alone that take nothing."""

    term: str | None = None
    failing: bool = False


@dataclass(frozen=True, slots=True)
class ListedDestination:
    """One server. Times in ms, 0 for never; `events` it has not taken of how many `rooms`, `messages` of
    our users to rooms it orders, and `edus`."""

    destination: str
    failing_since: int
    failures: int
    retry_at: int
    last_failure: str | None
    rooms: int
    events: int
    messages: int
    edus: int


@dataclass(frozen=True, slots=True)
class RoomForDestination:
    """A room whose list a server gets: how far it has taken it, and how far it goes."""

    room_id: str
    acked_position: int
    head_position: int


def _listed(row: Any) -> ListedDestination:
    return ListedDestination(*(row[name] for name in ListedDestination.__slots__))


async def page(db: Executor, query: DestinationQuery, part: ListPage) -> list[ListedDestination]:
    """One page, counted for its servers alone."""
    rows = await db.fetch(
        "SELECT d.destination, d.failing_since, d.failures, d.retry_at, d.last_failure, o.rooms, o.events,"
        " (SELECT count(*) FROM outbound_lpdus AS l WHERE l.destination = d.destination"
        " AND l.status = 'pending') AS messages,"
        " (SELECT count(*) FROM outbound_edus AS e WHERE e.destination = d.destination) AS edus"
        " FROM (SELECT * FROM destinations WHERE ($1::text IS NULL OR destination LIKE $1 ESCAPE '!')"
        " AND (NOT $2 OR failing_since > 0)"
        " ORDER BY CASE WHEN NOT $4 THEN CASE $3 WHEN 'failing_since' THEN failing_since"
        " WHEN 'retry_at' THEN retry_at END END, CASE WHEN $4 THEN CASE $3 WHEN 'failing_since'"
        " THEN failing_since WHEN 'retry_at' THEN retry_at END END DESC,"
        " CASE WHEN $4 AND $3 = 'destination' THEN destination END DESC, destination"
        " OFFSET $5 LIMIT $6) AS d CROSS JOIN LATERAL (SELECT count(DISTINCT r.room_id) AS rooms,"
        " coalesce(sum(greatest(0, least(m.head_position, r.until_position) - r.acked_position)), 0)::bigint"
        " AS events FROM outbound_ranges AS r JOIN rooms AS m ON m.room_id = r.room_id"
        " WHERE r.destination = d.destination) AS o"
        " ORDER BY CASE WHEN NOT $4 THEN CASE $3 WHEN 'failing_since' THEN failing_since"
        " WHEN 'retry_at' THEN retry_at END END, CASE WHEN $4 THEN CASE $3 WHEN 'failing_since'"
        " THEN failing_since WHEN 'retry_at' THEN retry_at END END DESC,"
        " CASE WHEN $4 AND $3 = 'destination' THEN destination END DESC, destination",
        *_filters(query),
        *part.arguments,
    )
    return [_listed(row) for row in rows]


async def count(db: Executor, query: DestinationQuery) -> int:
    """How many there are on all pages."""
    found: int = await db.fetchval(
        "SELECT count(*) FROM destinations WHERE ($1::text IS NULL OR destination LIKE $1 ESCAPE '!')"
        " AND (NOT $2 OR failing_since > 0)",
        *_filters(query),
    )
    return found


def _filters(query: DestinationQuery) -> tuple[object, ...]:
    return (f"%{escaped(query.term)}%" if query.term else None, query.failing)


async def exists(db: Executor, destination: str) -> bool:
    found: bool = await db.fetchval(
        "SELECT EXISTS (SELECT FROM destinations WHERE destination = $1)", destination
    )
    return found


async def rooms(db: Executor, destination: str, start: int, limit: int) -> list[RoomForDestination]:
    rows = await db.fetch(
        "SELECT r.room_id, max(r.acked_position) AS acked_position, max(m.head_position) AS head_position"
        " FROM outbound_ranges AS r JOIN rooms AS m ON m.room_id = r.room_id WHERE r.destination = $1"
        " GROUP BY r.room_id ORDER BY r.room_id OFFSET $2 LIMIT $3",
        destination,
        start,
        limit,
    )
    return [RoomForDestination(*(row[name] for name in RoomForDestination.__slots__)) for row in rows]


async def count_rooms(db: Executor, destination: str) -> int:
    found: int = await db.fetchval(
        "SELECT count(DISTINCT room_id) FROM outbound_ranges WHERE destination = $1", destination
    )
    return found
