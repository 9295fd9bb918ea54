"""Users whose account has ended and who still have to leave their rooms."""

from __future__ import annotations

from dataclasses import dataclass

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class Departure:
    user_id: str
    tries: int


async def add(db: Executor, user_id: str, now_ms: int) -> None:
    await db.execute(
        "INSERT INTO departures (user_id, retry_at) VALUES ($1, $2)"
        " ON CONFLICT (user_id) DO UPDATE SET retry_at = excluded.retry_at, tries = 0",
        user_id,
        now_ms,
    )


async def due(db: Executor, now_ms: int, limit: int) -> list[Departure]:
    rows = await db.fetch(
        "SELECT user_id, tries FROM departures WHERE retry_at <= $1 ORDER BY retry_at LIMIT $2", now_ms, limit
    )
    return [Departure(row["user_id"], row["tries"]) for row in rows]


async def later(db: Executor, user_id: str, retry_at: int) -> None:
    await db.execute(
        "UPDATE departures SET retry_at = $2, tries = tries + 1 WHERE user_id = $1", user_id, retry_at
    )


async def done(db: Executor, user_id: str) -> None:
    await db.execute("DELETE FROM departures WHERE user_id = $1", user_id)
