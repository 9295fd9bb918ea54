"""What has to be sent to other servers, and by whom.

Work is found by reading: a range whose acknowledged position is behind the room's head, an LPDU
the hub has not answered, an EDU in the queue. A transaction's exact bytes are stored before they
are sent and removed, together with what they acknowledge, in one transaction after the 200.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class DestinationState:
    """Retry state of a destination; times are milliseconds since the epoch."""

    failures: int
    retry_at: int


@dataclass(frozen=True, slots=True)
class StoredTransaction:
    """The one transaction in flight: `contents` says what its 200 acknowledges."""

    txn_id: str
    body: bytes
    contents: bytes


@dataclass(frozen=True, slots=True)
class PendingPdu:
    """An event a destination has to get; `from_position` names the range it is part of."""

    room_id: str
    from_position: int
    position: int
    pdu: bytes


@dataclass(frozen=True, slots=True)
class PendingLpdu:
    room_id: str
    lpdu_id: str
    lpdu: bytes


@dataclass(frozen=True, slots=True)
class PendingEdu:
    seq: int
    edu: bytes


async def destinations_with_work(db: Executor) -> list[str]:
    """Every destination something waits for."""
    rows = await db.fetch(
        "SELECT r.destination FROM outbound_ranges AS r JOIN rooms ON rooms.room_id = r.room_id"
        " WHERE r.acked_position < least(rooms.head_position, coalesce(r.until_position, rooms.head_position))"
        " UNION SELECT destination FROM outbound_lpdus WHERE status = 'pending'"
        " UNION SELECT destination FROM outbound_edus"
        " UNION SELECT destination FROM outbound_transactions"
    )
    return [r["destination"] for r in rows]


async def take_lease(
    db: Executor, destination: str, owner: str, now_ms: int, until_ms: int
) -> tuple[int, DestinationState] | None:
    """Become or stay the one sender to a destination: the fence and its retry state, or None."""
    row = await db.fetchrow(
        "INSERT INTO destinations (destination, lease_owner, lease_fence, lease_until)"
        " VALUES ($1, $2, 1, $4) ON CONFLICT (destination) DO UPDATE SET"
        " lease_fence = destinations.lease_fence"
        " + CASE WHEN destinations.lease_owner = $2 THEN 0 ELSE 1 END,"
        " lease_owner = $2, lease_until = $4"
        " WHERE destinations.lease_owner = $2 OR destinations.lease_owner IS NULL"
        " OR destinations.lease_until < $3"
        " RETURNING lease_fence, failures, retry_at",
        destination,
        owner,
        now_ms,
        until_ms,
    )
    if row is None:
        return None
    return row["lease_fence"], DestinationState(row["failures"], row["retry_at"])


async def fenced(db: Executor, destination: str, fence: int) -> bool:
    """Whether the lease is still the one with this fence; holds the row until COMMIT."""
    found = await db.fetchval(
        "SELECT true FROM destinations WHERE destination = $1 AND lease_fence = $2 FOR UPDATE",
        destination,
        fence,
    )
    return bool(found)


async def give_up_leases(db: Executor, owner: str) -> None:
    await db.execute(
        "UPDATE destinations SET lease_owner = NULL, lease_until = 0 WHERE lease_owner = $1", owner
    )


async def set_retry(db: Executor, destination: str, failures: int, retry_at: int) -> None:
    await db.execute(
        "UPDATE destinations SET failures = $2, retry_at = $3 WHERE destination = $1",
        destination,
        failures,
        retry_at,
    )


async def in_flight(db: Executor, destination: str) -> StoredTransaction | None:
    row = await db.fetchrow(
        "SELECT txn_id, body, contents FROM outbound_transactions WHERE destination = $1", destination
    )
    return (
        None if row is None else StoredTransaction(row["txn_id"], bytes(row["body"]), bytes(row["contents"]))
    )


async def store(db: Executor, destination: str, transaction: StoredTransaction, now_ms: int) -> None:
    """Raises UniqueViolation when one is in flight already."""
    await db.execute(
        "INSERT INTO outbound_transactions (destination, txn_id, body, contents, created_ts)"
        " VALUES ($1, $2, $3, $4, $5)",
        destination,
        transaction.txn_id,
        transaction.body,
        transaction.contents,
        now_ms,
    )


async def remove(db: Executor, destination: str, txn_id: str) -> None:
    await db.execute(
        "DELETE FROM outbound_transactions WHERE destination = $1 AND txn_id = $2", destination, txn_id
    )


async def pending_pdus(db: Executor, destination: str, limit: int) -> list[PendingPdu]:
    """The next events of each room the destination has not acknowledged, in list order."""
    rows = await db.fetch(
        "SELECT r.room_id, r.from_position, e.position, e.pdu FROM outbound_ranges AS r"
        " CROSS JOIN LATERAL (SELECT position, pdu FROM events WHERE events.room_id = r.room_id"
        " AND position > r.acked_position"
        " AND position <= coalesce(r.until_position, 9223372036854775807)"
        " ORDER BY position LIMIT $2) AS e"
        " WHERE r.destination = $1 ORDER BY r.room_id, e.position LIMIT $2",
        destination,
        limit,
    )
    return [PendingPdu(r["room_id"], r["from_position"], r["position"], bytes(r["pdu"])) for r in rows]


async def pending_lpdus(db: Executor, destination: str, limit: int) -> list[PendingLpdu]:
    rows = await db.fetch(
        "SELECT room_id, lpdu_id, lpdu FROM outbound_lpdus"
        " WHERE destination = $1 AND status = 'pending' ORDER BY seq LIMIT $2",
        destination,
        limit,
    )
    return [PendingLpdu(r["room_id"], r["lpdu_id"], bytes(r["lpdu"])) for r in rows]


async def pending_edus(db: Executor, destination: str, limit: int) -> list[PendingEdu]:
    rows = await db.fetch(
        "SELECT seq, edu FROM outbound_edus WHERE destination = $1 ORDER BY seq LIMIT $2", destination, limit
    )
    return [PendingEdu(r["seq"], bytes(r["edu"])) for r in rows]


async def queue_edu(db: Executor, destination: str, edu: bytes, now_ms: int) -> None:
    await db.execute(
        "INSERT INTO outbound_edus (destination, edu, created_ts) VALUES ($1, $2, $3)",
        destination,
        edu,
        now_ms,
    )


async def acknowledge(
    db: Executor,
    destination: str,
    ranges: Sequence[tuple[str, int, int]],
    edu_seqs: Sequence[int],
) -> None:
    """Advance (room, range, position) and drop what is finished."""
    await db.execute(
        "UPDATE outbound_ranges AS r SET acked_position = greatest(r.acked_position, n.position)"
        " FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS n (room_id, from_position, position)"
        " WHERE r.destination = $1 AND r.room_id = n.room_id AND r.from_position = n.from_position",
        destination,
        [room_id for room_id, _, _ in ranges],
        [start for _, start, _ in ranges],
        [position for _, _, position in ranges],
    )
    await db.execute(
        "DELETE FROM outbound_ranges WHERE destination = $1 AND acked_position >= until_position", destination
    )
    if edu_seqs:
        await db.execute(
            "DELETE FROM outbound_edus WHERE destination = $1 AND seq = ANY($2::bigint[])",
            destination,
            list(edu_seqs),
        )


async def await_echo(db: Executor, destination: str, lpdu_ids: Sequence[str]) -> None:
    """The hub has taken these LPDUs without a word: they are not sent again, their echo settles
    them."""
    await db.execute(
        "UPDATE outbound_lpdus SET status = 'sent'"
        " WHERE destination = $1 AND lpdu_id = ANY($2::text[]) AND status = 'pending'",
        destination,
        list(lpdu_ids),
    )
