"""Messages between devices, kept until the device has acknowledged them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor

MAX_QUEUED = 10_000
MAX_QUEUED_BYTES = 32 * 1024 * 1024
"""Messages that wait for one device, and their bytes together."""
MAX_REMEMBERED = 20_000
"""Keys of received messages for each server they came from."""


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


async def queue(db: Executor, messages: Sequence[tuple[str, str, bytes]]) -> set[tuple[str, str]]:
    """Queue (user, device, message) in order for devices that exist, "*" being every device of the
    user, and return the (user, device) pairs they were queued for."""
    rows = await db.fetch(
        "INSERT INTO to_device_messages (user_id, device_id, message)"
        " SELECT n.user_id, d.device_id, n.message"
        " FROM unnest($1::text[], $2::text[], $3::bytea[]) WITH ORDINALITY AS n (user_id, device_id, message,"
        " place) JOIN devices AS d ON d.user_id = n.user_id AND (n.device_id = '*'"
        " OR d.device_id = n.device_id) ORDER BY n.place, d.device_id RETURNING user_id, device_id",
        [user for user, _, _ in messages],
        [device for _, device, _ in messages],
        [message for _, _, message in messages],
    )
    return {(r["user_id"], r["device_id"]) for r in rows}


@dataclass(frozen=True, slots=True)
class RemoteMessage:
    """A message of another server's user; `key` tells it from every other of that server, `device_id`
    "*" is every device of the user."""

    key: bytes
    user_id: str
    device_id: str
    message: bytes


async def receive(
    db: Executor, origin: str, messages: Sequence[RemoteMessage], now_ms: int
) -> set[tuple[str, str]]:
    """Queue what did not come before, in order, and return the (user, device) pairs it was queued for.

    Nothing is remembered of messages for devices that do not exist.
    """
    arrays = (
        [m.key for m in messages],
        [m.user_id for m in messages],
        [m.device_id for m in messages],
    )
    new = await db.fetch(
        "INSERT INTO to_device_received (origin, message_key, received_ts) SELECT $1, n.key, $2"
        " FROM unnest($3::bytea[], $4::text[], $5::text[]) AS n (key, user_id, device_id)"
        " WHERE EXISTS (SELECT FROM devices AS d WHERE d.user_id = n.user_id"
        " AND (n.device_id = '*' OR d.device_id = n.device_id)) ON CONFLICT DO NOTHING RETURNING message_key",
        origin,
        now_ms,
        *arrays,
    )
    rows = await db.fetch(
        "INSERT INTO to_device_messages (user_id, device_id, message)"
        " SELECT n.user_id, d.device_id, n.message"
        " FROM unnest($1::bytea[], $2::text[], $3::text[], $4::bytea[]) WITH ORDINALITY"
        " AS n (key, user_id, device_id, message, place) JOIN devices AS d"
        " ON d.user_id = n.user_id AND (n.device_id = '*' OR d.device_id = n.device_id)"
        " WHERE n.key = ANY($5::bytea[]) ORDER BY n.place, d.device_id RETURNING user_id, device_id",
        *arrays,
        [m.message for m in messages],
        [r["message_key"] for r in new],
    )
    return {(r["user_id"], r["device_id"]) for r in rows}


async def forget_received(db: Executor, origin: str) -> None:
    """Keep the newest MAX_REMEMBERED of what one server sent."""
    await db.execute(
        "DELETE FROM to_device_received WHERE origin = $1 AND seq <= (SELECT seq FROM to_device_received"
        " WHERE origin = $1 ORDER BY seq DESC OFFSET $2 LIMIT 1)",
        origin,
        MAX_REMEMBERED,
    )


async def purge(db: Executor, transactions_before_ms: int, received_before_ms: int) -> None:
    """Forget transactions and messages nobody will repeat."""
    await db.execute("DELETE FROM to_device_transactions WHERE created_ts < $1", transactions_before_ms)
    await db.execute("DELETE FROM to_device_received WHERE received_ts < $1", received_before_ms)


async def trim(db: Executor, devices: Iterable[tuple[str, str]], marker: Callable[[str], bytes]) -> int:
    """Drop the oldest messages of (user, device) queues that nobody empties; returns how many.

    The newest that goes becomes the user's `marker`, so that the device learns at which place something
    is missing; a queue has one, as its oldest message.
    """
    pairs = sorted(devices)
    dropped: int = await db.fetchval(
        "WITH kept AS (SELECT m.user_id, m.device_id, m.seq, n.marker, m.message = n.marker AS marked,"
        " row_number() OVER newest AS place, sum(octet_length(m.message)) OVER newest AS size"
        " FROM unnest($1::text[], $2::text[], $3::bytea[]) AS n (user_id, device_id, marker)"
        " JOIN to_device_messages AS m ON m.user_id = n.user_id AND m.device_id = n.device_id"
        " WINDOW newest AS (PARTITION BY m.user_id, m.device_id ORDER BY m.seq DESC)),"
        " gone AS (SELECT *, row_number() OVER (PARTITION BY user_id, device_id ORDER BY seq DESC) AS nth"
        " FROM kept WHERE place > $4 OR size > $5),"
        " marks AS (UPDATE to_device_messages AS m SET message = g.marker FROM gone AS g WHERE g.nth = 1"
        " AND NOT g.marked AND m.user_id = g.user_id AND m.device_id = g.device_id AND m.seq = g.seq),"
        " deleted AS (DELETE FROM to_device_messages AS m USING gone AS g WHERE g.nth > 1"
        " AND m.user_id = g.user_id AND m.device_id = g.device_id AND m.seq = g.seq)"
        " SELECT count(*) FILTER (WHERE NOT marked) FROM gone",
        [user for user, _ in pairs],
        [device for _, device in pairs],
        [marker(user) for user, _ in pairs],
        MAX_QUEUED,
        MAX_QUEUED_BYTES,
    )
    return dropped


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
