"""Questions readers ask about rooms: as of a stream position, or about one user.

Every query that bounds itself by a stream position walks the position index from the newest end
and stops at the first older event, so its cost is what is new and never the room's history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmserver.storage.database import Executor
from lmserver.storage.room_log import StoredEvent


@dataclass(frozen=True, slots=True)
class MemberEntry:
    """A user's member event in a room, and when it was committed."""

    room_id: str
    membership: str
    event_id: str
    from_position: int
    stream_xid: int


@dataclass(frozen=True, slots=True)
class RoomSpan:
    """A room's last positions before two stream positions; None where it had none."""

    room_id: str
    since: int | None
    upto: int


@dataclass(frozen=True, slots=True)
class MemberChange:
    """A user's membership before and after one member event."""

    room_id: str
    user_id: str
    before: str
    after: str


def _event(row: Any) -> StoredEvent:
    return StoredEvent(*(row[name] for name in StoredEvent._fields))


def _member(row: Any) -> MemberEntry:
    return MemberEntry(
        row["room_id"], row["membership"] or "leave", row["event_id"], row["from_position"], row["stream_xid"]
    )


async def stream_positions(db: Executor) -> tuple[int, int]:
    """(settled, next): commits below `settled` can be read, all commits so far are below `next`."""
    row = await db.fetchrow(
        "SELECT pg_snapshot_xmin(s)::text::bigint AS settled, pg_snapshot_xmax(s)::text::bigint AS next"
        " FROM pg_current_snapshot() AS s"
    )
    return row["settled"], row["next"]


async def sync_positions(db: Executor) -> tuple[int, int, int]:
    """The same, and the epoch: another one means that positions of before mean nothing now."""
    row = await db.fetchrow(
        "SELECT pg_snapshot_xmin(s)::text::bigint AS settled, pg_snapshot_xmax(s)::text::bigint AS next,"
        " coalesce((SELECT epoch FROM restore_guard), 0) AS epoch FROM pg_current_snapshot() AS s"
    )
    return row["settled"], row["next"], row["epoch"]


async def memberships_at(db: Executor, user_id: str, upto: int) -> list[MemberEntry]:
    """The user's membership in every room as it was before a stream position."""
    rows = await db.fetch(
        "SELECT s.room_id, s.membership, s.event_id, s.from_position,"
        " e.stream_xid::text::bigint AS stream_xid FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.state_key = $1 AND s.type = 'm.room.member' AND s.to_position IS NULL"
        " ORDER BY s.room_id",
        user_id,
    )
    entries = [_member(r) for r in rows]
    settled: list[MemberEntry] = []
    for entry in entries:
        if entry.stream_xid < upto:
            settled.append(entry)
            continue
        earlier = await membership_before(db, entry.room_id, user_id, upto)
        if earlier is not None:
            settled.append(earlier)
    return settled


async def membership_before(db: Executor, room_id: str, user_id: str, upto: int) -> MemberEntry | None:
    """The user's last member event in the room committed before a stream position."""
    row = await db.fetchrow(
        "SELECT s.room_id, s.membership, s.event_id, s.from_position,"
        " e.stream_xid::text::bigint AS stream_xid FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id = $1 AND s.type = 'm.room.member' AND s.state_key = $2"
        " AND e.stream_xid < $3::text::xid8 ORDER BY s.from_position DESC LIMIT 1",
        room_id,
        user_id,
        str(upto),
    )
    return None if row is None else _member(row)


async def spans(db: Executor, room_ids: Sequence[str], since: int, upto: int) -> list[RoomSpan]:
    """Rooms with events in the stream interval [since, upto), as intervals of positions."""
    rows = await db.fetch(
        "SELECT w.room_id, a.position AS since, b.position AS upto FROM unnest($1::text[]) AS w (room_id)"
        " LEFT JOIN LATERAL (SELECT position FROM events WHERE events.room_id = w.room_id"
        " AND position IS NOT NULL AND stream_xid < $2::text::xid8"
        " ORDER BY position DESC LIMIT 1) AS a ON true"
        " JOIN LATERAL (SELECT position FROM events WHERE events.room_id = w.room_id"
        " AND position IS NOT NULL AND stream_xid < $3::text::xid8"
        " ORDER BY position DESC LIMIT 1) AS b ON true"
        " WHERE a.position IS DISTINCT FROM b.position",
        list(room_ids),
        str(since),
        str(upto),
    )
    return [RoomSpan(r["room_id"], r["since"], r["upto"]) for r in rows]


async def position_before(db: Executor, room_id: str, upto: int) -> int | None:
    """The room's last position committed before a stream position."""
    position: int | None = await db.fetchval(
        "SELECT position FROM events WHERE room_id = $1 AND position IS NOT NULL"
        " AND stream_xid < $2::text::xid8 ORDER BY position DESC LIMIT 1",
        room_id,
        str(upto),
    )
    return position


