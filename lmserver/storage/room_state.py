"""State of a linear room: an entry lives from its position to the one that replaced it.

No state groups: a state event costs one row and one closing update, state at any position is a
range test, and current state is the partial index `WHERE to_position IS NULL`. An entry set at
position q is in force for events at positions above q, up to and including its replacement's.

The other indexes hold keys that many rows share, which PostgreSQL stores once: an entry, for all its
lives, and 256 positions of a room. A query by positions asks for these as the index has them, by
`room_id || ''` and `from_position >> 8`, and then for its own: no other query shall use that index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lmserver.storage.database import Connection, Executor
from lmserver.storage.room_log import StoredEvent


@dataclass(frozen=True, slots=True)
class NewState:
    """A state entry that begins at `from_position`; `to_position` when its batch replaced it too."""

    type: str
    state_key: str
    event_id: str
    membership: str | None
    from_position: int
    to_position: int | None = None


class StateSpan(NamedTuple):
    """One entry's life: in force for events at positions in (from_position, to_position].

    `event_position` is the event's own place, None for one known only from the state that came
    with a join; `lived_before` then is the last position of the stay before that join.
    """

    from_position: int
    to_position: int | None
    event_id: str
    pdu: bytes
    event_position: int | None
    lived_before: int | None


@dataclass(frozen=True, slots=True)
class UserMembership:
    """A user's current member event in one room."""

    room_id: str
    membership: str
    event_id: str
    from_position: int


def _event(row: Any) -> StoredEvent:
    return StoredEvent(*(row[name] for name in StoredEvent._fields))


async def set_state(db: Connection, room_id: str, entries: Sequence[NewState]) -> None:
    """Close what the entries replace and begin them; the caller holds the room's head.

    Entries of one (type, state_key) come in list order, each but the last with its `to_position`.
    """
    first = {(e.type, e.state_key): e.from_position for e in reversed(entries)}
    # One by one: as a join, a plan made while the table was small compares each entry with the whole
    # state of the room (attack R14).
    await db.executemany(
        "UPDATE room_state SET to_position = $4"
        " WHERE room_id = $1 AND type = $2 AND state_key = $3 AND to_position IS NULL",
        [(room_id, type_, state_key, position) for (type_, state_key), position in first.items()],
    )
    await begin_state(db, room_id, entries)


async def begin_state(db: Executor, room_id: str, entries: Sequence[NewState]) -> None:
    """Begin entries that replace nothing."""
    await db.execute(
        "INSERT INTO room_state (room_id, type, state_key, event_id, membership, from_position, to_position)"
        " SELECT $1, n.* FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],"
        " $7::bigint[]) AS n",
        room_id,
        [e.type for e in entries],
        [e.state_key for e in entries],
        [e.event_id for e in entries],
        [e.membership for e in entries],
        [e.from_position for e in entries],
        [e.to_position for e in entries],
    )


async def close_all(db: Executor, room_id: str, at_position: int) -> None:
    """End every current entry: a rejoin brings the state anew."""
    await db.execute(
        "UPDATE room_state SET to_position = $2 WHERE room_id = $1 AND to_position IS NULL",
        room_id,
        at_position,
    )


async def state_at(db: Executor, room_id: str, position: int) -> list[StoredEvent]:
    """The state before the event at `position`; head + 1 gives the current state."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id = $1 AND s.from_position < $2"
        " AND (s.to_position IS NULL OR s.to_position >= $2)"
        " ORDER BY e.position NULLS FIRST, e.event_id",
        room_id,
        position,
    )
    return [_event(r) for r in rows]


async def state_after(
    db: Executor, room_id: str, position: int, after: tuple[int, str], limit: int
) -> list[tuple[int, StoredEvent]]:
    """A piece of the same: at most `limit` entries that come after (position set, event ID), with the
    positions that set them."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid, s.from_position FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id || '' = $1 AND s.from_position >> 8 BETWEEN $3::bigint >> 8 AND $2::bigint >> 8"
        " AND (s.from_position, s.event_id) > ($3, $4)"
        " AND s.from_position < $2 AND (s.to_position IS NULL OR s.to_position >= $2)"
        " ORDER BY s.from_position >> 8, s.from_position, s.event_id LIMIT $5",
        room_id,
        position,
        after[0],
        after[1],
        limit,
    )
    return [(r["from_position"], _event(r)) for r in rows]


