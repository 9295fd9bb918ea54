"""Client transaction IDs: the same request of a device gives the same event, for ever.

A row is written in the transaction that appends the event (hub) or queues the LPDU
(participant), so a retry after any crash finds what the first try did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class TransactionKey:
    """Transaction IDs are scoped to a device (Matrix CS API §Transaction identifiers) and room."""

    user_id: str
    device_id: str
    txn_id: str


@dataclass(frozen=True, slots=True)
class KnownTransaction:
    """What a transaction ID stands for: an event, or an LPDU the hub has not answered yet."""

    event_id: str | None
    lpdu_id: str | None


async def known(
    db: Executor, room_id: str, keys: Sequence[TransactionKey]
) -> dict[TransactionKey, KnownTransaction]:
    rows = await db.fetch(
        "SELECT t.user_id, t.device_id, t.txn_id, t.event_id, t.lpdu_id FROM client_transactions AS t"
        " JOIN unnest($2::text[], $3::text[], $4::text[]) AS k (user_id, device_id, txn_id)"
        " ON t.user_id = k.user_id AND t.device_id = k.device_id AND t.txn_id = k.txn_id"
        " WHERE t.room_id = $1",
        room_id,
        [k.user_id for k in keys],
        [k.device_id for k in keys],
        [k.txn_id for k in keys],
    )
    return {
        TransactionKey(r["user_id"], r["device_id"], r["txn_id"]): KnownTransaction(
            r["event_id"], r["lpdu_id"]
        )
        for r in rows
    }


async def remember(
    db: Executor, room_id: str, rows: Sequence[tuple[TransactionKey, str | None, str | None]], now_ms: int
) -> None:
    """Store (key, event ID, LPDU ID) rows; raises UniqueViolation when a key is there already."""
    await db.execute(
        "INSERT INTO client_transactions (room_id, user_id, device_id, txn_id, event_id, lpdu_id, created_ts)"
        " SELECT $1, n.*, $2::bigint"
        " FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[]) AS n",
        room_id,
        now_ms,
        [k.user_id for k, _, _ in rows],
        [k.device_id for k, _, _ in rows],
        [k.txn_id for k, _, _ in rows],
        [event_id for _, event_id, _ in rows],
        [lpdu_id for _, _, lpdu_id in rows],
    )


async def settle(db: Executor, room_id: str, lpdu_id: str, event_id: str) -> None:
    """The LPDU of a transaction has become an event."""
    await db.execute(
        "UPDATE client_transactions SET event_id = $3 WHERE room_id = $1 AND lpdu_id = $2",
        room_id,
        lpdu_id,
        event_id,
    )


async def unsettle(db: Executor, room_id: str, lpdu_id: str) -> None:
    """The event its transaction was told of is none after all: a retry learns what became of it."""
    await db.execute(
        "UPDATE client_transactions SET event_id = NULL WHERE room_id = $1 AND lpdu_id = $2",
        room_id,
        lpdu_id,
    )


async def transaction_ids(
    db: Executor, user_id: str, device_id: str, event_ids: Sequence[str]
) -> dict[str, str]:
    """Event ID to transaction ID for events this device sent: the client's local echo."""
    rows = await db.fetch(
        "SELECT event_id, txn_id FROM client_transactions"
        " WHERE user_id = $1 AND device_id = $2 AND event_id = ANY($3::text[])",
        user_id,
        device_id,
        list(event_ids),
    )
    return {r["event_id"]: r["txn_id"] for r in rows}


async def purge(db: Executor, before_ms: int) -> None:
    """Forget transactions older than a client would retry, but not those still on their way."""
    await db.execute(
        "DELETE FROM client_transactions AS t WHERE t.created_ts < $1"
        " AND (t.event_id IS NOT NULL OR NOT EXISTS (SELECT 1 FROM outbound_lpdus AS o"
        " WHERE o.room_id = t.room_id AND o.lpdu_id = t.lpdu_id))",
        before_ms,
    )
