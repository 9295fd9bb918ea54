"""Key IDs of other servers that somebody published with other bytes than those we knew first.

The first bytes stay in use (attacks K1, K6); what is kept here is for the operator to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor

MAX_FOR_SERVER = 100


@dataclass(frozen=True, slots=True)
class KeyConflict:
    """`key` are the bytes that are not used; `told_by` is the server itself or a notary."""

    server: str
    key_id: str
    key: bytes
    told_by: str
    first_seen: int
    last_seen: int
    times: int


async def add(
    db: Executor, server: str, found: Sequence[tuple[str, bytes]], told_by: str, now: int
) -> list[str]:
    """Note (key ID, bytes) pairs; the key IDs of those that are new."""
    rows = await db.fetch(
        "INSERT INTO key_conflicts AS c (server, key_id, key, told_by, first_seen, last_seen)"
        " SELECT $1, f.key_id, f.key, $4, $5, $5 FROM unnest($2::text[], $3::bytea[]) AS f (key_id, key)"
        " WHERE (SELECT count(*) FROM key_conflicts k WHERE k.server = $1) < $6"
        " ORDER BY f.key_id ON CONFLICT (server, key_id, key, told_by) DO UPDATE"
        " SET last_seen = excluded.last_seen, times = c.times + 1 RETURNING c.key_id, c.times",
        server,
        [key_id for key_id, _ in found],
        [key for _, key in found],
        told_by,
        now,
        MAX_FOR_SERVER,
    )
    return [r["key_id"] for r in rows if r["times"] == 1]


async def all_conflicts(db: Executor, limit: int) -> list[KeyConflict]:
    """The last seen first."""
    rows = await db.fetch(
        "SELECT server, key_id, key, told_by, first_seen, last_seen, times FROM key_conflicts"
        " ORDER BY last_seen DESC, server, key_id LIMIT $1",
        limit,
    )
    return [KeyConflict(*r.values()) for r in rows]
