"""Logins that are on their way to a provider, and whose account a provider's user is."""

from __future__ import annotations

from dataclasses import dataclass

from lmserver.storage.database import Connection, Executor


@dataclass(frozen=True, slots=True)
class SsoSession:
    """`browser_hash` is of what the browser's cookie holds; `redirect_url` is the client's, None when
    the login confirms something: `confirms` is the key of the user-interactive session then."""

    browser_hash: bytes
    provider: str
    nonce: str
    verifier: str
    redirect_url: str | None
    confirms: bytes | None
    counted_as: str


async def begin(db: Connection, state_hash: bytes, session: SsoSession, now_ms: int, keep: int) -> None:
    """Store a session; the `keep` newest of an address stay."""
    await db.execute(
        "INSERT INTO sso_sessions (state_hash, browser_hash, provider, nonce, verifier, redirect_url,"
        " confirms, counted_as, created_ts) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        state_hash,
        session.browser_hash,
        session.provider,
        session.nonce,
        session.verifier,
        session.redirect_url,
        session.confirms,
        session.counted_as,
        now_ms,
    )
    await db.execute(
        "DELETE FROM sso_sessions WHERE state_hash IN (SELECT state_hash FROM sso_sessions"
        " WHERE counted_as = $1 AND state_hash <> $2 ORDER BY created_ts DESC OFFSET $3)",
        session.counted_as,
        state_hash,
        keep - 1,
    )


async def take(db: Executor, state_hash: bytes, since_ms: int) -> SsoSession | None:
    """A session begun at `since_ms` or later; it is gone with the first who asks."""
    row = await db.fetchrow(
        "DELETE FROM sso_sessions WHERE state_hash = $1 AND created_ts >= $2 RETURNING browser_hash,"
        " provider, nonce, verifier, redirect_url, confirms, counted_as",
        state_hash,
        since_ms,
    )
    return None if row is None else SsoSession(*(row[name] for name in SsoSession.__slots__))


async def purge(db: Executor, before_ms: int) -> None:
    """Forget sessions begun before `before_ms`."""
    await db.execute("DELETE FROM sso_sessions WHERE created_ts < $1", before_ms)


# -- whose account a provider's user is ---------------------------------------------------------------


async def user_of(db: Executor, provider: str, subject: str) -> str | None:
    user_id: str | None = await db.fetchval(
        "SELECT user_id FROM external_ids WHERE provider = $1 AND subject = $2", provider, subject
    )
    return user_id


async def providers_of(db: Executor, user_id: str) -> list[str]:
    rows = await db.fetch(
        "SELECT DISTINCT provider FROM external_ids WHERE user_id = $1 ORDER BY provider", user_id
    )
    return [row["provider"] for row in rows]


async def link(db: Executor, provider: str, subject: str, user_id: str) -> None:
    """Raises UniqueViolation when the provider's user has an account already."""
    await db.execute(
        "INSERT INTO external_ids (provider, subject, user_id) VALUES ($1, $2, $3)",
        provider,
        subject,
        user_id,
    )
