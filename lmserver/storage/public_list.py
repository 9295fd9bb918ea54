"""What the public room list says of each room in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor
from lmserver.storage.room_log import StoredEvent


@dataclass(frozen=True, slots=True)
class RoomState:
    """Current state events of one room, of the types asked for and the empty state key."""

    room_id: str
    room_version: str
    joined: int
    events: list[StoredEvent]


async def published(db: Executor, types: Sequence[str], limit: int) -> list[RoomState]:
    """Published rooms that somebody is in."""
    rows = await db.fetch("SELECT room_id FROM published_rooms ORDER BY room_id LIMIT $1", limit)
    return await states(db, [r["room_id"] for r in rows], types)


async def states(db: Executor, room_ids: Sequence[str], types: Sequence[str]) -> list[RoomState]:
    """Of these rooms those that we know and that somebody is in."""
    counts = await db.fetch(
        "SELECT s.room_id, r.room_version, count(*) AS joined FROM room_state AS s"
        " JOIN rooms AS r ON r.room_id = s.room_id WHERE s.room_id = ANY($1::text[])"
        " AND s.type = 'm.room.member' AND s.membership = 'join' AND s.to_position IS NULL"
        " GROUP BY s.room_id, r.room_version",
        list(room_ids),
    )
    by_room = await current(db, room_ids, types)
    return [
        RoomState(r["room_id"], r["room_version"], r["joined"], by_room.get(r["room_id"], [])) for r in counts
    ]


async def current(
    db: Executor, room_ids: Sequence[str], types: Sequence[str]
) -> dict[str, list[StoredEvent]]:
    """By room, the current state events of these types and the empty state key."""
    events = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id = ANY($1::text[]) AND s.type = ANY($2::text[]) AND s.state_key = ''"
        " AND s.to_position IS NULL",
        list(room_ids),
        list(types),
    )
    by_room: dict[str, list[StoredEvent]] = {}
    for row in events:
        event = StoredEvent(*(row[name] for name in StoredEvent._fields))
        by_room.setdefault(event.room_id, []).append(event)
    return by_room


async def entries(db: Executor, room_id: str, type_: str, limit: int) -> list[StoredEvent]:
    """Current state events of a type under every state key, at most `limit`."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id = $1 AND s.type = $2 AND s.to_position IS NULL ORDER BY s.state_key LIMIT $3",
        room_id,
        type_,
        limit,
    )
    return [StoredEvent(*(r[n] for n in StoredEvent._fields)) for r in rows]
