"""Registration tokens that the operator has made: how often and how long each may be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class RegistrationToken:
    """`uses_allowed` None: any number; `expires_ts` None: no end, else ms since the epoch."""

    token: str
    uses_allowed: int | None
    completed: int
    expires_ts: int | None

    def is_valid(self, now_ms: int) -> bool:
        used_up = self.uses_allowed is not None and self.completed >= self.uses_allowed
        return not used_up and (self.expires_ts is None or now_ms < self.expires_ts)


def _token(row: Any) -> RegistrationToken:
    return RegistrationToken(*(row[name] for name in RegistrationToken.__slots__))


async def create(
    db: Executor, token: str, uses_allowed: int | None, expires_ts: int | None, now_ms: int
) -> None:
    """Raises UniqueViolation when there is one of this name."""
    await db.execute(
        "INSERT INTO registration_tokens (token, uses_allowed, expires_ts, created_ts)"
        " VALUES ($1, $2, $3, $4)",
        token,
        uses_allowed,
        expires_ts,
        now_ms,
    )


async def get(db: Executor, token: str) -> RegistrationToken | None:
    row = await db.fetchrow(
        "SELECT token, uses_allowed, completed, expires_ts FROM registration_tokens WHERE token = $1", token
    )
    return None if row is None else _token(row)


async def listed(db: Executor, limit: int) -> list[RegistrationToken]:
    """The newest first."""
    rows = await db.fetch(
        "SELECT token, uses_allowed, completed, expires_ts FROM registration_tokens"
        " ORDER BY created_ts DESC, token LIMIT $1",
        limit,
    )
    return [_token(row) for row in rows]


async def change(db: Executor, token: str, uses_allowed: int | None, expires_ts: int | None) -> bool:
    """Give a token other bounds; whether there is one."""
    done = await db.execute(
        "UPDATE registration_tokens SET uses_allowed = $2, expires_ts = $3 WHERE token = $1",
        token,
        uses_allowed,
        expires_ts,
    )
    return done == "UPDATE 1"


async def use(db: Executor, token: str, now_ms: int) -> bool:
    """Count one use; False when there is none left, whoever else takes one at the same moment."""
    done = await db.execute(
        "UPDATE registration_tokens SET completed = completed + 1 WHERE token = $1"
        " AND (uses_allowed IS NULL OR completed < uses_allowed)"
        " AND (expires_ts IS NULL OR $2 < expires_ts)",
        token,
        now_ms,
    )
    return done == "UPDATE 1"


async def delete(db: Executor, token: str) -> bool:
    """Whether there was one."""
    return await db.execute("DELETE FROM registration_tokens WHERE token = $1", token) == "DELETE 1"
