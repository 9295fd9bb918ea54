"""Access tokens, the refresh tokens that renew them, and tokens to log in with; all by their hashes.

A pair of tokens names the pair that follows it (`next_hash`), and is there until that one is used: the
answer that brought it may have been lost (CS API §Refreshing access tokens).
"""

from __future__ import annotations

from dataclasses import dataclass

from lmserver.storage.database import Connection, Executor


@dataclass(frozen=True, slots=True)
class TokenOwner:
    """Whom an access token stands for, until when (ms; None: for ever), and the hash of the refresh
    token whose pair it replaces."""

    user_id: str
    device_id: str
    is_admin: bool
    deactivated: bool
    locked: bool
    suspended: bool
    expires_ts: int | None
    replaces: bytes | None


@dataclass(frozen=True, slots=True)
class RefreshToken:
    user_id: str
    device_id: str
    next_hash: bytes | None


async def add(
    db: Executor,
    token_hash: bytes,
    user_id: str,
    device_id: str,
    expires_ts: int | None,
    refresh_hash: bytes | None,
    now_ms: int,
) -> None:
    await db.execute(
        "INSERT INTO access_tokens (token_hash, user_id, device_id, expires_ts, refresh_hash, created_ts)"
        " VALUES ($1, $2, $3, $4, $5, $6)",
        token_hash,
        user_id,
        device_id,
        expires_ts,
        refresh_hash,
        now_ms,
    )


async def add_refresh(db: Executor, token_hash: bytes, user_id: str, device_id: str, now_ms: int) -> None:
    await db.execute(
        "INSERT INTO refresh_tokens (token_hash, user_id, device_id, created_ts) VALUES ($1, $2, $3, $4)",
        token_hash,
        user_id,
        device_id,
        now_ms,
    )


async def remove_of_device(db: Executor, user_id: str, device_id: str) -> None:
    """Tokens of a device that logs in again: one login, one pair of tokens."""
    await db.execute("DELETE FROM access_tokens WHERE user_id = $1 AND device_id = $2", user_id, device_id)
    await db.execute("DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = $2", user_id, device_id)


async def owner(db: Executor, token_hash: bytes) -> TokenOwner | None:
    row = await db.fetchrow(
        "SELECT t.user_id, t.device_id, a.is_admin, a.deactivated, a.locked, a.suspended, t.expires_ts,"
        " p.token_hash AS replaces FROM access_tokens AS t JOIN accounts AS a ON a.user_id = t.user_id"
        " LEFT JOIN refresh_tokens AS p ON p.next_hash = t.refresh_hash WHERE t.token_hash = $1",
        token_hash,
    )
    return None if row is None else TokenOwner(*(row[name] for name in TokenOwner.__slots__))


async def ended(db: Executor, before_ms: int, limit: int) -> list[tuple[str, str]]:
    """(user, device) of logins that nothing can renew and that ended before a time."""
    rows = await db.fetch(
        "SELECT user_id, device_id FROM access_tokens"
        " WHERE refresh_hash IS NULL AND expires_ts < $1 LIMIT $2",
        before_ms,
        limit,
    )
    return [(row["user_id"], row["device_id"]) for row in rows]


async def take_refresh(db: Connection, token_hash: bytes) -> RefreshToken | None:
    """A refresh token, locked until the transaction ends."""
    row = await db.fetchrow(
        "SELECT user_id, device_id, next_hash FROM refresh_tokens WHERE token_hash = $1 FOR UPDATE",
        token_hash,
    )
    return None if row is None else RefreshToken(row["user_id"], row["device_id"], row["next_hash"])


async def set_next(db: Connection, token_hash: bytes, next_hash: bytes) -> None:
    await db.execute("UPDATE refresh_tokens SET next_hash = $2 WHERE token_hash = $1", token_hash, next_hash)


async def replaced_by(db: Connection, token_hash: bytes) -> bytes | None:
    """The refresh token whose pair is replaced by this one's, if that is still there."""
    found: bytes | None = await db.fetchval(
        "SELECT token_hash FROM refresh_tokens WHERE next_hash = $1", token_hash
    )
    return found


async def remove_pair(db: Executor, refresh_hash: bytes) -> list[bytes]:
    """End a refresh token and its access token; returns the hashes of what access tokens there were."""
    await db.execute("DELETE FROM refresh_tokens WHERE token_hash = $1", refresh_hash)
    rows = await db.fetch(
        "DELETE FROM access_tokens WHERE refresh_hash = $1 RETURNING token_hash", refresh_hash
    )
    return [row["token_hash"] for row in rows]


# -- tokens to log in with ----------------------------------------------------------------------------


async def add_login(db: Executor, token_hash: bytes, user_id: str, expires_ts: int) -> None:
    await db.execute(
        "INSERT INTO login_tokens (token_hash, user_id, expires_ts) VALUES ($1, $2, $3)",
        token_hash,
        user_id,
        expires_ts,
    )


async def take_login(db: Executor, token_hash: bytes, now_ms: int) -> str | None:
    """Whose login token it is; it is gone with the first who asks."""
    user_id: str | None = await db.fetchval(
        "DELETE FROM login_tokens WHERE token_hash = $1 AND $2 < expires_ts RETURNING user_id",
        token_hash,
        now_ms,
    )
    return user_id


async def purge_logins(db: Executor, now_ms: int) -> None:
    """Forget login tokens that have ended."""
    await db.execute("DELETE FROM login_tokens WHERE expires_ts <= $1", now_ms)
