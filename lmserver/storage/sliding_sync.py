"""What each connection of sliding sync has been sent.

A connection is known by (user, device, name). Its state at a position is, for each room, the row
with the highest position not above it. A position is final once its client comes back with it:
the next one is written over it, and everything else the connection had is deleted then, so there
are never more than two rows of a room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """`patterns` is opaque here, as is what was sent of a room: the engine's own encoding."""

    connection: int
    patterns: bytes
    used_ts: int


@dataclass(frozen=True, slots=True)
class PositionRow:
    """`request` is a digest of the request that was answered with it, `extensions` the ones it had."""

    request: bytes
    extensions: tuple[str, ...]


async def connection(
    db: Executor, user_id: str, device_id: str, conn_id: str, *, lock: bool = False
) -> ConnectionRow | None:
    """The connection of that name; with `lock`, for the rest of the transaction nobody else's."""
    if lock:
        row = await db.fetchrow(
            "SELECT connection, patterns, used_ts FROM sliding_connections"
            " WHERE user_id = $1 AND device_id = $2 AND conn_id = $3 FOR UPDATE",
            user_id,
            device_id,
            conn_id,
        )
    else:
        row = await db.fetchrow(
            "SELECT connection, patterns, used_ts FROM sliding_connections"
            " WHERE user_id = $1 AND device_id = $2 AND conn_id = $3",
            user_id,
            device_id,
            conn_id,
        )
    return None if row is None else ConnectionRow(row["connection"], bytes(row["patterns"]), row["used_ts"])


async def position(db: Executor, user_id: str, connection_id: int, number: int) -> PositionRow | None:
    row = await db.fetchrow(
        "SELECT request, extensions FROM sliding_positions"
        " WHERE user_id = $1 AND connection = $2 AND position = $3",
        user_id,
        connection_id,
        number,
    )
    return None if row is None else PositionRow(bytes(row["request"]), tuple(row["extensions"]))


async def rooms(db: Executor, user_id: str, connection_id: int, number: int) -> dict[str, bytes]:
    """What had been sent of each room at a position."""
    rows = await db.fetch(
        "SELECT DISTINCT ON (room_id) room_id, sent FROM sliding_rooms"
        " WHERE user_id = $1 AND connection = $2 AND position <= $3 ORDER BY room_id, position DESC",
        user_id,
        connection_id,
        number,
    )
    return {r["room_id"]: bytes(r["sent"]) for r in rows}


async def create(db: Executor, user_id: str, device_id: str, conn_id: str, now_ms: int) -> int:
    """A connection that has been sent nothing, in place of the one of that name."""
    await _delete(db, user_id, device_id, conn_id)
    number: int = await db.fetchval(
        "INSERT INTO sliding_connections (user_id, device_id, conn_id, patterns, used_ts)"
        " VALUES ($1, $2, $3, '[]', $4) ON CONFLICT (user_id, device_id, conn_id)"
        " DO UPDATE SET patterns = '[]', used_ts = excluded.used_ts RETURNING connection",
        user_id,
        device_id,
        conn_id,
        now_ms,
    )
    return number


async def _delete(db: Executor, user_id: str, device_id: str, conn_id: str) -> None:
    await db.execute(
        "WITH gone AS (DELETE FROM sliding_connections WHERE user_id = $1 AND device_id = $2"
        " AND conn_id = $3 RETURNING connection),"
        " positions AS (DELETE FROM sliding_positions AS p USING gone"
        " WHERE p.user_id = $1 AND p.connection = gone.connection)"
        " DELETE FROM sliding_rooms AS r USING gone"
        " WHERE r.user_id = $1 AND r.connection = gone.connection",
        user_id,
        device_id,
        conn_id,
    )


async def names_beyond(db: Executor, user_id: str, device_id: str, keep: int) -> list[str]:
    """The names of a device's connections but for the `keep` used last."""
    rows = await db.fetch(
        "SELECT conn_id FROM sliding_connections WHERE user_id = $1 AND device_id = $2"
        " ORDER BY used_ts DESC, connection DESC OFFSET $3",
        user_id,
        device_id,
        keep,
    )
    return [r["conn_id"] for r in rows]


async def drop(db: Executor, user_id: str, device_id: str, conn_ids: Sequence[str]) -> None:
    for conn_id in conn_ids:
        await _delete(db, user_id, device_id, conn_id)


async def settle(db: Executor, user_id: str, connection_id: int, number: int) -> None:
    """The client has the position: forget every other, and the rows that it replaced."""
    await db.execute(
        "DELETE FROM sliding_positions WHERE user_id = $1 AND connection = $2 AND position <> $3",
        user_id,
        connection_id,
        number,
    )
    await db.execute(
        "DELETE FROM sliding_rooms AS r WHERE r.user_id = $1 AND r.connection = $2 AND (r.position > $3"
        " OR EXISTS (SELECT FROM sliding_rooms AS n WHERE n.user_id = $1 AND n.connection = $2"
        " AND n.room_id = r.room_id AND n.position > r.position AND n.position <= $3))",
        user_id,
        connection_id,
        number,
    )


async def add_position(
    db: Executor,
    user_id: str,
    connection_id: int,
    row: PositionRow,
    sent: Mapping[str, bytes],
    patterns: bytes,
    now_ms: int,
) -> int:
    """The next position with what it changes; the caller has locked the connection."""
    number: int = await db.fetchval(
        "INSERT INTO sliding_positions (user_id, connection, request, extensions)"
        " VALUES ($1, $2, $3, $4) RETURNING position",
        user_id,
        connection_id,
        row.request,
        list(row.extensions),
    )
    await db.execute(
        "INSERT INTO sliding_rooms (user_id, connection, position, room_id, sent)"
        " SELECT $1, $2, $3, n.* FROM unnest($4::text[], $5::bytea[]) AS n",
        user_id,
        connection_id,
        number,
        list(sent),
        list(sent.values()),
    )
    await db.execute(
        "UPDATE sliding_connections SET patterns = $3, used_ts = $4 WHERE user_id = $1 AND connection = $2",
        user_id,
        connection_id,
        patterns,
        now_ms,
    )
    return number


async def touch(db: Executor, user_id: str, connection_id: int, now_ms: int) -> None:
    """The connection is in use."""
    await db.execute(
        "UPDATE sliding_connections SET used_ts = $3 WHERE user_id = $1 AND connection = $2",
        user_id,
        connection_id,
        now_ms,
    )


async def purge(db: Executor, before_ms: int) -> None:
    """Connections nobody used since, and those of devices that are no more."""
    await db.execute(
        "WITH gone AS (DELETE FROM sliding_connections AS c WHERE c.used_ts < $1 OR NOT EXISTS"
        " (SELECT FROM devices AS d WHERE d.user_id = c.user_id AND d.device_id = c.device_id)"
        " RETURNING c.user_id, c.connection),"
        " positions AS (DELETE FROM sliding_positions AS p USING gone"
        " WHERE p.user_id = gone.user_id AND p.connection = gone.connection)"
        " DELETE FROM sliding_rooms AS r USING gone"
        " WHERE r.user_id = gone.user_id AND r.connection = gone.connection",
        before_ms,
    )
