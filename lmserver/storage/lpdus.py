"""A participant's own LPDUs, from the moment a client sent them until the hub has answered.

They are stored before they are sent, so an outage or crash on either side loses none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class QueuedLpdu:
    """`status` is pending, accepted (with `pdu_event_id`) or rejected (with `reason`)."""

    room_id: str
    lpdu_id: str
    status: str
    pdu_event_id: str | None
    reason: str | None


async def queue(
    db: Executor,
    *,
    room_id: str,
    lpdu_id: str,
    lpdu_hash: str,
    destination: str,
    lpdu: bytes,
    user_id: str,
    device_id: str | None,
    txn_id: str | None,
    now_ms: int,
) -> None:
    """Raises UniqueViolation when the very same LPDU is queued already."""
    await db.execute(
        "INSERT INTO outbound_lpdus (room_id, lpdu_id, lpdu_hash, destination, lpdu, user_id, device_id,"
        " txn_id, created_ts) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        room_id,
        lpdu_id,
        lpdu_hash,
        destination,
        lpdu,
        user_id,
        device_id,
        txn_id,
        now_ms,
    )


async def get(db: Executor, room_id: str, lpdu_id: str) -> QueuedLpdu | None:
    row = await db.fetchrow(
        "SELECT room_id, lpdu_id, status, pdu_event_id, reason FROM outbound_lpdus"
        " WHERE room_id = $1 AND lpdu_id = $2",
        room_id,
        lpdu_id,
    )
    return None if row is None else QueuedLpdu(*row.values())


async def by_hash(db: Executor, room_id: str, hashes: Sequence[str]) -> dict[str, str]:
    """LPDU hash to LPDU ID for the unanswered ones: used when the hub's echo comes."""
    rows = await db.fetch(
        "SELECT lpdu_hash, lpdu_id FROM outbound_lpdus WHERE room_id = $1 AND lpdu_hash = ANY($2::text[])",
        room_id,
        list(hashes),
    )
    return {r["lpdu_hash"]: r["lpdu_id"] for r in rows}


async def rooms_of(db: Executor, destination: str, lpdu_ids: Sequence[str]) -> dict[str, str]:
    """LPDU ID to room ID of what was queued for a hub."""
    rows = await db.fetch(
        "SELECT lpdu_id, room_id FROM outbound_lpdus WHERE destination = $1 AND lpdu_id = ANY($2::text[])",
        destination,
        list(lpdu_ids),
    )
    return {r["lpdu_id"]: r["room_id"] for r in rows}


async def accept(db: Executor, room_id: str, lpdu_id: str, event_id: str) -> None:
    """The hub has appended it."""
    await db.execute(
        "UPDATE outbound_lpdus SET status = 'accepted', pdu_event_id = $3"
        " WHERE room_id = $1 AND lpdu_id = $2",
        room_id,
        lpdu_id,
        event_id,
    )


async def reject(db: Executor, room_id: str, lpdu_id: str, reason: str) -> None:
    """The hub has refused it; an acceptance seen earlier stands."""
    await db.execute(
        "UPDATE outbound_lpdus SET status = 'rejected', reason = $3"
        " WHERE room_id = $1 AND lpdu_id = $2 AND status <> 'accepted'",
        room_id,
        lpdu_id,
        reason,
    )
