"""The append-only list of each room: events as canonical bytes, ordered by position.

Order is decided here and nowhere else: `lock_head` takes the room's row, `append` writes at the
next positions, and the unique indexes on (room, position), (room, prev) and (room, LPDU)
are the backstop that makes a fork or a double impossible by shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lmserver.storage.database import Executor
from lmserver.storage.holds import FORKED, RESTORED


@dataclass(frozen=True, slots=True)
class RoomRow:
    """A room we hold a list of. Positions of a participant start at its join."""

    room_id: str
    room_version: str
    hub_server: str
    create_event_id: str
    head_position: int
    head_event_id: str
    min_position: int
    hold: str | None = None
    """Why it may not be extended; see storage/holds.py."""
    has_erasures: bool = False
    """Whether there may be rows of it in storage/erasures.py; asked for where rooms are read for users."""

    @property
    def held(self) -> bool:
        return self.hold in (RESTORED, FORKED)


class StoredEvent(NamedTuple):
    """An event as stored; `pdu` is exactly what was signed. `position` is None for an outlier:
    a state event known from a join that has no place in our part of the list."""

    room_id: str
    event_id: str
    position: int | None
    pdu: bytes
    soft_failed: str | None
    redacted_by: str | None
    received_ts: int
    stream_xid: int


@dataclass(slots=True)
class NewEvent:
    """A row to write; `text` is what it is found by. Not frozen, which doubles the cost of making one
    for each event."""

    event_id: str
    position: int | None
    prev_event_id: str | None
    lpdu_hash: str | None
    type: str
    state_key: str | None
    sender: str
    pdu: bytes
    soft_failed: str | None = None
    text: str | None = None


def _room(row: Any) -> RoomRow:
    return RoomRow(*row)


def _event(row: Any) -> StoredEvent:
    return StoredEvent(*(row[name] for name in StoredEvent._fields))


async def room(db: Executor, room_id: str) -> RoomRow | None:
    row = await db.fetchrow(
        "SELECT room_id, room_version, hub_server, create_event_id, head_position, head_event_id,"
        " min_position, hold FROM rooms WHERE room_id = $1",
        room_id,
    )
    return None if row is None else _room(row)


async def room_ids(db: Executor) -> list[str]:
    """Every room we hold, in a stable order."""
    return [r["room_id"] for r in await db.fetch("SELECT room_id FROM rooms ORDER BY room_id")]


async def lock_head(db: Executor, room_id: str) -> RoomRow | None:
    """Take the room's row for the rest of the transaction: whoever holds it may append."""
    row = await db.fetchrow(
        "SELECT room_id, room_version, hub_server, create_event_id, head_position, head_event_id,"
        " min_position, hold FROM rooms WHERE room_id = $1 FOR UPDATE",
        room_id,
    )
    return None if row is None else _room(row)


async def create_room(db: Executor, row: RoomRow, now_ms: int) -> None:
    """Raises UniqueViolation when the room ID is taken: the first create event stands."""
    await db.execute(
        "INSERT INTO rooms (room_id, room_version, hub_server, create_event_id, head_position,"
        " head_event_id, min_position, created_ts) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        row.room_id,
        row.room_version,
        row.hub_server,
        row.create_event_id,
        row.head_position,
        row.head_event_id,
        row.min_position,
        now_ms,
    )


async def append(
    db: Executor, room_id: str, events: Sequence[NewEvent], now_ms: int, *, after: str | None = None
) -> int:
    """Write events at consecutive positions and move the head to the last, in one statement; the caller
    holds the head. `after` is the event one position below the first of them, None where the list
    begins. Returns the transaction's ID, the stream position readers wait for.

    A predecessor is stored only where it is not the event one position below: for most events the
    position says it, and costs nothing.
    """
    first, last = events[0], events[-1]
    if [e.prev_event_id for e in events[1:]] != [e.event_id for e in events[:-1]]:
        raise ValueError("the events do not follow one another")
    xid: int = await db.fetchval(
        "WITH added AS (INSERT INTO events (room_id, event_id, position, prev_event_id, lpdu_hash, type,"
        " state_key, sender, pdu, soft_failed, received_ts, words)"
        " SELECT $1, n.event_id, $3::bigint + n.place - 1, CASE n.place WHEN 1 THEN $4::text END,"
        " n.lpdu_hash, n.type, n.state_key, n.sender, n.pdu, n.soft_failed, $2,"
        " to_tsvector('simple', n.text)"
        " FROM unnest($7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::bytea[],"
        " $13::text[], $14::text[]) WITH ORDINALITY"
        " AS n (event_id, lpdu_hash, type, state_key, sender, pdu, soft_failed, text, place))"
        " UPDATE rooms SET head_position = $5, head_event_id = $6 WHERE room_id = $1"
        " RETURNING pg_current_xact_id()::text::bigint",
        room_id,
        now_ms,
        first.position,
        None if first.prev_event_id == after else first.prev_event_id,
        last.position,
        last.event_id,
        [e.event_id for e in events],
        [e.lpdu_hash for e in events],
        [e.type for e in events],
        [e.state_key for e in events],
        [e.sender for e in events],
        [e.pdu for e in events],
        [e.soft_failed for e in events],
        [e.text for e in events],
    )
    return xid


