"""Rooms that operators closed to their users (`blocked_rooms`), and rooms that are being deleted.

A deletion that has not ended is found here after a crash and goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.storage.database import Connection, Executor

LEAVING: Final = "shutting_down"
DELETING: Final = "purging"
COMPLETE: Final = "complete"
FAILED: Final = "failed"
MAX_KICKED: Final = 1000
"""Names of users kept with a deletion."""


@dataclass(frozen=True, slots=True)
class Purge:
    """One deletion. `deletes` false: the users leave and the room stays; `forced`: also without its hub.
    `kicked` are users that left for it, the first MAX_KICKED; `removed` rows; times in ms."""

    delete_id: str
    room_id: str
    requested_by: str
    deletes: bool
    forced: bool
    status: str
    kicked: Sequence[str]
    aliases: Sequence[str]
    removed: int
    error: str | None
    started_ts: int
    ended_ts: int | None


def _purge(row: Any) -> Purge:
    return Purge(*(row[name] for name in Purge.__slots__))


# -- closed to our users ------------------------------------------------------------------------------


async def block(db: Executor, room_id: str, by: str, now_ms: int) -> None:
    """Nobody of ours joins the room; who closed it first stands."""
    await db.execute(
        "INSERT INTO blocked_rooms (room_id, blocked_by, created_ts) VALUES ($1, $2, $3)"
        " ON CONFLICT DO NOTHING",
        room_id,
        by,
        now_ms,
    )


async def unblock(db: Executor, room_id: str) -> bool:
    """Whether it was closed."""
    return await db.execute("DELETE FROM blocked_rooms WHERE room_id = $1", room_id) == "DELETE 1"


async def blocked_by(db: Executor, room_id: str) -> str | None:
    """Who closed the room; None for one that is open."""
    by: str | None = await db.fetchval("SELECT blocked_by FROM blocked_rooms WHERE room_id = $1", room_id)
    return by


async def is_closed(db: Executor, room_id: str) -> bool:
    """Whether nobody of ours may join: it is closed, or being deleted."""
    found: bool = await db.fetchval(
        "SELECT EXISTS (SELECT FROM blocked_rooms WHERE room_id = $1)"
        " OR EXISTS (SELECT FROM room_purges WHERE room_id = $1 AND ended_ts IS NULL)",
        room_id,
    )
    return found


# -- deletions ----------------------------------------------------------------------------------------


async def begin(
    db: Executor, delete_id: str, room_id: str, by: str, *, deletes: bool, forced: bool, now_ms: int
) -> None:
    """Raises UniqueViolation while the room is being deleted."""
    await db.execute(
        "INSERT INTO room_purges (delete_id, room_id, requested_by, deletes, forced, status, aliases,"
        " started_ts) SELECT $1, $2, $3, $4, $5, 'shutting_down', coalesce((SELECT array_agg(alias"
        " ORDER BY alias) FROM room_aliases WHERE room_id = $2), '{}'), $6",
        delete_id,
        room_id,
        by,
        deletes,
        forced,
        now_ms,
    )


async def active(db: Executor, limit: int) -> list[Purge]:
    """Those that have not ended, the oldest first."""
    rows = await db.fetch(
        "SELECT delete_id, room_id, requested_by, deletes, forced, status, kicked, aliases, removed, error,"
        " started_ts, ended_ts FROM room_purges WHERE ended_ts IS NULL ORDER BY started_ts, delete_id"
        " LIMIT $1",
        limit,
    )
    return [_purge(row) for row in rows]


async def one(db: Executor, delete_id: str) -> Purge | None:
    row = await db.fetchrow(
        "SELECT delete_id, room_id, requested_by, deletes, forced, status, kicked, aliases, removed, error,"
        " started_ts, ended_ts FROM room_purges WHERE delete_id = $1",
        delete_id,
    )
    return None if row is None else _purge(row)


async def of_room(db: Executor, room_id: str) -> list[Purge]:
    """All that are remembered, the newest first."""
    rows = await db.fetch(
        "SELECT delete_id, room_id, requested_by, deletes, forced, status, kicked, aliases, removed, error,"
        " started_ts, ended_ts FROM room_purges WHERE room_id = $1 ORDER BY started_ts DESC LIMIT 100",
        room_id,
    )
    return [_purge(row) for row in rows]


async def note_left(db: Executor, delete_id: str, user_ids: Sequence[str], error: str | None) -> None:
    """Users that have left for it, and what keeps others."""
    await db.execute(
        "UPDATE room_purges SET kicked = (kicked || $2::text[])[1:1000], error = $3 WHERE delete_id = $1",
        delete_id,
        list(user_ids),
        error,
    )


async def go_on(db: Executor, delete_id: str, removed: int) -> None:
    """The users are gone, and so many rows."""
    await db.execute(
        "UPDATE room_purges SET status = 'purging', removed = removed + $2 WHERE delete_id = $1",
        delete_id,
        removed,
    )


async def end(db: Executor, delete_id: str, status: str, now_ms: int) -> None:
    await db.execute(
        "UPDATE room_purges SET status = $2, ended_ts = $3 WHERE delete_id = $1", delete_id, status, now_ms
    )


async def forget(db: Executor, before_ms: int) -> None:
    """Deletions that ended long ago."""
    await db.execute("DELETE FROM room_purges WHERE ended_ts < $1", before_ms)


# -- what has to happen first -------------------------------------------------------------------------


async def ours_in(db: Executor, room_id: str, our_name: str, after: str, limit: int) -> list[tuple[str, str]]:
    """(user, membership) of our users who are in the room, invited or knocking, by user ID."""
    rows = await db.fetch(
        "SELECT state_key, membership FROM room_state WHERE room_id = $1 AND type = 'm.room.member'"
        " AND to_position IS NULL AND membership IN ('join', 'invite', 'knock')"
        " AND substr(state_key, strpos(state_key, ':') + 1) = $2 AND state_key > $3"
        " ORDER BY state_key LIMIT $4",
        room_id,
        our_name,
        after,
        limit,
    )
    return [(row["state_key"], row["membership"]) for row in rows]


async def is_owed(db: Executor, room_id: str) -> bool:
    """Whether servers have not yet taken what they are to get of the room."""
    found: bool = await db.fetchval(
        "SELECT EXISTS (SELECT FROM outbound_ranges AS r JOIN rooms AS m ON m.room_id = r.room_id"
        " WHERE r.room_id = $1 AND r.acked_position < least(m.head_position, r.until_position))",
        room_id,
    )
    return found


# -- the rows -----------------------------------------------------------------------------------------


async def remove_room(db: Connection, room_id: str, our_name: str) -> None:
    """The room is no longer known, to our users least of all. What is left has no room to be found by; it
    goes by `remove_rows`."""
    await db.execute("DELETE FROM rooms WHERE room_id = $1", room_id)
    members = await db.fetch(
        "DELETE FROM room_state WHERE room_id = $1 AND type = 'm.room.member'"
        " AND substr(state_key, strpos(state_key, ':') + 1) = $2 RETURNING state_key",
        room_id,
        our_name,
    )
    users = sorted({row["state_key"] for row in members})
    for query in (
        "DELETE FROM account_data WHERE room_id = $1 AND user_id = ANY($2::text[])",
        "DELETE FROM forgotten_rooms WHERE room_id = $1 AND user_id = ANY($2::text[])",
        "DELETE FROM notice_rooms WHERE room_id = $1 AND user_id = ANY($2::text[])",
        "DELETE FROM push_queue WHERE room_id = $1 AND user_id = ANY($2::text[])",
        "DELETE FROM sliding_rooms WHERE room_id = $1 AND user_id = ANY($2::text[])",
        "DELETE FROM unread_tallies WHERE room_id = $1 AND user_id = ANY($2::text[])",
    ):
        await db.execute(query, room_id, users)
    for query in (
        "DELETE FROM appservice_rooms WHERE room_id = $1",
        "DELETE FROM erasures WHERE room_id = $1",
        "DELETE FROM published_rooms WHERE room_id = $1",
        "DELETE FROM push_rooms WHERE room_id = $1",
        "DELETE FROM room_aliases WHERE room_id = $1",
        "DELETE FROM room_gaps WHERE room_id = $1",
        "DELETE FROM outbound_ranges WHERE room_id = $1",
    ):
        await db.execute(query, room_id)


async def remove_rows(db: Executor, room_id: str, limit: int) -> int:
    """Some of what is left, at most `limit` rows of a table; how many, 0 when nothing is left."""
    for query in (
        "DELETE FROM room_state WHERE ctid IN (SELECT ctid FROM room_state WHERE room_id = $1 LIMIT $2)",
        "DELETE FROM receipts WHERE ctid IN (SELECT ctid FROM receipts WHERE room_id = $1 LIMIT $2)",
        "DELETE FROM redactions WHERE ctid IN (SELECT ctid FROM redactions WHERE room_id = $1 LIMIT $2)",
        "DELETE FROM evidence WHERE ctid IN (SELECT ctid FROM evidence WHERE room_id = $1 LIMIT $2)",
        (
            "DELETE FROM outbound_lpdus WHERE ctid IN"
            " (SELECT ctid FROM outbound_lpdus WHERE room_id = $1 LIMIT $2)"
        ),
        (
            "DELETE FROM event_relations WHERE ctid IN"
            " (SELECT ctid FROM event_relations WHERE room_id = $1 LIMIT $2)"
        ),
        "DELETE FROM threads WHERE ctid IN (SELECT ctid FROM threads WHERE room_id = $1 LIMIT $2)",
        "DELETE FROM events WHERE ctid IN (SELECT ctid FROM events WHERE room_id = $1 LIMIT $2)",
    ):
        done = await db.execute(query, room_id, limit)
        removed = int(done.rsplit(" ", 1)[1])
        if removed:
            return removed
    return 0


# -- rooms that nobody here is in ---------------------------------------------------------------------


async def note_empty(db: Executor, our_name: str, after: str, limit: int, now_ms: int) -> str | None:
    """Look through `limit` rooms behind a room ID: note since when nobody of ours is in them, invited or
    knocking. The last room looked at, None when there are no more."""
    last: str | None = await db.fetchval(
        "WITH looked AS (SELECT r.room_id, r.empty_since, NOT EXISTS (SELECT FROM room_state AS s"
        " WHERE s.room_id = r.room_id AND s.type = 'm.room.member' AND s.to_position IS NULL"
        " AND s.membership IN ('join', 'invite', 'knock')"
        " AND substr(s.state_key, strpos(s.state_key, ':') + 1) = $1) AS empty FROM rooms AS r"
        " WHERE r.room_id > $2 ORDER BY r.room_id LIMIT $3),"
        " noted AS (UPDATE rooms AS r SET empty_since = CASE WHEN s.empty THEN $4::bigint END"
        " FROM looked AS s WHERE r.room_id = s.room_id"
        " AND s.empty IS DISTINCT FROM (r.empty_since IS NOT NULL))"
        " SELECT max(room_id) FROM looked",
        our_name,
        after,
        limit,
        now_ms,
    )
    return last


async def empty_since(db: Executor, our_name: str, before_ms: int, limit: int) -> list[str]:
    """Rooms that nobody of ours is in since before a time, that are not held or being deleted, and that
    no other server needs us for."""
    rows = await db.fetch(
        "SELECT r.room_id FROM rooms AS r WHERE r.empty_since < $2"
        " AND (r.hold IS NULL OR r.hold NOT IN ('restored', 'forked'))"
        " AND NOT EXISTS (SELECT FROM room_purges AS p WHERE p.room_id = r.room_id AND p.ended_ts IS NULL)"
        " AND NOT (r.hub_server = $1 AND EXISTS (SELECT FROM room_state AS s WHERE s.room_id = r.room_id"
        " AND s.type = 'm.room.member' AND s.to_position IS NULL AND s.membership IN ('join', 'invite')))"
        " ORDER BY r.empty_since LIMIT $3",
        our_name,
        before_ms,
        limit,
    )
    return [row["room_id"] for row in rows]
