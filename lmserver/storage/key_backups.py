"""Backups of room keys: their versions, and the keys in them. What is in a key is the client's secret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class Backup:
    """One version of a user's backup; `etag` grows with each change of its keys."""

    version: int
    algorithm: str
    auth_data: bytes
    etag: int
    key_count: int


@dataclass(frozen=True, slots=True)
class BackedUpKey:
    """The key of one megolm session (CS API §Server-side key backups, KeyBackupData)."""

    room_id: str
    session_id: str
    first_message_index: int
    forwarded_count: int
    is_verified: bool
    session_data: bytes


def _backup(row: Any) -> Backup:
    return Backup(*(row[name] for name in Backup.__slots__))


async def create(db: Executor, user_id: str, algorithm: str, auth_data: bytes) -> int:
    """A new version, never one that was before. The caller holds the user's account."""
    version: int = await db.fetchval(
        "INSERT INTO key_backups (user_id, version, algorithm, auth_data) VALUES ($1,"
        " (SELECT coalesce(max(version), 0) + 1 FROM key_backups WHERE user_id = $1), $2, $3)"
        " RETURNING version",
        user_id,
        algorithm,
        auth_data,
    )
    return version


async def current(db: Executor, user_id: str) -> Backup | None:
    """The newest version that is not deleted."""
    row = await db.fetchrow(
        "SELECT version, algorithm, auth_data, etag, key_count FROM key_backups"
        " WHERE user_id = $1 AND NOT deleted ORDER BY version DESC LIMIT 1",
        user_id,
    )
    return None if row is None else _backup(row)


async def get(db: Executor, user_id: str, version: int) -> Backup | None:
    row = await db.fetchrow(
        "SELECT version, algorithm, auth_data, etag, key_count FROM key_backups"
        " WHERE user_id = $1 AND version = $2 AND NOT deleted",
        user_id,
        version,
    )
    return None if row is None else _backup(row)


async def lock(db: Executor, user_id: str, version: int) -> Backup | None:
    """The same, held until the transaction ends: one change of its keys at a time."""
    row = await db.fetchrow(
        "SELECT version, algorithm, auth_data, etag, key_count FROM key_backups"
        " WHERE user_id = $1 AND version = $2 AND NOT deleted FOR UPDATE",
        user_id,
        version,
    )
    return None if row is None else _backup(row)


async def set_auth_data(db: Executor, user_id: str, version: int, auth_data: bytes) -> None:
    await db.execute(
        "UPDATE key_backups SET auth_data = $3 WHERE user_id = $1 AND version = $2",
        user_id,
        version,
        auth_data,
    )


async def delete(db: Executor, user_id: str, version: int) -> bool:
    """Delete a version with its keys; its number stays taken. False when there never was one."""
    known = await db.fetchval(
        "UPDATE key_backups SET deleted = true, auth_data = '', key_count = 0"
        " WHERE user_id = $1 AND version = $2 RETURNING true",
        user_id,
        version,
    )
    await db.execute("DELETE FROM backed_up_keys WHERE user_id = $1 AND version = $2", user_id, version)
    return bool(known)


async def remove_user(db: Executor, user_id: str) -> None:
    """Everything of a user who is gone."""
    await db.execute("DELETE FROM backed_up_keys WHERE user_id = $1", user_id)
    await db.execute("DELETE FROM key_backups WHERE user_id = $1", user_id)


async def total(db: Executor, user_id: str) -> tuple[int, int]:
    """(versions, keys in all of them), those deleted included."""
    row = await db.fetchrow(
        "SELECT count(*) AS versions, coalesce(sum(key_count), 0)::bigint AS keys FROM key_backups"
        " WHERE user_id = $1",
        user_id,
    )
    return row["versions"], row["keys"]


