"""Who may invite our users, and how often: users' own blocks, rate limits, a cap on what waits.

An invite that its target would never see is not worth a signature: ignoring somebody refuses their
invites just as blocking does, and the refusal is the same in every case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from lmserver.protocol import ids
from lmserver.storage import account_data, outside
from lmserver.storage.database import Executor

MAX_PENDING: Final = 500
"""Invites that may wait for one user's answer."""
FULL_RETRY_MS: Final = 3_600_000

# CS API §Invite permission; MSC4155 adds lists to it under its own name.
PERMISSION_TYPES: Final = (
    "m.invite_permission_config",
    "org.matrix.msc4380.invite_permission_config",
    "org.matrix.msc4155.invite_permission_config",
)


class Limiter(Protocol):
    """Token buckets: seconds to wait, 0.0 for a token taken."""

    def take(self, name: str, key: str) -> float: ...


@dataclass(frozen=True, slots=True)
class InviteRefusal:
    """Why an invite is not taken: HTTP status, error code, a text safe for anybody, and for a
    limit when to come back (ms)."""

    status: int
    errcode: str
    reason: str
    retry_after_ms: int | None = None


BLOCKED: Final = InviteRefusal(403, "M_INVITE_BLOCKED", "the user does not want to be invited")


class InvitePolicy:
    """Asked before an invite of a local user is signed, stored or shown."""

    def __init__(self, db: Executor, limiter: Limiter) -> None:
        self._db = db
        self._limiter = limiter

    def server_limit(self, origin: str) -> InviteRefusal | None:
        """The limit of the server that sends an invite; asked first, before anything costs."""
        return self._limit("invites_from_server", origin)

    async def refusal(self, user_id: str, sender: str) -> InviteRefusal | None:
        """Why `sender` may not invite the local user now; None if it may."""
        if await self.refuses(user_id, sender):
            return BLOCKED
        limited = self._limit("invites_from_user", sender) or self._limit("invites_to_user", user_id)
        if limited is not None:
            return limited
        if await outside.pending_invites(self._db, user_id, MAX_PENDING) >= MAX_PENDING:
            return InviteRefusal(429, "M_LIMIT_EXCEEDED", "too many invites wait for the user", FULL_RETRY_MS)
        return None

    async def refuses(self, user_id: str, sender: str) -> bool:
        """Whether the user has said not to want invites of this sender."""
        if sender in await account_data.ignored_users(self._db, user_id):
            return True
        for type_ in PERMISSION_TYPES:
            if _blocks(await self._content(user_id, type_), sender):
                return True
        return False

    async def _content(self, user_id: str, type_: str) -> dict[str, Any]:
        data = await account_data.get(self._db, user_id, "", type_)
        content = None if data is None else orjson.loads(data)
        return content if isinstance(content, dict) else {}

    def _limit(self, name: str, key: str) -> InviteRefusal | None:
        wait = self._limiter.take(name, key)
        if not wait:
            return None
        return InviteRefusal(429, "M_LIMIT_EXCEEDED", "too many invites", max(1, int(wait * 1000)))


def _blocks(config: dict[str, Any], sender: str) -> bool:
    """MSC4155's order: users before servers, allowed before ignored before blocked; then the
    default. Anything malformed says nothing."""
    if config.get("enabled") is False:
        return False
    for kind, name in (("users", sender), ("servers", ids.server_of(sender))):
        for verdict in ("allowed", "ignored", "blocked"):
            patterns = config.get(f"{verdict}_{kind}")
            if isinstance(patterns, list) and _any_matches(patterns, name):
                return verdict != "allowed"
    return config.get("default_action") == "block"


def _any_matches(patterns: Iterable[object], name: str) -> bool:
    return any(isinstance(pattern, str) and matches_glob(pattern, name) for pattern in patterns)


def matches_glob(pattern: str, text: str) -> bool:
    """`*` for any characters and `?` for one, in time proportional to the
    product of the lengths at worst (attack R11)."""
    at = position = resume = 0
    star = -1
    while position < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resume = at, position
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[position]):
            at += 1
            position += 1
        elif star >= 0:
            at, resume = star + 1, resume + 1
            position = resume
        else:
            return False
    return not pattern[at:].strip("*")
