"""Parts of rooms' lists that hubs told us of and that we have not got yet.

One row a room: the newest event known to be missing, and on top of it a stack of older ones, each
the place where a page fetched from the hub began. The stack survives restarts, so a gap of any
length is closed in bounded steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lmserver.storage.database import Executor

MAX_BOUNDARIES: Final = 2_000
MAX_TARGETS: Final = 100
"""Events that may be noted above an open gap; one more replaces the newest."""


@dataclass(frozen=True, slots=True)
class Gap:
    """`attempts` counts tries in a row in which the hub gave nothing of use."""

    room_id: str
    target_event_id: str
    boundaries: tuple[str, ...]
    attempts: int

    @property
    def top(self) -> str:
        """The event to ask for next."""
        return self.boundaries[-1] if self.boundaries else self.target_event_id


async def note(db: Executor, room_id: str, event_id: str, retry_at: int) -> None:
    """The event and what leads to it are missing; tried again from `retry_at` (ms)."""
    await db.execute(
        "INSERT INTO room_gaps AS g (room_id, target_event_id, retry_at) VALUES ($1, $2, $3)"
        " ON CONFLICT (room_id) DO UPDATE SET target_event_id = $2, boundaries ="
        " CASE WHEN cardinality(g.boundaries) < $4 THEN array_prepend(g.target_event_id, g.boundaries)"
        " ELSE g.boundaries END"
        " WHERE g.target_event_id <> $2 AND NOT $2 = ANY(g.boundaries)",
        room_id,
        event_id,
        retry_at,
        MAX_TARGETS,
    )


async def get(db: Executor, room_id: str) -> Gap | None:
    row = await db.fetchrow(
        "SELECT room_id, target_event_id, boundaries, attempts FROM room_gaps WHERE room_id = $1", room_id
    )
    if row is None:
        return None
    return Gap(row["room_id"], row["target_event_id"], tuple(row["boundaries"]), row["attempts"])


async def push(db: Executor, room_id: str, top: str, event_id: str) -> None:
    """`event_id` comes before what was fetched up to `top`, and is to be fetched first."""
    await db.execute(
        "UPDATE room_gaps SET boundaries = array_append(boundaries, $3), attempts = 0 WHERE room_id = $1"
        " AND coalesce(boundaries[cardinality(boundaries)], target_event_id) = $2"
        " AND cardinality(boundaries) < $4",
        room_id,
        top,
        event_id,
        MAX_BOUNDARIES,
    )


async def close(db: Executor, room_id: str, top: str, attempts: int) -> None:
    """The event and everything before it are in the list: the next one's turn, or the end."""
    await db.execute(
        "UPDATE room_gaps SET boundaries = boundaries[1:cardinality(boundaries) - 1], attempts = $3"
        " WHERE room_id = $1 AND boundaries[cardinality(boundaries)] = $2",
        room_id,
        top,
        attempts,
    )
    await db.execute(
        "DELETE FROM room_gaps WHERE room_id = $1 AND target_event_id = $2 AND cardinality(boundaries) = 0",
        room_id,
        top,
    )


async def drop(db: Executor, room_id: str) -> None:
    """Nothing of it can be had."""
    await db.execute("DELETE FROM room_gaps WHERE room_id = $1", room_id)


async def retry(db: Executor, room_id: str, attempts: int, retry_at: int) -> None:
    await db.execute(
        "UPDATE room_gaps SET attempts = $2, retry_at = $3 WHERE room_id = $1", room_id, attempts, retry_at
    )


async def claim_due(db: Executor, now_ms: int, until_ms: int, limit: int) -> list[str]:
    """Rooms whose gap is to be tried now; nobody else gets them before `until_ms`."""
    rows = await db.fetch(
        "UPDATE room_gaps AS g SET retry_at = $2 FROM (SELECT room_id FROM room_gaps WHERE retry_at <= $1"
        " ORDER BY retry_at LIMIT $3 FOR UPDATE SKIP LOCKED) AS due WHERE g.room_id = due.room_id"
        " RETURNING g.room_id",
        now_ms,
        until_ms,
        limit,
    )
    return [r["room_id"] for r in rows]