async def add_outliers(db: Executor, room_id: str, events: Sequence[NewEvent], now_ms: int) -> None:
    """State events that a join brought along; what we have already stays as it is."""
    await db.execute(
        "INSERT INTO events (room_id, event_id, position, prev_event_id, lpdu_hash, type, state_key,"
        " sender, pdu, received_ts)"
        " SELECT $1, n.event_id, NULL, NULL, n.lpdu_hash, n.type, n.state_key, n.sender, n.pdu, $2"
        " FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[])"
        " AS n (event_id, lpdu_hash, type, state_key, sender, pdu)"
        " ON CONFLICT DO NOTHING",
        room_id,
        now_ms,
        [e.event_id for e in events],
        [e.lpdu_hash for e in events],
        [e.type for e in events],
        [e.state_key for e in events],
        [e.sender for e in events],
        [e.pdu for e in events],
    )


async def set_public(db: Executor, room_id: str, public: bool) -> None:
    """Note whether anybody may join or read the room; the caller holds the head."""
    await db.execute(
        "UPDATE rooms SET is_public = $2 WHERE room_id = $1 AND is_public <> $2", room_id, public
    )


async def known_lpdus(
    db: Executor, room_id: str, keys: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], tuple[str, int | None]]:
    """Of these LPDUs (hash, sender) the ones the room has: key to (event ID, position)."""
    wanted = list(keys)
    rows = await db.fetch(
        # LATERAL with a LIMIT is looked up key by key, whatever the planner believes of the room's size.
        "SELECT e.* FROM unnest($2::text[], $3::text[]) AS k (lpdu_hash, sender) CROSS JOIN LATERAL"
        " (SELECT lpdu_hash, sender, event_id, position FROM events WHERE room_id = $1"
        " AND lpdu_hash = k.lpdu_hash AND sender = k.sender LIMIT 1) AS e",
        room_id,
        [lpdu_hash for lpdu_hash, _ in wanted],
        [sender for _, sender in wanted],
    )
    return {(r["lpdu_hash"], r["sender"]): (r["event_id"], r["position"]) for r in rows}


async def known_events(db: Executor, room_id: str, event_ids: Iterable[str]) -> dict[str, int | None]:
    """Of these event IDs the ones the room has: ID to position (None for an outlier)."""
    rows = await db.fetch(
        "SELECT event_id, position FROM events WHERE event_id = ANY($2::text[]) AND room_id = $1",
        room_id,
        list(event_ids),
    )
    return {r["event_id"]: r["position"] for r in rows}


async def successors(db: Executor, room_id: str, event_ids: Iterable[str]) -> dict[str, str]:
    """Of these events the ones another event of the list follows: ID to the follower's."""
    rows = await db.fetch(
        "SELECT prev_event_id AS prev, event_id FROM events"
        " WHERE room_id = $1 AND prev_event_id = ANY($2::text[])"
        " UNION ALL SELECT k.event_id, n.event_id FROM unnest($2::text[]) AS k (event_id)"
        " JOIN events AS e ON e.event_id = k.event_id AND e.room_id = $1"
        " CROSS JOIN LATERAL (SELECT event_id FROM events WHERE room_id = $1 AND position = e.position + 1"
        " AND prev_event_id IS NULL LIMIT 1) AS n",
        room_id,
        list(event_ids),
    )
    return {r["prev"]: r["event_id"] for r in rows}


async def any_soft_failed(db: Executor, room_id: str, event_ids: Iterable[str]) -> bool:
    """Whether any of these events is in the room and was refused."""
    found: bool = await db.fetchval(
        "SELECT EXISTS (SELECT FROM events WHERE event_id = ANY($2::text[]) AND room_id = $1"
        " AND soft_failed IS NOT NULL)",
        room_id,
        list(event_ids),
    )
    return found


async def event(db: Executor, event_id: str, room_id: str | None = None) -> StoredEvent | None:
    """One event by its ID, in the room given or wherever it is."""
    row = await db.fetchrow(
        "SELECT room_id, event_id, position, pdu, soft_failed, redacted_by, received_ts,"
        " stream_xid::text::bigint AS stream_xid FROM events"
        " WHERE event_id = $1 AND ($2::text IS NULL OR room_id = $2)",
        event_id,
        room_id,
    )
    return None if row is None else _event(row)


