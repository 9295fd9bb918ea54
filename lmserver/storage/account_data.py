"""Account data and filters: JSON clients keep with us, stored as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson

from lmserver.storage.database import Executor

IGNORED_USERS = "m.ignored_user_list"


@dataclass(frozen=True, slots=True)
class AccountDatum:
    """Global data has the room ID ""."""

    room_id: str
    type: str
    content: bytes


async def put(db: Executor, user_id: str, room_id: str, type_: str, content: bytes) -> None:
    await db.execute(
        "INSERT INTO account_data (user_id, room_id, type, content) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content,"
        " stream_xid = pg_current_xact_id()",
        user_id,
        room_id,
        type_,
        content,
    )


async def get(db: Executor, user_id: str, room_id: str, type_: str) -> bytes | None:
    content = await db.fetchval(
        "SELECT content FROM account_data WHERE user_id = $1 AND room_id = $2 AND type = $3",
        user_id,
        room_id,
        type_,
    )
    return None if content is None else bytes(content)


async def lock(db: Executor, user_id: str) -> None:
    """Let nobody else change the data of a local user for the rest of the transaction."""
    await db.execute("SELECT 1 FROM accounts WHERE user_id = $1 FOR NO KEY UPDATE", user_id)


async def ignored_users(db: Executor, user_id: str) -> frozenset[str]:
    """Whom the user does not want to hear of (CS API §Ignoring Users); what is malformed is nobody."""
    return _ignored(await get(db, user_id, "", IGNORED_USERS))


async def ignored_of(db: Executor, user_ids: Sequence[str]) -> list[frozenset[str]]:
    """The same for many users, in their order."""
    rows = await db.fetch(
        "SELECT a.content FROM unnest($1::text[]) WITH ORDINALITY AS u (user_id, n)"
        " LEFT JOIN account_data AS a ON a.user_id = u.user_id AND a.room_id = '' AND a.type = $2"
        " ORDER BY u.n",
        list(user_ids),
        IGNORED_USERS,
    )
    return [_ignored(r["content"]) for r in rows]


def _ignored(data: bytes | None) -> frozenset[str]:
    content = None if data is None else orjson.loads(data)
    ignored = content.get("ignored_users") if isinstance(content, dict) else None
    return frozenset(ignored) if isinstance(ignored, dict) else frozenset()


async def count(db: Executor, user_id: str) -> int:
    found: int = await db.fetchval("SELECT count(*) FROM account_data WHERE user_id = $1", user_id)
    return found


async def changed(db: Executor, user_id: str, since: int, upto: int) -> list[AccountDatum]:
    """What changed in the stream interval [since, upto)."""
    rows = await db.fetch(
        "SELECT room_id, type, content FROM account_data WHERE user_id = $1"
        " AND stream_xid >= $2::text::xid8 AND stream_xid < $3::text::xid8 ORDER BY room_id, type",
        user_id,
        str(since),
        str(upto),
    )
    return [AccountDatum(r["room_id"], r["type"], bytes(r["content"])) for r in rows]


async def of_rooms(db: Executor, user_id: str, room_ids: Iterable[str]) -> list[AccountDatum]:
    rows = await db.fetch(
        "SELECT room_id, type, content FROM account_data WHERE user_id = $1 AND room_id = ANY($2::text[])"
        " ORDER BY room_id, type",
        user_id,
        list(room_ids),
    )
    return [AccountDatum(r["room_id"], r["type"], bytes(r["content"])) for r in rows]


async def of_type(db: Executor, user_id: str, type_: str) -> list[AccountDatum]:
    """One type of data, of all rooms that have it."""
    rows = await db.fetch(
        "SELECT room_id, type, content FROM account_data WHERE user_id = $1 AND type = $2", user_id, type_
    )
    return [AccountDatum(r["room_id"], r["type"], bytes(r["content"])) for r in rows]


async def put_filter(db: Executor, user_id: str, filter_id: str, content: bytes) -> None:
    """Filters are named by their content, so the same one twice is one row."""
    await db.execute(
        "INSERT INTO filters (user_id, filter_id, filter) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        user_id,
        filter_id,
        content,
    )


async def get_filter(db: Executor, user_id: str, filter_id: str) -> bytes | None:
    content = await db.fetchval(
        "SELECT filter FROM filters WHERE user_id = $1 AND filter_id = $2", user_id, filter_id
    )
    return None if content is None else bytes(content)


async def count_filters(db: Executor, user_id: str) -> int:
    found: int = await db.fetchval("SELECT count(*) FROM filters WHERE user_id = $1", user_id)
    return found
