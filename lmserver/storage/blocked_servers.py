"""Servers that operators have blocked while the server runs."""

from __future__ import annotations

from dataclasses import dataclass

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class BlockedServer:
    """Who blocked it, why, and when (ms)."""

    server: str
    blocked_by: str
    reason: str
    created_ts: int


async def add(db: Executor, server: str, by: str, reason: str, now_ms: int) -> None:
    """The newest reason stands."""
    await db.execute(
        "INSERT INTO blocked_servers (server, blocked_by, reason, created_ts) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (server) DO UPDATE SET blocked_by = excluded.blocked_by, reason = excluded.reason",
        server,
        by,
        reason,
        now_ms,
    )


async def remove(db: Executor, server: str) -> bool:
    """Whether it was blocked."""
    return await db.execute("DELETE FROM blocked_servers WHERE server = $1", server) == "DELETE 1"


async def listed(db: Executor, limit: int) -> list[BlockedServer]:
    """By name."""
    rows = await db.fetch(
        "SELECT server, blocked_by, reason, created_ts FROM blocked_servers ORDER BY server LIMIT $1", limit
    )
    return [BlockedServer(*(row[name] for name in BlockedServer.__slots__)) for row in rows]
