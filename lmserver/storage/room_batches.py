"""Questions about many rooms at once: what /sync asks of all rooms of a user in one round trip each.

Rooms are given as parallel arrays, each at most once; answers are grouped by room. Columns of events are
in StoredEvent's order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lmserver.storage.database import Executor
from lmserver.storage.room_log import RoomRow, StoredEvent
from lmserver.storage.room_state import StateSpan


@dataclass(frozen=True, slots=True)
class Stretch:
    """Positions [first, last] of one room."""

    room_id: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Point:
    """The state of a room before a position."""

    room_id: str
    position: int


def _by_room(rows: Sequence[Any]) -> dict[str, list[StoredEvent]]:
    found: dict[str, list[StoredEvent]] = defaultdict(list)
    for row in rows:
        found[row[0]].append(tuple.__new__(StoredEvent, row))  # what _make does, in half its time
    return dict(found)


def in_lists(pairs: Iterable[tuple[str, object]]) -> tuple[list[str], list[str]]:
    """(room ID, ID or number) pairs as an array of rooms and one of lists, to be taken apart by
    string_to_array: thousands of elements cost more to hand over than to look up."""
    by_room: dict[str, list[str]] = defaultdict(list)
    for room_id, value in pairs:
        by_room[room_id].append(str(value))
    return list(by_room), [" ".join(values) for values in by_room.values()]


async def rooms(db: Executor, room_ids: Sequence[str]) -> dict[str, RoomRow]:
    rows = await db.fetch(
        "SELECT room_id, room_version, hub_server, create_event_id, head_position, head_event_id,"
        " min_position, hold, EXISTS (SELECT FROM erasures AS e WHERE e.room_id = r.room_id) AS has_erasures"
        " FROM rooms AS r WHERE room_id = ANY($1::text[])",
        list(room_ids),
    )
    return {r["room_id"]: RoomRow(*r) for r in rows}


async def incomplete(db: Executor, room_ids: Sequence[str]) -> set[str]:
    """Of these rooms the ones whose beginning we do not have."""
    rows = await db.fetch(
        "SELECT r.room_id FROM rooms AS r LEFT JOIN events AS e ON e.event_id = r.create_event_id"
        " AND e.room_id = r.room_id WHERE r.room_id = ANY($1::text[]) AND r.min_position <> 0"
        " AND e.position IS NULL",
        list(room_ids),
    )
    return {r["room_id"] for r in rows}


async def histories(
    db: Executor, room_ids: Sequence[str], user_id: str
) -> tuple[dict[str, list[StateSpan]], dict[str, list[StateSpan]]]:
    """Every life of the user's membership and of the history visibility in each room, oldest first (see
    room_state.state_history)."""
    rows = await db.fetch(
        "SELECT s.room_id, s.type, s.from_position, s.to_position, s.event_id, e.pdu,"
        " e.position AS event_position,"
        " CASE WHEN e.position IS NULL THEN (SELECT l.position FROM events AS l WHERE l.room_id = s.room_id"
        " AND l.position < s.from_position AND NOT l.backfilled ORDER BY l.position DESC LIMIT 1)"
        " END AS lived_before FROM unnest($1::text[]) AS w (room_id)"
        " CROSS JOIN (VALUES ('m.room.member', $2::text), ('m.room.history_visibility', ''))"
        " AS k (type, state_key) JOIN room_state AS s ON s.room_id = w.room_id AND s.type = k.type"
        " AND s.state_key = k.state_key"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id ORDER BY s.from_position",
        list(room_ids),
        user_id,
    )
    members: dict[str, list[StateSpan]] = defaultdict(list)
    visibilities: dict[str, list[StateSpan]] = defaultdict(list)
    for room_id, type_, *life in rows:
        (members if type_ == "m.room.member" else visibilities)[room_id].append(StateSpan(*life))
    return members, visibilities


async def last_positions(db: Executor, room_ids: Sequence[str], upto: int) -> dict[str, int]:
    """Each room's last position committed before a stream position."""
    rows = await db.fetch(
        "SELECT w.room_id, b.position FROM unnest($1::text[]) AS w (room_id)"
        " JOIN LATERAL (SELECT position FROM events WHERE events.room_id = w.room_id"
        " AND position IS NOT NULL AND stream_xid < $2::text::xid8"
        " ORDER BY position DESC LIMIT 1) AS b ON true",
        list(room_ids),
        str(upto),
    )
    return {r["room_id"]: r["position"] for r in rows}


async def newest(db: Executor, stretches: Sequence[Stretch], limit: int) -> dict[str, list[StoredEvent]]:
    """The newest events of each stretch, at most `limit`, newest first."""
    rows = await db.fetch(
        "SELECT e.* FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS w (room_id, first, last)"
        " CROSS JOIN LATERAL (SELECT room_id, event_id, position, pdu, soft_failed, redacted_by, received_ts,"
        " stream_xid::text::bigint AS stream_xid FROM events WHERE room_id = w.room_id"
        " AND position >= w.first AND position <= w.last ORDER BY position DESC LIMIT $4) AS e",
        [s.room_id for s in stretches],
        [s.first for s in stretches],
        [s.last for s in stretches],
        limit,
    )
    found = _by_room(rows)
    for events in found.values():
        events.sort(key=lambda event: event.position or 0, reverse=True)
    return found


