"""Fields of users' profiles beside name and avatar: any JSON under a namespaced name."""

from __future__ import annotations

from lmserver.storage.database import Connection, Executor


async def of_user(db: Executor, user_id: str) -> dict[str, bytes]:
    """The value of each field, as JSON."""
    rows = await db.fetch(
        "SELECT field, value FROM profile_fields WHERE user_id = $1 ORDER BY field", user_id
    )
    return {row["field"]: row["value"] for row in rows}


async def put(db: Connection, user_id: str, field: str, value: bytes) -> None:
    await db.execute(
        "INSERT INTO profile_fields (user_id, field, value) VALUES ($1, $2, $3)"
        " ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value",
        user_id,
        field,
        value,
    )


async def remove(db: Executor, user_id: str, field: str) -> None:
    await db.execute("DELETE FROM profile_fields WHERE user_id = $1 AND field = $2", user_id, field)
