"""Rooms of ours that may lack their newest events, because the database was restored (drill D15).

A room's `hold` is None, "restored" (the other servers are being asked for what we lack), "forked"
(they have events that ours contradict) or "decided" (the operator released it as it is).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lmserver.storage.database import Executor

RESTORED: Final = "restored"
FORKED: Final = "forked"
DECIDED: Final = "decided"


@dataclass(frozen=True, slots=True)
class HeldRoom:
    room_id: str
    hold: str


async def hold_all(db: Executor, hub: str) -> int:
    """Hold every room whose hub is `hub`, also those that no other server was in: one may have joined
    since. How many."""
    rows = await db.fetch("UPDATE rooms SET hold = 'restored' WHERE hub_server = $1 RETURNING room_id", hub)
    return len(rows)


async def release_unshared(db: Executor, hub: str) -> int:
    """End the hold of rooms that nobody of another server is in; how many."""
    rows = await db.fetch(
        "UPDATE rooms AS r SET hold = NULL WHERE r.hub_server = $1 AND r.hold = 'restored' AND NOT EXISTS ("
        "SELECT 1 FROM room_state AS s WHERE s.room_id = r.room_id AND s.type = 'm.room.member'"
        " AND s.to_position IS NULL AND s.membership = 'join'"
        " AND substr(s.state_key, strpos(s.state_key, ':') + 1) <> $1) RETURNING r.room_id",
        hub,
    )
    return len(rows)


async def hold(db: Executor, room_id: str, why: str) -> bool:
    """Hold one room; False when its operator has decided about it or it is held so already."""
    held = await db.fetchval(
        "UPDATE rooms SET hold = $2 WHERE room_id = $1 AND hold IS DISTINCT FROM $2"
        " AND hold IS DISTINCT FROM 'decided' RETURNING true",
        room_id,
        why,
    )
    return bool(held)


async def release(db: Executor, room_id: str, *, decided: bool) -> bool:
    """End a hold; `decided` by the operator, without the newest events. False if there was none."""
    released = await db.fetchval(
        "UPDATE rooms SET hold = $2 WHERE room_id = $1 AND hold IN ('restored', 'forked') RETURNING true",
        room_id,
        DECIDED if decided else None,
    )
    return bool(released)


async def held(db: Executor) -> list[HeldRoom]:
    rows = await db.fetch(
        "SELECT room_id, hold FROM rooms WHERE hold IN ('restored', 'forked') ORDER BY room_id"
    )
    return [HeldRoom(r["room_id"], r["hold"]) for r in rows]


async def is_held(db: Executor, room_id: str) -> bool:
    found: bool = await db.fetchval(
        "SELECT EXISTS (SELECT 1 FROM rooms WHERE room_id = $1 AND hold IN ('restored', 'forked'))", room_id
    )
    return found


async def landmarks(db: Executor, room_id: str, steps: Sequence[int]) -> list[str]:
    """IDs of the events that many steps before the head, newest first: where another server's
    list and ours may part."""
    rows = await db.fetch(
        "SELECT e.event_id FROM rooms AS r JOIN events AS e ON e.room_id = r.room_id"
        " JOIN unnest($2::bigint[]) AS n ON e.position = r.head_position - n"
        " WHERE r.room_id = $1 ORDER BY e.position DESC",
        room_id,
        list(steps),
    )
    return [r["event_id"] for r in rows]


async def position_after(db: Executor, room_id: str, event_ids: Sequence[str]) -> int | None:
    """The position behind the newest of these events that we have a place for, or that an event
    of ours names as its predecessor."""
    position: int | None = await db.fetchval(
        "SELECT max(p) FROM (SELECT position + 1 AS p FROM events"
        " WHERE room_id = $1 AND event_id = ANY($2::text[]) AND position IS NOT NULL"
        " UNION ALL SELECT position FROM events"
        " WHERE room_id = $1 AND prev_event_id = ANY($2::text[])) AS found",
        room_id,
        list(event_ids),
    )
    return position


async def heads_of_hub(db: Executor, hub: str, after: str, limit: int) -> list[tuple[str, str]]:
    """(room, head) of the rooms that `hub` orders and we hold, by room ID."""
    rows = await db.fetch(
        "SELECT room_id, head_event_id FROM rooms WHERE hub_server = $1 AND room_id > $2"
        " ORDER BY room_id LIMIT $3",
        hub,
        after,
        limit,
    )
    return [(r["room_id"], r["head_event_id"]) for r in rows]


async def servers_to_ask(db: Executor, now_ms: int, *, all_known: bool, limit: int) -> list[str]:
    """Servers that get our rooms and are not being left alone; with `all_known` every server that we
    ever sent to or had the keys of, those that get our rooms first."""
    rows = await db.fetch(
        "SELECT s.destination FROM (SELECT destination, min(rank) AS rank FROM ("
        "SELECT destination, 1 AS rank FROM outbound_ranges"
        " UNION ALL SELECT destination, 2 FROM destinations"
        " UNION ALL SELECT server, 3 FROM key_servers WHERE $2) AS known GROUP BY destination) AS s"
        " LEFT JOIN destinations AS d ON d.destination = s.destination"
        " WHERE $2 OR coalesce(d.retry_at, 0) <= $1 ORDER BY s.rank, s.destination LIMIT $3",
        now_ms,
        all_known,
        limit,
    )
    return [r["destination"] for r in rows]


async def unknown_heads(db: Executor, hub: str, heads: Mapping[str, str]) -> list[str]:
    """Of these rooms (room to an event in it) those ordered by `hub` whose event we have not got."""
    rows = await db.fetch(
        "SELECT n.room_id FROM unnest($2::text[], $3::text[]) AS n (room_id, event_id)"
        " JOIN rooms AS r ON r.room_id = n.room_id AND r.hub_server = $1"
        " WHERE NOT EXISTS (SELECT 1 FROM events AS e WHERE e.room_id = n.room_id AND e.event_id = n.event_id"
        " AND e.position IS NOT NULL) ORDER BY n.room_id",
        hub,
        list(heads),
        list(heads.values()),
    )
    return [r["room_id"] for r in rows]
