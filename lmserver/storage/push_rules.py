"""What users changed of the default push rules: one row each, JSON stored as bytes."""

from __future__ import annotations

from collections.abc import Sequence

from lmserver.storage.database import Connection, Executor


async def get(db: Executor, user_id: str) -> bytes | None:
    """The user's differences; None for one who never changed a rule."""
    found = await db.fetchval("SELECT changes FROM push_rules WHERE user_id = $1", user_id)
    return None if found is None else bytes(found)


async def of_users(db: Executor, user_ids: Sequence[str]) -> list[bytes | None]:
    """The same for many users, in their order."""
    rows = await db.fetch(
        "SELECT r.changes FROM unnest($1::text[]) WITH ORDINALITY AS u (user_id, n)"
        " LEFT JOIN push_rules AS r ON r.user_id = u.user_id ORDER BY u.n",
        list(user_ids),
    )
    return [None if r["changes"] is None else bytes(r["changes"]) for r in rows]


async def lock(db: Connection, user_id: str, none: bytes) -> bytes:
    """The user's differences, held for the rest of the transaction; `none` is what begins them."""
    await db.execute(
        "INSERT INTO push_rules (user_id, changes) VALUES ($1, $2) ON CONFLICT DO NOTHING", user_id, none
    )
    return bytes(await db.fetchval("SELECT changes FROM push_rules WHERE user_id = $1 FOR UPDATE", user_id))


async def put(db: Connection, user_id: str, changes: bytes) -> None:
    """Replace what `lock` gave."""
    await db.execute(
        "UPDATE push_rules SET changes = $2, stream_xid = pg_current_xact_id() WHERE user_id = $1",
        user_id,
        changes,
    )


async def have_changed(db: Executor, user_id: str, since: int, upto: int) -> bool:
    """Whether the user changed a rule in the stream interval [since, upto)."""
    found: bool = await db.fetchval(
        "SELECT EXISTS (SELECT 1 FROM push_rules WHERE user_id = $1 AND stream_xid >= $2::text::xid8"
        " AND stream_xid < $3::text::xid8)",
        user_id,
        str(since),
        str(upto),
    )
    return found
