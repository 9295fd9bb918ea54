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


async def advance(db: Executor, receipts: Sequence[Receipt]) -> set[str]:
    """Move receipts forward, no two of one user, room, kind and thread. The rooms in which something
    moved: a receipt that stands there or further on already stays."""
    rows = await db.fetch(
        "INSERT INTO receipts (room_id, user_id, receipt_type, thread_id, event_id, position, ts)"
        " SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],"
        " $7::bigint[]) ON CONFLICT (room_id, user_id, receipt_type, thread_id)"
        " DO UPDATE SET event_id = excluded.event_id, position = excluded.position, ts = excluded.ts,"
        " stream_xid = pg_current_xact_id() WHERE receipts.position < excluded.position RETURNING room_id",
        *([getattr(receipt, name) for receipt in receipts] for name in Receipt.__slots__),
    )
    return {r["room_id"] for r in rows}


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


async def on_events(
    db: Executor, user_id: str, room_ids: Sequence[str], event_ids: Sequence[str], upto: int
) -> list[Receipt]:
    """Receipts a user may see, as they were made before a stream position: their own in these rooms,
    and everybody's public ones on some events."""
    rows = await db.fetch(
        "SELECT room_id, user_id, receipt_type, thread_id, event_id, position, ts FROM receipts"
        " WHERE room_id = ANY($2::text[]) AND stream_xid < $4::text::xid8"
        " AND (user_id = $1 OR (receipt_type = 'm.read' AND event_id = ANY($3::text[])))",
        user_id,
        list(room_ids),
        list(event_ids),
        str(upto),
    )
    return [_receipt(r) for r in rows]


async def moved(db: Executor, user_id: str, since: int, upto: int) -> set[str]:
    """Rooms in which the user's own receipts moved in the stream interval [since, upto)."""
    rows = await db.fetch(
        "SELECT DISTINCT room_id FROM receipts WHERE user_id = $1"
        " AND stream_xid >= $2::text::xid8 AND stream_xid < $3::text::xid8",
        user_id,
        str(since),
        str(upto),
    )
    return {r["room_id"] for r in rows}