async def current_state(db: Executor, room_id: str) -> list[StoredEvent]:
    """The state after the last event, through the partial index."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id = $1 AND s.to_position IS NULL"
        " ORDER BY e.position NULLS FIRST, e.event_id",
        room_id,
    )
    return [_event(r) for r in rows]


async def current_after(db: Executor, room_id: str, after: tuple[str, str], limit: int) -> list[StoredEvent]:
    """A piece of the same, by type and state key: at most `limit` entries from beyond `after`.

    Events are found by their ID alone: with statistics of a moment when there were few, PostgreSQL would go
    through all of the room's for each entry.
    """
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id || '' = s.room_id"
        " WHERE s.room_id = $1 AND s.to_position IS NULL AND (s.type, s.state_key) > ($2, $3)"
        " ORDER BY s.type, s.state_key LIMIT $4",
        room_id,
        after[0],
        after[1],
        limit,
    )
    return [_event(r) for r in rows]


async def state_changes(db: Executor, room_id: str, after: int, upto: int) -> list[StoredEvent]:
    """State events that took effect at positions in (after, upto], in order."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id || '' = $1 AND s.from_position > $2 AND s.from_position <= $3"
        " AND s.from_position >> 8 BETWEEN $2::bigint >> 8 AND $3::bigint >> 8"
        " ORDER BY s.from_position",
        room_id,
        after,
        upto,
    )
    return [_event(r) for r in rows]


async def state_entry(
    db: Executor, room_id: str, position: int, type_: str, state_key: str
) -> StoredEvent | None:
    """One entry of the state before `position`."""
    row = await db.fetchrow(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id = $1 AND s.type = $3 AND s.state_key = $4 AND s.from_position < $2"
        " AND (s.to_position IS NULL OR s.to_position >= $2)",
        room_id,
        position,
        type_,
        state_key,
    )
    return None if row is None else _event(row)


async def state_history(db: Executor, room_id: str, type_: str, state_key: str) -> list[StateSpan]:
    """Every life of one entry, oldest first: memberships of a user, history visibility."""
    rows = await db.fetch(
        "SELECT s.from_position, s.to_position, s.event_id, e.pdu, e.position AS event_position,"
        " CASE WHEN e.position IS NULL THEN (SELECT l.position FROM events AS l WHERE l.room_id = $1"
        " AND l.position < s.from_position AND NOT l.backfilled ORDER BY l.position DESC LIMIT 1)"
        " END AS lived_before FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id = $1 AND s.type = $2 AND s.state_key = $3 ORDER BY s.from_position",
        room_id,
        type_,
        state_key,
    )
    return [StateSpan(*r) for r in rows]


@dataclass(frozen=True, slots=True)
class MembershipSpan:
    """One life of a user's membership."""

    user_id: str
    membership: str
    from_position: int
    to_position: int | None


async def server_memberships(db: Executor, room_id: str, server: str) -> list[MembershipSpan]:
    """The membership history of all users of a server in a room, by position."""
    rows = await db.fetch(
        "SELECT state_key, membership, from_position, to_position FROM room_state"
        " WHERE room_id = $1 AND type = 'm.room.member'"
        " AND substr(state_key, strpos(state_key, ':') + 1) = $2"
        " ORDER BY from_position",
        room_id,
        server,
    )
    return [
        MembershipSpan(r["state_key"], r["membership"] or "leave", r["from_position"], r["to_position"])
        for r in rows
    ]