async def states(db: Executor, points: Sequence[Point], *, members: bool) -> dict[str, list[StoredEvent]]:
    """The state before each point, with or without member events."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid"
        " FROM unnest($1::text[], $2::bigint[]) AS w (room_id, position)"
        " JOIN room_state AS s ON s.room_id = w.room_id AND s.from_position < w.position"
        " AND (s.to_position IS NULL OR s.to_position >= w.position) AND ($3 OR s.type <> 'm.room.member')"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " ORDER BY e.position NULLS FIRST, e.event_id",
        [p.room_id for p in points],
        [p.position for p in points],
        members,
    )
    return _by_room(rows)


async def state_changes(db: Executor, stretches: Sequence[Stretch]) -> dict[str, list[StoredEvent]]:
    """State events that took effect within each stretch, in order."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid"
        " FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS w (room_id, first, last)"
        " JOIN room_state AS s ON s.room_id || '' = w.room_id AND s.from_position >= w.first"
        " AND s.from_position <= w.last AND s.from_position >> 8 BETWEEN w.first >> 8 AND w.last >> 8"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id ORDER BY s.from_position",
        [s.room_id for s in stretches],
        [s.first for s in stretches],
        [s.last for s in stretches],
    )
    return _by_room(rows)


async def member_events(
    db: Executor, points: Sequence[Point], user_ids: Sequence[str]
) -> dict[str, list[StoredEvent]]:
    """Member events in the state before each point of the user named beside it: points may repeat."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid"
        " FROM unnest($1::text[], $2::bigint[], $3::text[]) AS w (room_id, position, user_id)"
        " JOIN room_state AS s ON s.room_id = w.room_id AND s.type = 'm.room.member'"
        " AND s.state_key = w.user_id AND s.from_position < w.position"
        " AND (s.to_position IS NULL OR s.to_position >= w.position)"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " ORDER BY s.from_position, s.state_key",
        [p.room_id for p in points],
        [p.position for p in points],
        list(user_ids),
    )
    return _by_room(rows)


async def replaced(db: Executor, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], StoredEvent]:
    """For state events at (room ID, position): where they are to the event that each replaced."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid, p.position AS at"
        " FROM unnest($1::text[], $2::text[]) AS w (room_id, positions)"
        " CROSS JOIN unnest(string_to_array(w.positions, ' ')::bigint[]) AS p (position)"
        " JOIN events AS n ON n.room_id = w.room_id AND n.position = p.position"
        " JOIN room_state AS s ON s.room_id = n.room_id AND s.type = n.type AND s.state_key = n.state_key"
        " AND s.to_position = n.position"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id",
        *in_lists(places),
    )
    return {(r["room_id"], r["at"]): StoredEvent(*tuple(r)[:-1]) for r in rows}


async def events_by_id(db: Executor, pairs: Sequence[tuple[str, str]]) -> list[StoredEvent]:
    """Events by (room ID, event ID)."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid"
        " FROM unnest($1::text[], $2::text[]) AS n (room_id, event_id)"
        " JOIN events AS e ON e.event_id = n.event_id AND e.room_id = n.room_id",
        [room_id for room_id, _ in pairs],
        [event_id for _, event_id in pairs],
    )
    return [StoredEvent._make(row) for row in rows]


@dataclass(frozen=True, slots=True)
class People:
    """How many are in a room before a position, and whom to name it after: the first of those joined
    or invited, or of everybody ever when that is one alone."""

    joined: int
    invited: int
    first: Sequence[str]


async def people(db: Executor, points: Sequence[Point], limit: int) -> dict[str, People]:
    """At most `limit` to name each room after."""
    rows = await db.fetch(
        "SELECT w.room_id, c.joined, c.invited, h.first"
        " FROM unnest($1::text[], $2::bigint[]) AS w (room_id, position)"
        " CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE membership = 'join') AS joined,"
        " count(*) FILTER (WHERE membership = 'invite') AS invited FROM room_state AS s"
        " WHERE s.room_id = w.room_id AND s.type = 'm.room.member' AND s.from_position < w.position"
        " AND (s.to_position IS NULL OR s.to_position >= w.position)) AS c"
        " CROSS JOIN LATERAL (SELECT array(SELECT state_key FROM room_state AS s"
        " WHERE s.room_id = w.room_id AND s.type = 'm.room.member' AND s.from_position < w.position"
        " AND (s.to_position IS NULL OR s.to_position >= w.position)"
        " AND (c.joined + c.invited <= 1 OR s.membership IN ('join', 'invite'))"
        " ORDER BY s.from_position, s.state_key LIMIT $3) AS first) AS h",
        [p.room_id for p in points],
        [p.position for p in points],
        limit,
    )
    return {r["room_id"]: People(r["joined"], r["invited"], tuple(r["first"])) for r in rows}


async def own_memberships(db: Executor, stretches: Sequence[Stretch], user_id: str) -> dict[str, list[str]]:
    """The memberships a user had in each room within its stretch, in order."""
    rows = await db.fetch(
        "SELECT w.room_id, s.membership FROM unnest($1::text[], $2::bigint[], $3::bigint[])"
        " AS w (room_id, first, last) JOIN room_state AS s ON s.room_id = w.room_id"
        " AND s.type = 'm.room.member' AND s.state_key = $4 AND s.from_position >= w.first"
        " AND s.from_position <= w.last ORDER BY s.from_position",
        [s.room_id for s in stretches],
        [s.first for s in stretches],
        [s.last for s in stretches],
        user_id,
    )
    found: dict[str, list[str]] = {}
    for r in rows:
        found.setdefault(r["room_id"], []).append(r["membership"] or "leave")
    return found
