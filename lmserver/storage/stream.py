"""Stream positions: what has been committed for good, across all rooms.

A position N means "every transaction with an ID below N is finished and seen". A bare sequence
cannot be followed: a number drawn early and committed late would be skipped.
"""

from __future__ import annotations

from lmserver.storage.database import Executor


async def settled(db: Executor) -> int:
    """The position up to which nothing can still appear: rows with stream_xid below it are final."""
    position: int = await db.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
    return position
