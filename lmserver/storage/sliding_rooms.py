"""What sliding sync asks of a user's rooms, all in one round trip each (see also room_batches.py).

Rooms go in as parallel arrays, and every lateral part walks an index from the wanted end and stops.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.storage.database import Executor
from lmserver.storage.room_batches import Stretch
from lmserver.storage.room_log import StoredEvent

LOWEST: Final = -(2**62)
"""Below every position."""


@dataclass(frozen=True, slots=True)
class ListedRoom:
    """A room of a user's list: their member event, and the newest event of the room; `was_in` is for
    rooms left, whether they had been joined."""

    room_id: str
    membership: str
    event_id: str
    sender: str
    from_position: int
    member_xid: int
    member_ts: int
    head_position: int
    head_xid: int
    was_in: bool


@dataclass(frozen=True, slots=True)
class StateWant:
    """Entries in force before position `at` and set above `after`; `type` or `state_key` None for any.
    Any type does not include member events, unless one is named by its key."""

    room_id: str
    at: int
    type: str | None
    state_key: str | None
    after: int = LOWEST


def _event(row: Any) -> StoredEvent:
    return StoredEvent(*(row[name] for name in StoredEvent._fields))


def _columns(stretches: Sequence[Stretch]) -> tuple[list[str], list[int], list[int]]:
    return [s.room_id for s in stretches], [s.first for s in stretches], [s.last for s in stretches]


async def of_user(db: Executor, user_id: str, also: Collection[str]) -> list[ListedRoom]:
    """The rooms of a user's list: those they are in, are invited to or knocked at, were removed from by
    somebody else and have not forgotten, and those of `also` that they left themselves."""
    rows = await db.fetch(
        "SELECT s.room_id, coalesce(s.membership, 'leave') AS membership, s.event_id, m.sender,"
        " s.from_position, m.stream_xid::text::bigint AS member_xid, m.received_ts AS member_ts,"
        " r.head_position, h.stream_xid::text::bigint AS head_xid,"
        " (s.membership IN ('leave', 'ban') AND EXISTS (SELECT FROM room_state AS j"
        " WHERE j.room_id = s.room_id AND j.type = 'm.room.member' AND j.state_key = $1"
        " AND j.membership = 'join')) AS was_in"
        " FROM room_state AS s"
        " JOIN events AS m ON m.event_id = s.event_id AND m.room_id = s.room_id"
        " JOIN rooms AS r ON r.room_id = s.room_id"
        " JOIN events AS h ON h.event_id = r.head_event_id AND h.room_id = r.room_id"
        " WHERE s.state_key = $1 AND s.type = 'm.room.member' AND s.to_position IS NULL"
        " AND (s.membership IN ('join', 'invite', 'knock')"
        " OR ((m.sender <> $1 OR s.room_id = ANY($2::text[])) AND NOT EXISTS"
        " (SELECT FROM forgotten_rooms AS f WHERE f.user_id = $1 AND f.room_id = s.room_id)))",
        user_id,
        list(also),
    )
    return [ListedRoom(*(r[name] for name in ListedRoom.__slots__)) for r in rows]


async def positions_before(
    db: Executor, wanted: Sequence[tuple[str, int]]
) -> dict[str, tuple[int, int] | None]:
    """For (room, stream position): the room's last (position, stream position) before it."""
    if not wanted:
        return {}
    rows = await db.fetch(
        "SELECT w.room_id, e.position, e.stream_xid::text::bigint AS stream_xid"
        " FROM unnest($1::text[], $2::text[]) AS w (room_id, before)"
        " LEFT JOIN LATERAL (SELECT position, stream_xid FROM events WHERE events.room_id = w.room_id"
        " AND position IS NOT NULL AND stream_xid < w.before::xid8"
        " ORDER BY position DESC LIMIT 1) AS e ON true",
        [room_id for room_id, _ in wanted],
        [str(before) for _, before in wanted],
    )
    return {r["room_id"]: None if r["position"] is None else (r["position"], r["stream_xid"]) for r in rows}


