"""How far users have read: one row for each user, room, kind and thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class Receipt:
    """`thread_id` is "" for a receipt without thread; `position` is the event's place in the room."""

    room_id: str
    user_id: str
    receipt_type: str
    thread_id: str
    event_id: str
    position: int
    ts: int


def _receipt(row: Any) -> Receipt:
    return Receipt(*(row[name] for name in Receipt.__slots__))


async def advance(db: Executor, receipt: Receipt) -> bool:
    """Move a receipt forward; False when it stands there or further on already."""
    moved = await db.fetchval(
        "INSERT INTO receipts (room_id, user_id, receipt_type, thread_id, event_id, position, ts)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (room_id, user_id, receipt_type, thread_id)"
        " DO UPDATE SET event_id = excluded.event_id, position = excluded.position, ts = excluded.ts,"
        " stream_xid = pg_current_xact_id() WHERE receipts.position < excluded.position RETURNING 1",
        receipt.room_id,
        receipt.user_id,
        receipt.receipt_type,
        receipt.thread_id,
        receipt.event_id,
        receipt.position,
        receipt.ts,
    )
    return moved is not None


async def changed(
    db: Executor, user_id: str, room_ids: Sequence[str], since: int, upto: int, limit: int
) -> list[Receipt]:
    """Receipts a user may see that changed in the stream interval [since, upto), newest first:
    public ones of everybody, private ones only the user's own."""
    rows = await db.fetch(
        "SELECT room_id, user_id, receipt_type, thread_id, event_id, position, ts FROM receipts"
        " WHERE room_id = ANY($2::text[]) AND stream_xid >= $3::text::xid8 AND stream_xid < $4::text::xid8"
        " AND (receipt_type = 'm.read' OR user_id = $1) ORDER BY position DESC LIMIT $5",
        user_id,
        list(room_ids),
        str(since),
        str(upto),
        limit,
    )
    return [_receipt(r) for r in rows]


async def read_positions(db: Executor, user_id: str, room_ids: Sequence[str]) -> dict[str, int]:
    """How far the user has read each room, by whichever receipt is furthest."""
    rows = await db.fetch(
        "SELECT room_id, max(position) AS position FROM receipts"
        " WHERE user_id = $1 AND room_id = ANY($2::text[]) AND thread_id IN ('', 'main') GROUP BY room_id",
        user_id,
        list(room_ids),
    )
    return {r["room_id"]: r["position"] for r in rows}