async def put_keys(db: Executor, user_id: str, version: int, keys: Sequence[BackedUpKey]) -> tuple[int, int]:
    """(new, changed): keys that were not there, and all that were written. A key that is there gives
    way to a better one only: verified before not, then the earlier index, then forwarded less often
    (CS API §PUT room_keys/keys). No two of one session; the caller holds the version."""
    row = await db.fetchrow(
        "WITH n AS (SELECT * FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::boolean[],"
        " $8::bytea[]) AS u (room_id, session_id, first_message_index, forwarded_count, is_verified,"
        " session_data)),"
        " old AS (SELECT count(*) AS number FROM n JOIN backed_up_keys AS k ON k.user_id = $1"
        " AND k.version = $2 AND k.room_id = n.room_id AND k.session_id = n.session_id),"
        " put AS (INSERT INTO backed_up_keys AS k (user_id, version, room_id, session_id,"
        " first_message_index, forwarded_count, is_verified, session_data)"
        " SELECT $1, $2, n.* FROM n"
        " ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET"
        " first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count,"
        " is_verified = excluded.is_verified, session_data = excluded.session_data"
        " WHERE (NOT excluded.is_verified, excluded.first_message_index, excluded.forwarded_count)"
        " < (NOT k.is_verified, k.first_message_index, k.forwarded_count) RETURNING 1)"
        " SELECT (SELECT number FROM old) AS old, (SELECT count(*) FROM put) AS put",
        user_id,
        version,
        *([getattr(key, name) for key in keys] for name in BackedUpKey.__slots__),
    )
    return len(keys) - row["old"], row["put"]


async def delete_keys(
    db: Executor, user_id: str, version: int, room_id: str | None, session_id: str | None
) -> int:
    """Keys of a session, of a room, or all; how many. The caller holds the version."""
    deleted: int = await db.fetchval(
        "WITH gone AS (DELETE FROM backed_up_keys WHERE user_id = $1 AND version = $2"
        " AND ($3::text IS NULL OR room_id = $3) AND ($4::text IS NULL OR session_id = $4) RETURNING 1)"
        " SELECT count(*) FROM gone",
        user_id,
        version,
        room_id,
        session_id,
    )
    return deleted


async def keys_changed(db: Executor, user_id: str, version: int, more: int) -> Backup:
    """Count `more` keys, which may be negative, and give the version another etag."""
    row = await db.fetchrow(
        "UPDATE key_backups SET etag = etag + 1, key_count = key_count + $3"
        " WHERE user_id = $1 AND version = $2"
        " RETURNING version, algorithm, auth_data, etag, key_count",
        user_id,
        version,
        more,
    )
    return _backup(row)


async def key(db: Executor, user_id: str, version: int, room_id: str, session_id: str) -> BackedUpKey | None:
    row = await db.fetchrow(
        "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data"
        " FROM backed_up_keys WHERE user_id = $1 AND version = $2 AND room_id = $3 AND session_id = $4",
        user_id,
        version,
        room_id,
        session_id,
    )
    return None if row is None else _key(row)


async def keys_after(
    db: Executor, user_id: str, version: int, after: tuple[str, str], limit: int
) -> list[BackedUpKey]:
    """The next keys after (room ID, session ID) in that order."""
    rows = await db.fetch(
        "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data"
        " FROM backed_up_keys WHERE user_id = $1 AND version = $2 AND (room_id, session_id) > ($3, $4)"
        " ORDER BY room_id, session_id LIMIT $5",
        user_id,
        version,
        *after,
        limit,
    )
    return [_key(r) for r in rows]


async def room_keys_after(
    db: Executor, user_id: str, version: int, room_id: str, after: str, limit: int
) -> list[BackedUpKey]:
    """The next keys of a room after a session ID."""
    rows = await db.fetch(
        "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data"
        " FROM backed_up_keys WHERE user_id = $1 AND version = $2 AND room_id = $3 AND session_id > $4"
        " ORDER BY session_id LIMIT $5",
        user_id,
        version,
        room_id,
        after,
        limit,
    )
    return [_key(r) for r in rows]


def _key(row: Any) -> BackedUpKey:
    return BackedUpKey(*(row[name] for name in BackedUpKey.__slots__))