async def state_entries(
    db: Executor, wants: Sequence[StateWant]
) -> dict[str, dict[str, tuple[int, StoredEvent]]]:
    """Room ID to event ID to (position from which it counts, event), of all that is wanted.

    Three joins, so that each uses the index as far as it is told what to look for.
    """
    found: dict[str, dict[str, tuple[int, StoredEvent]]] = {}
    exact = [w for w in wants if w.type is not None and w.state_key is not None]
    of_type = [w for w in wants if w.type is not None and w.state_key is None]
    any_type = [w for w in wants if w.type is None]
    rows: list[Any] = []
    if exact:
        rows += await db.fetch(
            "SELECT s.from_position, e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by,"
            " e.received_ts, e.stream_xid::text::bigint AS stream_xid"
            " FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[])"
            " AS w (room_id, at, after, type, state_key) JOIN room_state AS s ON s.room_id = w.room_id"
            " AND s.type = w.type AND s.state_key = w.state_key AND s.from_position < w.at"
            " AND (s.to_position IS NULL OR s.to_position >= w.at) AND s.from_position > w.after"
            " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id",
            *_want_columns(exact),
        )
    if of_type:
        rows += await db.fetch(
            "SELECT s.from_position, e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by,"
            " e.received_ts, e.stream_xid::text::bigint AS stream_xid"
            " FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[])"
            " AS w (room_id, at, after, type, state_key) JOIN room_state AS s ON s.room_id = w.room_id"
            " AND s.type = w.type AND s.from_position < w.at"
            " AND (s.to_position IS NULL OR s.to_position >= w.at) AND s.from_position > w.after"
            " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id",
            *_want_columns(of_type),
        )
    if any_type:
        rows += await db.fetch(
            "SELECT s.from_position, e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by,"
            " e.received_ts, e.stream_xid::text::bigint AS stream_xid"
            " FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[])"
            " AS w (room_id, at, after, type, state_key) JOIN room_state AS s ON s.room_id = w.room_id"
            " AND s.from_position < w.at AND (s.to_position IS NULL OR s.to_position >= w.at)"
            " AND s.from_position > w.after AND CASE WHEN w.state_key IS NULL"
            " THEN s.type <> 'm.room.member' ELSE s.state_key = w.state_key END"
            " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id",
            *_want_columns(any_type),
        )
    for r in rows:
        found.setdefault(r["room_id"], {})[r["event_id"]] = (r["from_position"], _event(r))
    return found


def _want_columns(wants: Sequence[StateWant]) -> tuple[list[Any], ...]:
    return (
        [w.room_id for w in wants],
        [w.at for w in wants],
        [w.after for w in wants],
        [w.type for w in wants],
        [w.state_key for w in wants],
    )


async def with_member_changes(db: Executor, stretches: Sequence[Stretch]) -> set[str]:
    """The rooms in whose stretch a membership event took effect."""
    if not stretches:
        return set()
    rows = await db.fetch(
        "SELECT w.room_id FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS w (room_id, first, last)"
        " WHERE EXISTS (SELECT FROM room_state AS s WHERE s.room_id || '' = w.room_id"
        " AND s.from_position >= w.first AND s.from_position <= w.last"
        " AND s.from_position >> 8 BETWEEN w.first >> 8 AND w.last >> 8 AND s.type = 'm.room.member')",
        *_columns(stretches),
    )
    return {r["room_id"] for r in rows}


async def newest_of_types(
    db: Executor, stretches: Sequence[Stretch], types: Collection[str], most: int
) -> dict[str, int]:
    """When (ms) the newest event of one of these types came, looking through `most` positions."""
    if not stretches:
        return {}
    rows = await db.fetch(
        "SELECT w.room_id, e.received_ts FROM unnest($1::text[], $2::bigint[], $3::bigint[])"
        " AS w (room_id, first, last) CROSS JOIN LATERAL (SELECT received_ts FROM events"
        " WHERE events.room_id = w.room_id AND position > greatest(w.first - 1, w.last - $5)"
        " AND position <= w.last AND type = ANY($4::text[]) AND soft_failed IS NULL"
        " ORDER BY position DESC LIMIT 1) AS e",
        *_columns(stretches),
        list(types),
        most,
    )
    return {r["room_id"]: r["received_ts"] for r in rows}
