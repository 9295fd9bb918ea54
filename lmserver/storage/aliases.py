"""Local room aliases, the list of published rooms, and which rooms a user has forgotten."""

from __future__ import annotations

from lmserver.storage.database import Executor


async def add(db: Executor, alias: str, room_id: str, creator: str, now_ms: int) -> None:
    """Raises UniqueViolation when the alias is taken."""
    await db.execute(
        "INSERT INTO room_aliases (alias, room_id, creator, created_ts) VALUES ($1, $2, $3, $4)",
        alias,
        room_id,
        creator,
        now_ms,
    )


async def room_of(db: Executor, alias: str) -> str | None:
    room_id: str | None = await db.fetchval("SELECT room_id FROM room_aliases WHERE alias = $1", alias)
    return room_id


async def owner_of(db: Executor, alias: str) -> tuple[str, str] | None:
    """(room ID, creator) of an alias."""
    row = await db.fetchrow("SELECT room_id, creator FROM room_aliases WHERE alias = $1", alias)
    return None if row is None else (row["room_id"], row["creator"])


async def of_room(db: Executor, room_id: str) -> list[str]:
    rows = await db.fetch("SELECT alias FROM room_aliases WHERE room_id = $1 ORDER BY alias", room_id)
    return [r["alias"] for r in rows]


async def times_of_room(db: Executor, room_id: str) -> dict[str, int]:
    """A room's aliases, and since when (ms) they are its; 0 for those of older versions."""
    rows = await db.fetch("SELECT alias, created_ts FROM room_aliases WHERE room_id = $1", room_id)
    return {r["alias"]: r["created_ts"] for r in rows}


async def after(db: Executor, alias: str, limit: int) -> list[tuple[str, str]]:
    """(alias, room ID) of all, a page at a time."""
    rows = await db.fetch(
        "SELECT alias, room_id FROM room_aliases WHERE alias > $1 ORDER BY alias LIMIT $2", alias, limit
    )
    return [(r["alias"], r["room_id"]) for r in rows]


async def remove(db: Executor, alias: str) -> None:
    await db.execute("DELETE FROM room_aliases WHERE alias = $1", alias)


async def move(db: Executor, old_room: str, new_room: str) -> None:
    """Give a room's aliases and its place in the public list to another; in one transaction."""
    await db.execute("UPDATE room_aliases SET room_id = $2 WHERE room_id = $1", old_room, new_room)
    listed = await db.execute("DELETE FROM published_rooms WHERE room_id = $1", old_room)
    if listed != "DELETE 0":
        await set_published(db, new_room, True)


async def forget_room(db: Executor, user_id: str, room_id: str) -> None:
    """The user wants to hear no more of a room they have left."""
    await db.execute(
        "INSERT INTO forgotten_rooms (user_id, room_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        user_id,
        room_id,
    )


async def remember_room(db: Executor, user_id: str, room_id: str) -> None:
    """The user has joined again: what they may see of the past is theirs to see again."""
    await db.execute("DELETE FROM forgotten_rooms WHERE user_id = $1 AND room_id = $2", user_id, room_id)


async def is_forgotten(db: Executor, user_id: str, room_id: str) -> bool:
    found = await db.fetchval(
        "SELECT 1 FROM forgotten_rooms WHERE user_id = $1 AND room_id = $2", user_id, room_id
    )
    return found is not None


async def set_published(db: Executor, room_id: str, public: bool) -> None:
    """Show a room in the public list, or take it off."""
    if public:
        await db.execute("INSERT INTO published_rooms (room_id) VALUES ($1) ON CONFLICT DO NOTHING", room_id)
    else:
        await db.execute("DELETE FROM published_rooms WHERE room_id = $1", room_id)


async def is_published(db: Executor, room_id: str) -> bool:
    return await db.fetchval("SELECT 1 FROM published_rooms WHERE room_id = $1", room_id) is not None
