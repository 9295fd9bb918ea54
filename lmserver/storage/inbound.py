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


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer given before, or the fence of the lease we now hold, or neither: wait."""

    response: StoredResponse | None
    fence: int | None


async def response(db: Executor, origin: str, endpoint: str, txn_id: str) -> StoredResponse | None:
    row = await db.fetchrow(
        "SELECT status, response FROM inbound_transactions"
        " WHERE origin = $1 AND endpoint = $2 AND txn_id = $3",
        origin,
        endpoint,
        txn_id,
    )
    return None if row is None else StoredResponse(row["status"], bytes(row["response"]))


async def claim(db: Executor, origin: str, endpoint: str, txn_id: str, now_ms: int, until_ms: int) -> Claim:
    """Find the answer of a transaction or become the one that processes it.

    The same transaction may take over its own unfinished lease: its events are idempotent, and
    after a crash of ours the peer's retry must not wait for the lease to run out. A lease that
    was finished under our feet (lease_until 0, same transaction) is not taken: its answer is there.
    A lease does not wait for the disk: a crash of the database ends it.
    """
    row = await db.fetchrow(
        "WITH known AS (SELECT status, response FROM inbound_transactions"
        " WHERE origin = $1 AND endpoint = $2 AND txn_id = $3),"
        " taken AS (INSERT INTO inbound_leases (origin, txn_id, fence, lease_until)"
        " SELECT $1, $3, 1, $5 WHERE NOT EXISTS (SELECT FROM known)"
        " ON CONFLICT (origin) DO UPDATE SET txn_id = excluded.txn_id,"
        " fence = inbound_leases.fence + 1, lease_until = excluded.lease_until"
        " WHERE (inbound_leases.txn_id <> excluded.txn_id AND (inbound_leases.lease_until < $4"
        " OR inbound_leases.lease_until > $6))"
        " OR (inbound_leases.txn_id = excluded.txn_id AND inbound_leases.lease_until > 0)"
        " RETURNING fence)"
        " SELECT (SELECT status FROM known) AS status, (SELECT response FROM known) AS response,"
        " (SELECT fence FROM taken) AS fence, set_config('synchronous_commit', 'off', true)",
        origin,
        endpoint,
        txn_id,
        now_ms,
        until_ms,
        # Further away than any lease we take: written by a clock that was wrong (drill D11).
        until_ms + 60_000,
    )
    known = None if row["status"] is None else StoredResponse(row["status"], bytes(row["response"]))
    return Claim(known, row["fence"])


async def give_up(db: Executor, origin: str, fence: int) -> None:
    """End a lease without an answer: the peer's retry is processed anew."""
    await db.execute(
        "UPDATE inbound_leases SET txn_id = '', lease_until = 0 WHERE origin = $1 AND fence = $2",
        origin,
        fence,
    )


async def finish(
    db: Executor,
    origin: str,
    endpoint: str,
    txn_id: str,
    answer: StoredResponse,
    now_ms: int,
    fence: int | None = None,
) -> StoredResponse:
    """Store the answer and end the lease, in one statement; the first answer stands and is returned.

    It does not wait for the disk: what the answer tells of is on it already, and after a crash of the
    database that forgot the answer a retry is processed again and finds it.
    """
    stored = await db.fetchval(
        "WITH released AS (UPDATE inbound_leases SET lease_until = 0 WHERE origin = $1 AND fence = $7)"
        " INSERT INTO inbound_transactions (origin, endpoint, txn_id, status, response, created_ts)"
        " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING"
        " RETURNING set_config('synchronous_commit', 'off', true) IS NOT NULL",
        origin,
        endpoint,
        txn_id,
        answer.status,
        answer.body,
        now_ms,
        fence,
    )
    if stored:
        return answer
    return await response(db, origin, endpoint, txn_id) or answer


async def purge(db: Executor, before_ms: int) -> None:
    """Forget answers no peer will ask for again, and leases that stand for none."""
    await db.execute("DELETE FROM inbound_transactions WHERE created_ts < $1", before_ms)
    await db.execute(
        "DELETE FROM inbound_leases AS l WHERE l.lease_until < $1 AND NOT EXISTS"
        " (SELECT FROM inbound_transactions AS t WHERE t.origin = l.origin AND t.txn_id = l.txn_id)",
        before_ms,
    )
