"""Sessions of user-interactive authentication: what has been proven so far, and for which operation.

A session is kept under the hash of its ID. `fingerprint` is keyed with the ID itself, so that whoever
reads the table can guess neither: the fingerprinted body may hold a new password (attack C14).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from lmserver.storage.database import Connection, Executor


@dataclass(frozen=True, slots=True)
class StoredSession:
    """`completed` maps each stage gone through to what it proved, such as a user ID."""

    owner: str
    fingerprint: bytes
    completed: Mapping[str, str]


async def begin(db: Connection, session_hash: bytes, session: StoredSession, now_ms: int, keep: int) -> None:
    """Store a session; the owner's `keep` newest stay."""
    await db.execute(
        "INSERT INTO interactive_auth_sessions (session_hash, owner, fingerprint, completed, created_ts)"
        " VALUES ($1, $2, $3, $4, $5)",
        session_hash,
        session.owner,
        session.fingerprint,
        orjson.dumps(dict(session.completed)),
        now_ms,
    )
    await db.execute(
        "DELETE FROM interactive_auth_sessions WHERE session_hash IN (SELECT session_hash"
        " FROM interactive_auth_sessions WHERE owner = $1 AND session_hash <> $2"
        " ORDER BY created_ts DESC OFFSET $3)",
        session.owner,
        session_hash,
        keep - 1,
    )


async def get(db: Executor, session_hash: bytes, since_ms: int) -> StoredSession | None:
    """A session begun at `since_ms` or later."""
    row = await db.fetchrow(
        "SELECT owner, fingerprint, completed FROM interactive_auth_sessions"
        " WHERE session_hash = $1 AND created_ts >= $2",
        session_hash,
        since_ms,
    )
    if row is None:
        return None
    return StoredSession(row["owner"], row["fingerprint"], orjson.loads(row["completed"]))


async def complete(db: Connection, session_hash: bytes, stage: str, proof: str) -> None:
    """Add a stage to those gone through; two at once do not lose each other."""
    completed = await db.fetchval(
        "SELECT completed FROM interactive_auth_sessions WHERE session_hash = $1 FOR UPDATE", session_hash
    )
    if completed is None:
        return
    await db.execute(
        "UPDATE interactive_auth_sessions SET completed = $2 WHERE session_hash = $1",
        session_hash,
        orjson.dumps({**orjson.loads(completed), stage: proof}),
    )


async def end(db: Executor, session_hash: bytes) -> None:
    await db.execute("DELETE FROM interactive_auth_sessions WHERE session_hash = $1", session_hash)


async def purge(db: Executor, before_ms: int) -> None:
    """Forget sessions begun before `before_ms`."""
    await db.execute("DELETE FROM interactive_auth_sessions WHERE created_ts < $1", before_ms)
