"""Servers we send to: whose turn it is to send, and when one that failed is tried again.

The lease on a destination carries a fencing number. A process that was paused past its lease
finds the number changed and can no longer record anything (drill D13). A time that is further away
than any pause we make was written by a clock that was wrong, and counts as past (drill D11).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lmserver.storage.database import Executor

LONGEST_PAUSE_MS: Final = 3_600_000
LONGEST_LEASE_MS: Final = 120_000


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to send to a destination until `until` (ms), and how it went lately: `failing` until
    it has taken something again."""

    fence: int
    failures: int
    until: int
    failing: bool = False


@dataclass(frozen=True, slots=True)
class FailingDestination:
    """A server that has taken nothing since `failing_since` (ms); `refuses` what was sent when it is
    there and answers."""

    destination: str
    failing_since: int
    failures: int
    retry_at: int
    last_failure: str


async def take_lease(db: Executor, destination: str, owner: str, now_ms: int, until_ms: int) -> Lease | None:
    """The lease, or None while another process has it or the destination is not to be tried yet."""
    row = await db.fetchrow(
        "INSERT INTO destinations (destination, lease_owner, lease_fence, lease_until)"
        " VALUES ($1, $2, 1, $4) ON CONFLICT (destination) DO UPDATE"
        " SET lease_owner = excluded.lease_owner, lease_fence = destinations.lease_fence + 1,"
        " lease_until = excluded.lease_until"
        " WHERE (destinations.lease_until < $3 OR destinations.lease_until > $5"
        " OR destinations.lease_owner = excluded.lease_owner)"
        " AND (destinations.retry_at <= $3 OR destinations.retry_at > $6)"
        " RETURNING lease_fence, failures, failing_since > 0 AS failing",
        destination,
        owner,
        now_ms,
        until_ms,
        now_ms + LONGEST_LEASE_MS,
        now_ms + LONGEST_PAUSE_MS,
    )
    return None if row is None else Lease(row["lease_fence"], row["failures"], until_ms, row["failing"])


async def extend_lease(db: Executor, destination: str, fence: int, until_ms: int) -> bool:
    """False when the lease is no longer ours."""
    kept = await db.fetchval(
        "UPDATE destinations SET lease_until = $3 WHERE destination = $1 AND lease_fence = $2 RETURNING true",
        destination,
        fence,
        until_ms,
    )
    return bool(kept)


async def release_lease(db: Executor, destination: str, fence: int) -> None:
    await db.execute(
        "UPDATE destinations SET lease_owner = NULL, lease_until = 0"
        " WHERE destination = $1 AND lease_fence = $2",
        destination,
        fence,
    )


async def release_leases(db: Executor, owner: str) -> None:
    """All of an owner that is known not to run."""
    await db.execute(
        "UPDATE destinations SET lease_owner = NULL, lease_until = 0 WHERE lease_owner = $1", owner
    )


async def failed(
    db: Executor, destination: str, fence: int, failures: int, retry_at: int, now_ms: int, reason: str
) -> None:
    """Remember why, since when, and when to try again, and end the lease."""
    await db.execute(
        "UPDATE destinations SET failures = $3, retry_at = $4, lease_owner = NULL, lease_until = 0,"
        " failing_since = CASE WHEN failing_since = 0 THEN $5 ELSE failing_since END, last_failure = $6"
        " WHERE destination = $1 AND lease_fence = $2",
        destination,
        fence,
        failures,
        retry_at,
        now_ms,
        reason,
    )


async def succeeded(db: Executor, destination: str) -> None:
    """It has taken something: nothing is held against it."""
    await db.execute(
        "UPDATE destinations SET failures = 0, retry_at = 0, failing_since = 0, last_failure = NULL"
        " WHERE destination = $1",
        destination,
    )


async def failing(db: Executor, limit: int) -> list[FailingDestination]:
    """Servers that take nothing, longest first."""
    rows = await db.fetch(
        "SELECT destination, failing_since, failures, retry_at, coalesce(last_failure, '') AS last_failure"
        " FROM destinations WHERE failing_since > 0 ORDER BY failing_since LIMIT $1",
        limit,
    )
    return [FailingDestination(*(r[name] for name in FailingDestination.__slots__)) for r in rows]


async def count_failing(db: Executor, before_ms: int) -> int:
    """How many have taken nothing since before a time."""
    count: int = await db.fetchval(
        "SELECT count(*) FROM destinations WHERE failing_since > 0 AND failing_since < $1", before_ms
    )
    return count


async def seize(db: Executor, destination: str) -> int | None:
    """A new fence, whoever has the lease: what is being sent can no longer be recorded. None for a
    server that nothing was ever sent to."""
    fence: int | None = await db.fetchval(
        "UPDATE destinations SET lease_fence = lease_fence + 1, lease_owner = NULL, lease_until = 0,"
        " retry_at = 0, failures = 0 WHERE destination = $1 RETURNING lease_fence",
        destination,
    )
    return fence


async def alive(db: Executor, destination: str) -> None:
    """The server has spoken to us: try it at once."""
    await db.execute(
        "UPDATE destinations SET failures = 0, retry_at = 0 WHERE destination = $1 AND retry_at > 0",
        destination,
    )


async def backing_off(db: Executor, now_ms: int, limit: int) -> dict[str, int]:
    """Destinations not to be tried yet, and until when."""
    rows = await db.fetch(
        "SELECT destination, retry_at FROM destinations WHERE retry_at > $1 AND retry_at <= $3"
        " ORDER BY retry_at LIMIT $2",
        now_ms,
        limit,
        now_ms + LONGEST_PAUSE_MS,
    )
    return {r["destination"]: r["retry_at"] for r in rows}


async def with_work(db: Executor, now_ms: int, limit: int) -> list[str]:
    """Destinations that something waits for and that may be tried now, longest untried first."""
    rows = await db.fetch(
        "SELECT w.destination FROM ("
        "SELECT destination FROM outbound_transactions"
        " UNION SELECT r.destination FROM outbound_ranges AS r JOIN rooms AS m ON m.room_id = r.room_id"
        " WHERE r.acked_position < least(m.head_position, r.until_position)"
        " UNION SELECT destination FROM outbound_lpdus WHERE status = 'pending'"
        " AND (resend_at <= $1 OR resend_at > $3)"
        " UNION SELECT e.destination FROM destinations AS e"
        " WHERE EXISTS (SELECT FROM outbound_edus AS o WHERE o.destination = e.destination)) AS w"
        " LEFT JOIN destinations AS d ON d.destination = w.destination"
        " WHERE (coalesce(d.retry_at, 0) <= $1 OR d.retry_at > $3)"
        " AND (coalesce(d.lease_until, 0) < $1 OR d.lease_until > $4)"
        " ORDER BY coalesce(d.retry_at, 0), w.destination LIMIT $2",
        now_ms,
        limit,
        now_ms + LONGEST_PAUSE_MS,
        now_ms + LONGEST_LEASE_MS,
    )
    return [r["destination"] for r in rows]
