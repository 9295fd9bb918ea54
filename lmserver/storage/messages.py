"""A turn of nothing but messages, in one statement.

It is what most turns are, and six round trips otherwise. The statement writes all of it where the head is
the one it was decided at and none of it is known, and else nothing: the turn is then taken step by step.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmserver.storage.client_transactions import TransactionKey, scope
from lmserver.storage.database import Database
from lmserver.storage.room_log import NewEvent


async def append(
    db: Database,
    room_id: str,
    head: str,
    events: Sequence[NewEvent],
    txns: Sequence[tuple[TransactionKey, str]],
    now_ms: int,
) -> int | None:
    """Write events that follow the event `head` one after the other, and (transaction, event ID) pairs,
    and move the room's head. Returns the transaction's ID, the stream position readers wait for, or None
    when nothing was written. Raises UniqueViolation when another process wrote one of them meanwhile.
    """
    first, last = events[0], events[-1]
    xid: int | None = await db.write(
        "WITH head AS (SELECT 1 FROM rooms WHERE room_id = $1 AND head_event_id = $2"
        " AND coalesce(hold, 'decided') = 'decided'"
        # LATERAL with a LIMIT is looked up key by key, whatever the planner believes of the tables' sizes.
        " AND NOT EXISTS (SELECT 1 FROM unnest($11::text[], $12::text[]) AS k (lpdu_hash, sender)"
        " CROSS JOIN LATERAL (SELECT 1 FROM events WHERE room_id = $1 AND lpdu_hash = k.lpdu_hash"
        " AND sender = k.sender LIMIT 1) AS e)"
        " AND NOT EXISTS (SELECT 1 FROM unnest($13::bytea[], $14::text[]) AS k (scope, txn_id)"
        " CROSS JOIN LATERAL (SELECT 1 FROM client_transactions AS t WHERE t.scope = k.scope"
        " AND t.txn_id = k.txn_id LIMIT 1) AS e)"
        " FOR UPDATE),"
        " added AS (INSERT INTO events (room_id, event_id, position, lpdu_hash, type, sender, pdu,"
        " received_ts, words)"
        " SELECT $1, n.event_id, $4::bigint + n.place - 1, n.lpdu_hash, n.type, n.sender, n.pdu, $3,"
        " to_tsvector('simple', n.text)"
        " FROM unnest($7::text[], $11::text[], $8::text[], $12::text[], $9::bytea[], $10::text[])"
        " WITH ORDINALITY AS n (event_id, lpdu_hash, type, sender, pdu, text, place)"
        " WHERE EXISTS (SELECT 1 FROM head)),"
        " noted AS (INSERT INTO client_transactions (scope, txn_id, event_id, created_ts)"
        " SELECT n.scope, n.txn_id, n.event_id, $3"
        " FROM unnest($13::bytea[], $14::text[], $15::text[]) AS n (scope, txn_id, event_id)"
        " WHERE EXISTS (SELECT 1 FROM head))"
        " UPDATE rooms SET head_position = $5, head_event_id = $6"
        " WHERE room_id = $1 AND EXISTS (SELECT 1 FROM head)"
        " RETURNING pg_current_xact_id()::text::bigint",
        room_id,
        head,
        now_ms,
        first.position,
        last.position,
        last.event_id,
        [e.event_id for e in events],
        [e.type for e in events],
        [e.pdu for e in events],
        [e.text for e in events],
        [e.lpdu_hash for e in events],
        [e.sender for e in events],
        [scope(key, room_id) for key, _ in txns],
        [key.stored for key, _ in txns],
        [event_id for _, event_id in txns],
    )
    return xid
