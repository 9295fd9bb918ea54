"""The room in which this server speaks to each of its users."""

from __future__ import annotations

from lmserver.storage.database import Executor


async def room_of(db: Executor, user_id: str) -> str | None:
    room_id: str | None = await db.fetchval("SELECT room_id FROM notice_rooms WHERE user_id = $1", user_id)
    return room_id


async def set_room(db: Executor, user_id: str, room_id: str) -> None:
    await db.execute(
        "INSERT INTO notice_rooms (user_id, room_id) VALUES ($1, $2)"
        " ON CONFLICT (user_id) DO UPDATE SET room_id = EXCLUDED.room_id",
        user_id,
        room_id,
    )


async def recipients(db: Executor, after: str, limit: int) -> list[str]:
    """Users that notices can reach, in order of their IDs, from beyond one."""
    rows = await db.fetch(
        "SELECT user_id FROM accounts WHERE NOT deactivated AND user_id > $1 ORDER BY user_id LIMIT $2",
        after,
        limit,
    )
    return [r["user_id"] for r in rows]