async def member_events(
    db: Executor, room_id: str, position: int, user_ids: Sequence[str]
) -> list[StoredEvent]:
    """The member events of some users in the state before `position`."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id = $1 AND s.type = 'm.room.member' AND s.state_key = ANY($3::text[])"
        " AND s.from_position < $2 AND (s.to_position IS NULL OR s.to_position >= $2)"
        " ORDER BY s.from_position, s.state_key",
        room_id,
        position,
        list(user_ids),
    )
    return [_event(r) for r in rows]


async def members_at(db: Executor, room_id: str, position: int) -> list[tuple[str, StoredEvent]]:
    """(membership, event) of everybody in the state before `position`."""
    rows = await db.fetch(
        "SELECT s.membership, e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by,"
        " e.received_ts, e.stream_xid::text::bigint AS stream_xid FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id = $1 AND s.type = 'm.room.member'"
        " AND s.from_position < $2 AND (s.to_position IS NULL OR s.to_position >= $2)"
        " ORDER BY s.from_position, s.state_key",
        room_id,
        position,
    )
    return [(r["membership"] or "leave", _event(r)) for r in rows]


async def joined_at(db: Executor, room_id: str, position: int) -> list[str]:
    """The users joined in the state before `position`."""
    rows = await db.fetch(
        "SELECT state_key FROM room_state WHERE room_id = $1 AND type = 'm.room.member'"
        " AND membership = 'join' AND from_position < $2"
        " AND (to_position IS NULL OR to_position >= $2) ORDER BY state_key",
        room_id,
        position,
    )
    return [r["state_key"] for r in rows]


async def state_without_members(db: Executor, room_id: str, position: int) -> list[StoredEvent]:
    """The state before `position` but for member events: what lazy loading starts from."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid FROM room_state AS s"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " WHERE s.room_id = $1 AND s.type <> 'm.room.member'"
        " AND s.from_position < $2 AND (s.to_position IS NULL OR s.to_position >= $2)"
        " ORDER BY s.from_position, e.event_id",
        room_id,
        position,
    )
    return [_event(r) for r in rows]


async def member_changes(db: Executor, intervals: Sequence[RoomSpan]) -> list[MemberChange]:
    """Member events within intervals of positions, in each room's order."""
    rows = await db.fetch(
        "SELECT s.room_id, s.state_key, p.membership AS before, s.membership AS after"
        " FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS w (room_id, since, upto)"
        " JOIN room_state AS s ON s.room_id || '' = w.room_id AND s.from_position > w.since"
        " AND s.from_position <= w.upto AND s.from_position >> 8 BETWEEN w.since >> 8 AND w.upto >> 8"
        " AND s.type = 'm.room.member'"
        " LEFT JOIN room_state AS p ON p.room_id = s.room_id AND p.type = s.type"
        " AND p.state_key = s.state_key AND p.to_position = s.from_position"
        " ORDER BY s.room_id, s.from_position",
        [i.room_id for i in intervals],
        [-1 if i.since is None else i.since for i in intervals],
        [i.upto for i in intervals],
    )
    return [
        MemberChange(r["room_id"], r["state_key"], r["before"] or "leave", r["after"] or "leave")
        for r in rows
    ]


async def first_members(db: Executor, room_id: str, position: int, limit: int) -> list[str]:
    """The longest-standing joined or invited users in the state before `position`."""
    rows = await db.fetch(
        "SELECT state_key FROM room_state WHERE room_id = $1 AND type = 'm.room.member'"
        " AND membership IN ('join', 'invite') AND from_position < $2"
        " AND (to_position IS NULL OR to_position >= $2) ORDER BY from_position, state_key LIMIT $3",
        room_id,
        position,
        limit,
    )
    return [r["state_key"] for r in rows]


async def member_counts_at(db: Executor, room_id: str, position: int) -> tuple[int, int]:
    """(joined, invited) users in the state before `position`."""
    row = await db.fetchrow(
        "SELECT count(*) FILTER (WHERE membership = 'join') AS joined,"
        " count(*) FILTER (WHERE membership = 'invite') AS invited FROM room_state"
        " WHERE room_id = $1 AND type = 'm.room.member'"
        " AND from_position < $2 AND (to_position IS NULL OR to_position >= $2)",
        room_id,
        position,
    )
    return row["joined"], row["invited"]


async def sharing_a_room(db: Executor, user_id: str, others: Sequence[str]) -> set[str]:
    """Of these users the ones who are joined to a room the user is joined to."""
    rows = await db.fetch(
        "SELECT DISTINCT o.state_key AS user_id FROM room_state AS mine JOIN room_state AS o"
        " ON o.room_id = mine.room_id AND o.type = 'm.room.member' AND o.membership = 'join'"
        " AND o.to_position IS NULL AND o.state_key = ANY($2::text[])"
        " WHERE mine.state_key = $1 AND mine.type = 'm.room.member' AND mine.membership = 'join'"
        " AND mine.to_position IS NULL",
        user_id,
        list(others),
    )
    return {r["user_id"] for r in rows}