async def user_memberships(db: Executor, user_id: str) -> list[UserMembership]:
    """The user's current member state in every room that has one."""
    rows = await db.fetch(
        "SELECT room_id, membership, event_id, from_position FROM room_state"
        " WHERE state_key = $1 AND type = 'm.room.member' AND to_position IS NULL ORDER BY room_id",
        user_id,
    )
    return [
        UserMembership(r["room_id"], r["membership"] or "leave", r["event_id"], r["from_position"])
        for r in rows
    ]


async def joined_users(db: Executor, room_id: str) -> list[str]:
    rows = await db.fetch(
        "SELECT state_key FROM room_state WHERE room_id = $1 AND type = 'm.room.member'"
        " AND to_position IS NULL AND membership = 'join' ORDER BY state_key",
        room_id,
    )
    return [r["state_key"] for r in rows]


async def joined_of(db: Executor, room_id: str, user_ids: Iterable[str]) -> set[str]:
    """Of these users the ones who are joined to the room."""
    rows = await db.fetch(
        "SELECT state_key FROM room_state WHERE room_id = $1 AND type = 'm.room.member'"
        " AND to_position IS NULL AND membership = 'join' AND state_key = ANY($2::text[])",
        room_id,
        list(user_ids),
    )
    return {r["state_key"] for r in rows}


async def joined_rooms(db: Executor, user_id: str) -> list[str]:
    rows = await db.fetch(
        "SELECT room_id FROM room_state WHERE state_key = $1 AND type = 'm.room.member'"
        " AND membership = 'join' AND to_position IS NULL ORDER BY room_id",
        user_id,
    )
    return [r["room_id"] for r in rows]


async def servers_of_rooms(db: Executor, room_ids: Sequence[str]) -> set[str]:
    """Servers with a user joined to one of the rooms."""
    rows = await db.fetch(
        "SELECT DISTINCT substr(state_key, strpos(state_key, ':') + 1) AS server FROM room_state"
        " WHERE room_id = ANY($1::text[]) AND type = 'm.room.member' AND membership = 'join'"
        " AND to_position IS NULL",
        list(room_ids),
    )
    return {r["server"] for r in rows}


async def joined_servers(db: Executor, but: str, limit: int) -> list[str]:
    """Servers other than `but` with a user in any room, as far as we know."""
    rows = await db.fetch(
        "SELECT DISTINCT substring(state_key FROM position(':' IN state_key) + 1) AS server FROM room_state"
        " WHERE type = 'm.room.member' AND to_position IS NULL AND membership = 'join'"
        " AND substring(state_key FROM position(':' IN state_key) + 1) <> $1 ORDER BY server LIMIT $2",
        but,
        limit,
    )
    return [r["server"] for r in rows]


async def has_joined_user(db: Executor, room_id: str, server: str) -> bool:
    """Whether any user of the server is joined now."""
    found: bool = await db.fetchval(
        "SELECT EXISTS (SELECT 1 FROM room_state WHERE room_id = $1 AND type = 'm.room.member'"
        " AND to_position IS NULL AND membership = 'join'"
        " AND substr(state_key, strpos(state_key, ':') + 1) = $2)",
        room_id,
        server,
    )
    return found


async def member_counts(db: Executor, room_id: str) -> dict[str, int]:
    """Membership to the number of users that have it now."""
    rows = await db.fetch(
        "SELECT membership, count(*) AS n FROM room_state WHERE room_id = $1"
        " AND type = 'm.room.member' AND to_position IS NULL GROUP BY membership",
        room_id,
    )
    return {r["membership"] or "leave": r["n"] for r in rows}


async def all_entries(db: Executor, room_id: str) -> list[NewState]:
    """Every life of every entry, by type, state key and position: what `verify` checks."""
    rows = await db.fetch(
        "SELECT type, state_key, event_id, membership, from_position, to_position FROM room_state"
        " WHERE room_id = $1 ORDER BY type, state_key, from_position",
        room_id,
    )
    return [NewState(*(r[name] for name in NewState.__slots__)) for r in rows]
