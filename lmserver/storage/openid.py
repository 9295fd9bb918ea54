"""Tokens with which users prove to services who they are; kept as hashes."""

from __future__ import annotations

from lmserver.storage.database import Executor


async def add(db: Executor, token_hash: bytes, user_id: str, expires_ms: int, now_ms: int) -> None:
    """Keep a token, and let go of a few that have ended."""
    await db.execute(
        "DELETE FROM openid_tokens WHERE token_hash IN"
        " (SELECT token_hash FROM openid_tokens WHERE expires_ts < $1 ORDER BY expires_ts LIMIT 100)",
        now_ms,
    )
    await db.execute(
        "INSERT INTO openid_tokens (token_hash, user_id, expires_ts) VALUES ($1, $2, $3)",
        token_hash,
        user_id,
        expires_ms,
    )


async def user_of(db: Executor, token_hash: bytes, now_ms: int) -> str | None:
    """Whose token it is; None when it has ended or its user may no longer log in."""
    user_id: str | None = await db.fetchval(
        "SELECT t.user_id FROM openid_tokens AS t JOIN accounts AS a ON a.user_id = t.user_id"
        " WHERE t.token_hash = $1 AND t.expires_ts >= $2 AND NOT a.deactivated",
        token_hash,
        now_ms,
    )
    return user_id
