"""A participant's own LPDUs, from the moment a client sent them until they stand in our list.

They are stored before they are sent, so an outage or crash on either side loses none. `pending`
is sent until the hub answers; `accepted` is named by the hub and waits for its echo; `placed`
stands in our list; `rejected` was refused, or came back as something we did not send; `given_up`
was answered with nothing for too long. The list has the last word: an echo that comes after all
makes any of them `placed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class QueuedLpdu:
    """`pdu_event_id` is there once the hub has named it, `reason` when it was refused or given up."""

    room_id: str
    lpdu_id: str
    status: str
    pdu_event_id: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class OwnLpdu:
    """What we sent, and the event ID the hub gave it in its answer, if it did."""

    lpdu_id: str
    lpdu: bytes
    pdu_event_id: str | None


@dataclass(frozen=True, slots=True)
class WatchedLpdu:
    """One without its echo: how often it was sent and looked for; `created_ts` in ms."""

    room_id: str
    lpdu_id: str
    lpdu_hash: str
    destination: str
    lpdu: bytes
    status: str
    pdu_event_id: str | None
    sends: int
    checks: int
    created_ts: int


@dataclass(frozen=True, slots=True)
class SignedLpdu:
    """A queued LPDU as it will be sent; `seq` is its place in the queue."""

    seq: int
    room_id: str
    lpdu_id: str
    lpdu: bytes


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
    check_at: int,
) -> None:
    """Raises UniqueViolation when the very same LPDU is queued already."""
    await db.execute(
        "INSERT INTO outbound_lpdus (room_id, lpdu_id, lpdu_hash, destination, lpdu, user_id, device_id,"
        " txn_id, created_ts, check_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        room_id,
        lpdu_id,
        lpdu_hash,
        destination,
        lpdu,
        user_id,
        device_id,
        txn_id,
        now_ms,
        check_at,
    )


async def get(db: Executor, room_id: str, lpdu_id: str) -> QueuedLpdu | None:
    row = await db.fetchrow(
        "SELECT room_id, lpdu_id, status, pdu_event_id, reason FROM outbound_lpdus"
        " WHERE room_id = $1 AND lpdu_id = $2",
        room_id,
        lpdu_id,
    )
    return None if row is None else QueuedLpdu(*row.values())


async def unsettled(db: Executor, room_id: str, user_id: str, device_id: str, limit: int) -> list[bytes]:
    """The newest LPDUs of one device that do not stand in our list yet."""
    rows = await db.fetch(
        "SELECT lpdu FROM outbound_lpdus WHERE room_id = $1 AND user_id = $2 AND device_id = $3"
        " AND status IN ('pending', 'accepted') ORDER BY seq DESC LIMIT $4",
        room_id,
        user_id,
        device_id,
        limit,
    )
    return [r["lpdu"] for r in rows]


async def refused_of(db: Executor, device_id: str, limit: int) -> list[bytes]:
    """The newest LPDUs of devices of this name that came to nothing."""
    rows = await db.fetch(
        "SELECT lpdu FROM outbound_lpdus WHERE device_id = $1 AND status IN ('rejected', 'given_up')"
        " ORDER BY seq DESC LIMIT $2",
        device_id,
        limit,
    )
    return [r["lpdu"] for r in rows]


async def by_hash(db: Executor, room_id: str, hashes: Sequence[str]) -> dict[str, OwnLpdu]:
    """LPDU hash to what we sent: used when the hub's echo comes."""
    rows = await db.fetch(
        "SELECT lpdu_hash, lpdu_id, lpdu, pdu_event_id FROM outbound_lpdus"
        " WHERE room_id = $1 AND lpdu_hash = ANY($2::text[])",
        room_id,
        list(hashes),
    )
    return {r["lpdu_hash"]: OwnLpdu(r["lpdu_id"], r["lpdu"], r["pdu_event_id"]) for r in rows}


async def rooms_of(db: Executor, destination: str, lpdu_ids: Sequence[str]) -> dict[str, str]:
    """LPDU ID to room ID of what was queued for a hub."""
    rows = await db.fetch(
        "SELECT lpdu_id, room_id FROM outbound_lpdus WHERE destination = $1 AND lpdu_id = ANY($2::text[])",
        destination,
        list(lpdu_ids),
    )
    return {r["lpdu_id"]: r["room_id"] for r in rows}


async def named(db: Executor, room_id: str, lpdu_id: str, event_id: str, check_at: int) -> bool:
    """The hub says it has appended it; its echo is looked for from `check_at`. False if that is
    no news any more."""
    changed = await db.fetchval(
        "UPDATE outbound_lpdus SET status = 'accepted', pdu_event_id = $3, check_at = $4"
        " WHERE room_id = $1 AND lpdu_id = $2 AND status = 'pending' RETURNING true",
        room_id,
        lpdu_id,
        event_id,
        check_at,
    )
    return bool(changed)


