"""Proving to a service who one is, without giving it one's access token (CS API §OpenID)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from lmserver.storage import openid
from lmserver.storage.database import Executor

LIFETIME_MS: Final = 3_600_000
MAX_TOKEN: Final = 255


class OpenIdTokens:
    """Tokens for users, and users for tokens."""

    def __init__(self, db: Executor, clock: Callable[[], int]) -> None:
        self._db = db
        self._clock = clock

    async def issue(self, user_id: str) -> str:
        """A token that lasts LIFETIME_MS and opens nothing here."""
        token, now = secrets.token_urlsafe(32), self._clock()
        await openid.add(self._db, _hash(token), user_id, now + LIFETIME_MS, now)
        return token

    async def user(self, token: str) -> str | None:
        """Whose token it is, if it still counts."""
        if len(token) > MAX_TOKEN:
            return None
        return await openid.user_of(self._db, _hash(token), self._clock())


def _hash(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
