"""Messages between devices, kept until the device has acknowledged them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor

MAX_QUEUED = 10_000


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    stream_xid: int
    message: bytes


async def first_time(db: Executor, user_id: str, device_id: str, txn_id: str, now_ms: int) -> bool:
    """Whether the sending device's transaction ID is new."""
    new = await db.fetchval(
        "INSERT INTO to_device_transactions (user_id, device_id, txn_id, created_ts) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT DO NOTHING RETURNING true",
        user_id,
        device_id,
        txn_id,
        now_ms,
    )
    return bool(new)


async def queue(db: Executor, messages: Sequence[tuple[str, str, bytes]]) -> None:
    """Queue (user, device, message) for devices that exist."""
    await db.execute(
        "INSERT INTO to_device_messages (user_id, device_id, message)"
        " SELECT n.user_id, n.device_id, n.message"
        " FROM unnest($1::text[], $2::text[], $3::bytea[]) AS n (user_id, device_id, message)"
        " JOIN devices AS d ON d.user_id = n.user_id AND d.device_id = n.device_id",
        [user for user, _, _ in messages],
        [device for _, device, _ in messages],
        [message for _, _, message in messages],
    )


async def trim(db: Executor, user_id: str, device_id: str) -> None:
    """Drop the oldest messages of a queue that nobody empties."""
    await db.execute(
        "DELETE FROM to_device_messages WHERE user_id = $1 AND device_id = $2 AND seq <= ("
        " SELECT seq FROM to_device_messages WHERE user_id = $1 AND device_id = $2"
        " ORDER BY seq DESC OFFSET $3 LIMIT 1)",
        user_id,
        device_id,
        MAX_QUEUED,
    )


async def pending(
    db: Executor, user_id: str, device_id: str, since: int, upto: int, limit: int
) -> list[QueuedMessage]:
    rows = await db.fetch(
        "SELECT stream_xid::text::bigint AS stream_xid, message FROM to_device_messages"
        " WHERE user_id = $1 AND device_id = $2"
        " AND stream_xid >= $3::text::xid8 AND stream_xid < $4::text::xid8"
        " ORDER BY to_device_messages.stream_xid, seq LIMIT $5",
        user_id,
        device_id,
        str(since),
        str(upto),
        limit,
    )
    return [QueuedMessage(r["stream_xid"], bytes(r["message"])) for r in rows]


async def acknowledge(db: Executor, user_id: str, device_id: str, before: int) -> None:
    """Delete what the device has: everything before the position it came back with."""
    await db.execute(
        "DELETE FROM to_device_messages WHERE user_id = $1 AND device_id = $2"
        " AND stream_xid < $3::text::xid8",
        user_id,
        device_id,
        str(before),
    )