async def events_by_id(db: Executor, room_id: str, event_ids: Iterable[str]) -> list[StoredEvent]:
    rows = await db.fetch(
        "SELECT room_id, event_id, position, pdu, soft_failed, redacted_by, received_ts,"
        " stream_xid::text::bigint AS stream_xid FROM events"
        " WHERE event_id = ANY($2::text[]) AND room_id = $1",
        room_id,
        list(event_ids),
    )
    return [_event(r) for r in rows]


async def event_position(db: Executor, room_id: str, event_id: str) -> int | None:
    """The event's place in the room's list; None when it has none or is not in the room."""
    position: int | None = await db.fetchval(
        "SELECT position FROM events WHERE event_id = $2 AND room_id = $1", room_id, event_id
    )
    return position


async def events_between(
    db: Executor, room_id: str, after: int, upto: int, limit: int, *, newest_first: bool
) -> list[StoredEvent]:
    """Events at positions in (after, upto], at most `limit`, in the order asked for."""
    if newest_first:
        rows = await db.fetch(
            "SELECT room_id, event_id, position, pdu, soft_failed, redacted_by, received_ts,"
            " stream_xid::text::bigint AS stream_xid FROM events"
            " WHERE room_id = $1 AND position > $2 AND position <= $3"
            " ORDER BY position DESC LIMIT $4",
            room_id,
            after,
            upto,
            limit,
        )
    else:
        rows = await db.fetch(
            "SELECT room_id, event_id, position, pdu, soft_failed, redacted_by, received_ts,"
            " stream_xid::text::bigint AS stream_xid FROM events"
            " WHERE room_id = $1 AND position > $2 AND position <= $3"
            " ORDER BY position LIMIT $4",
            room_id,
            after,
            upto,
            limit,
        )
    return [_event(r) for r in rows]


async def mark_redacted(db: Executor, room_id: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Note (target, redaction) pairs; the stored bytes stay, readers prune. A search finds them no more."""
    await db.execute(
        "UPDATE events SET redacted_by = r.redaction, words = NULL"
        " FROM unnest($2::text[], $3::text[]) AS r (target, redaction)"
        " WHERE event_id = r.target AND room_id = $1 AND redacted_by IS NULL",
        room_id,
        [target for target, _ in pairs],
        [redaction for _, redaction in pairs],
    )


async def remember_redactions(db: Executor, room_id: str, rows: Sequence[tuple[str, str, bool, str]]) -> None:
    """Keep (target, redaction, by a moderator, its sender) for targets not here yet: history that
    is backfilled later must arrive redacted."""
    await db.execute(
        "INSERT INTO redactions (room_id, redacts, event_id, by_moderator, sender)"
        " SELECT $1, n.* FROM unnest($2::text[], $3::text[], $4::boolean[], $5::text[]) AS n"
        " ON CONFLICT DO NOTHING",
        room_id,
        [target for target, _, _, _ in rows],
        [redaction for _, redaction, _, _ in rows],
        [moderator for _, _, moderator, _ in rows],
        [sender for _, _, _, sender in rows],
    )


async def event_senders(db: Executor, room_id: str, event_ids: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Event ID to (sender, type) for the events of this room among those given."""
    rows = await db.fetch(
        "SELECT event_id, sender, type FROM events WHERE event_id = ANY($2::text[]) AND room_id = $1",
        room_id,
        list(event_ids),
    )
    return {r["event_id"]: (r["sender"], r["type"]) for r in rows}


@dataclass(frozen=True, slots=True)
class IndexedEvent:
    """An event with the columns that repeat what its bytes say: what `verify` compares."""

    event_id: str
    position: int | None
    prev_event_id: str | None
    lpdu_hash: str | None
    type: str
    state_key: str | None
    sender: str
    pdu: bytes
    soft_failed: str | None
    backfilled: bool


async def indexed_events(db: Executor, room_id: str, after: int, limit: int) -> list[IndexedEvent]:
    """Events in list order from beyond a position."""
    rows = await db.fetch(
        "SELECT e.event_id, e.position, coalesce(e.prev_event_id, b.event_id) AS prev_event_id, e.lpdu_hash,"
        " e.type, e.state_key, e.sender, e.pdu, e.soft_failed, e.backfilled FROM events AS e"
        " LEFT JOIN events AS b ON b.room_id = $1 AND b.position = e.position - 1"
        " WHERE e.room_id = $1 AND e.position > $2 ORDER BY e.position LIMIT $3",
        room_id,
        after,
        limit,
    )
    return [IndexedEvent(*(r[name] for name in IndexedEvent.__slots__)) for r in rows]


async def outliers(db: Executor, room_id: str) -> list[IndexedEvent]:
    """State events known from a join, without a place in our part of the list."""
    rows = await db.fetch(
        "SELECT event_id, position, prev_event_id, lpdu_hash, type, state_key, sender, pdu, soft_failed,"
        " backfilled FROM events WHERE room_id = $1 AND position IS NULL ORDER BY event_id",
        room_id,
    )
    return [IndexedEvent(*(r[name] for name in IndexedEvent.__slots__)) for r in rows]