async def placed(db: Executor, room_id: str, lpdu_id: str, event_id: str) -> None:
    """It stands in our list."""
    await db.execute(
        "UPDATE outbound_lpdus SET status = 'placed', pdu_event_id = $3, reason = NULL"
        " WHERE room_id = $1 AND lpdu_id = $2",
        room_id,
        lpdu_id,
        event_id,
    )


async def refused(db: Executor, room_id: str, lpdu_id: str, reason: str) -> bool:
    """The hub has refused it; an acceptance seen earlier stands, and then this is False."""
    changed = await db.fetchval(
        "UPDATE outbound_lpdus SET status = 'rejected', reason = $3"
        " WHERE room_id = $1 AND lpdu_id = $2 AND status = 'pending' RETURNING true",
        room_id,
        lpdu_id,
        reason,
    )
    return bool(changed)


async def end(db: Executor, room_id: str, lpdu_id: str, status: str, reason: str) -> bool:
    """Close it as `rejected` or `given_up` although the hub had taken it; False if it was closed."""
    changed = await db.fetchval(
        "UPDATE outbound_lpdus SET status = $3, reason = $4"
        " WHERE room_id = $1 AND lpdu_id = $2 AND status IN ('pending', 'accepted') RETURNING true",
        room_id,
        lpdu_id,
        status,
        reason,
    )
    return bool(changed)


# -- watching for echoes ----------------------------------------------------------------------------


async def claim_due(db: Executor, now_ms: int, until_ms: int, limit: int) -> list[WatchedLpdu]:
    """Take what is to be looked after, longest due first; nobody else gets it before `until_ms`."""
    rows = await db.fetch(
        "UPDATE outbound_lpdus AS o SET check_at = $2 FROM (SELECT room_id, lpdu_id FROM outbound_lpdus"
        " WHERE status IN ('pending', 'accepted') AND check_at <= $1 ORDER BY check_at LIMIT $3"
        " FOR UPDATE SKIP LOCKED) AS due WHERE o.room_id = due.room_id AND o.lpdu_id = due.lpdu_id"
        " RETURNING o.room_id, o.lpdu_id, o.lpdu_hash, o.destination, o.lpdu, o.status, o.pdu_event_id,"
        " o.sends, o.checks, o.created_ts",
        now_ms,
        until_ms,
        limit,
    )
    return [WatchedLpdu(*(r[name] for name in WatchedLpdu.__slots__)) for r in rows]


async def check_again(db: Executor, lpdu: WatchedLpdu, checks: int, at_ms: int, *, resend: bool) -> None:
    """Look again later; with `resend` the hub gets the same LPDU once more meanwhile."""
    await db.execute(
        "UPDATE outbound_lpdus SET checks = $3, check_at = $4,"
        " status = CASE WHEN $5 THEN 'pending' ELSE status END,"
        " resend_at = CASE WHEN $5 THEN 0 ELSE resend_at END"
        " WHERE room_id = $1 AND lpdu_id = $2 AND status IN ('pending', 'accepted')",
        lpdu.room_id,
        lpdu.lpdu_id,
        checks,
        at_ms,
        resend,
    )


async def purge(db: Executor, before_ms: int) -> None:
    """Forget LPDUs whose story has ended."""
    await db.execute(
        "DELETE FROM outbound_lpdus WHERE created_ts < $1 AND status NOT IN ('pending', 'accepted')",
        before_ms,
    )


async def not_signed_with(db: Executor, key_id: str, after: int, limit: int) -> list[SignedLpdu]:
    """LPDUs that may still be sent and in which a key ID does not occur, in the order they were made."""
    rows = await db.fetch(
        "SELECT seq, room_id, lpdu_id, lpdu FROM outbound_lpdus WHERE status IN ('pending', 'accepted')"
        " AND seq > $2 AND position($1::bytea IN lpdu) = 0 ORDER BY seq LIMIT $3 FOR UPDATE",
        f'"{key_id}"'.encode(),
        after,
        limit,
    )
    return [SignedLpdu(r["seq"], r["room_id"], r["lpdu_id"], r["lpdu"]) for r in rows]


async def replace(db: Executor, room_id: str, lpdu_id: str, lpdu: bytes) -> None:
    """Send these bytes, which have the same ID."""
    await db.execute(
        "UPDATE outbound_lpdus SET lpdu = $3 WHERE room_id = $1 AND lpdu_id = $2", room_id, lpdu_id, lpdu
    )
