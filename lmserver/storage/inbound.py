"""Transactions from other servers: processed once, answered the same for ever (D04 §Transaction
Identifiers), one in flight for each origin (D04 §Sending Events)."""

from __future__ import annotations

from dataclasses import dataclass

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """What a transaction was answered with, to the byte."""

    status: int
    body: bytes


async def response(db: Executor, origin: str, endpoint: str, txn_id: str) -> StoredResponse | None:
    row = await db.fetchrow(
        "SELECT status, response FROM inbound_transactions"
        " WHERE origin = $1 AND endpoint = $2 AND txn_id = $3",
        origin,
        endpoint,
        txn_id,
    )
    return None if row is None else StoredResponse(row["status"], bytes(row["response"]))


async def take_lease(db: Executor, origin: str, txn_id: str, now_ms: int, until_ms: int) -> bool:
    """Become the one transaction in flight from `origin`; False while another one is.

    The same transaction may take its own lease again: its events are idempotent, and after a
    crash of ours the peer's retry must not wait for the lease to run out.
    """
    taken = await db.fetchval(
        "INSERT INTO inbound_leases (origin, txn_id, lease_until) VALUES ($1, $2, $4)"
        " ON CONFLICT (origin) DO UPDATE SET txn_id = excluded.txn_id, lease_until = excluded.lease_until"
        " WHERE inbound_leases.lease_until < $3 OR inbound_leases.txn_id = excluded.txn_id"
        " RETURNING true",
        origin,
        txn_id,
        now_ms,
        until_ms,
    )
    return bool(taken)


async def give_up_lease(db: Executor, origin: str, txn_id: str) -> None:
    await db.execute("DELETE FROM inbound_leases WHERE origin = $1 AND txn_id = $2", origin, txn_id)


async def finish(
    db: Executor, origin: str, endpoint: str, txn_id: str, answer: StoredResponse, now_ms: int
) -> None:
    """Store the answer and end the lease, in one statement; the first answer stands."""
    await db.execute(
        "WITH released AS (DELETE FROM inbound_leases WHERE origin = $1 AND txn_id = $3)"
        " INSERT INTO inbound_transactions (origin, endpoint, txn_id, status, response, created_ts)"
        " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        origin,
        endpoint,
        txn_id,
        answer.status,
        answer.body,
        now_ms,
    )


async def purge(db: Executor, before_ms: int) -> None:
    """Forget answers no peer will ask for again."""
    await db.execute("DELETE FROM inbound_transactions WHERE created_ts < $1", before_ms)
