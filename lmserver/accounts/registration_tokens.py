"""Registration tokens: those of the configuration, and those made later, with uses and an end."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable
from hashlib import sha256

from lmserver.storage import registration_tokens
from lmserver.storage.database import Connection, Executor, UniqueViolation
from lmserver.storage.registration_tokens import RegistrationToken

MAX_LISTED = 1000
# CS API §Token-authenticated registration: the opaque identifier grammar, at most 64 characters.
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{1,64}")
MAX_NUMBER = 2**53 - 1


class BadRegistrationToken(ValueError):
    """The token or its bounds cannot be; the text says why."""


class RegistrationTokens:
    """What the operator has given out. The tokens of the configuration have no end."""

    def __init__(self, db: Executor, configured: tuple[str, ...], clock: Callable[[], int]) -> None:
        self._db = db
        # Compared as hashes: the time it takes says nothing of how near a guess came.
        self._configured = {_hash(token) for token in configured}
        self._clock = clock

    async def is_valid(self, token: str) -> bool:
        """Whether somebody could register with it now."""
        if _hash(token) in self._configured:
            return True
        found = await registration_tokens.get(self._db, token) if _TOKEN.fullmatch(token) else None
        return found is not None and found.is_valid(self._clock())

    async def use(self, db: Connection, token: str) -> bool:
        """Count one use, in the transaction that makes the account; False when none is left."""
        if _hash(token) in self._configured:
            return True
        return await registration_tokens.use(db, token, self._clock())

    # -- for operators --------------------------------------------------------------------------

    async def create(
        self, token: str | None, uses_allowed: int | None, expires_ts: int | None, length: int = 16
    ) -> RegistrationToken:
        """Make a token, of a random text unless it is given; raises BadRegistrationToken."""
        text = token if token is not None else _random(length)
        if not _TOKEN.fullmatch(text):
            raise BadRegistrationToken("a token has 1 to 64 of the characters A-Z, a-z, 0-9 and . _ ~ -")
        self._check(uses_allowed, expires_ts)
        try:
            await registration_tokens.create(self._db, text, uses_allowed, expires_ts, self._clock())
        except UniqueViolation:
            raise BadRegistrationToken("there is a token of this name already") from None
        return RegistrationToken(text, uses_allowed, 0, expires_ts)

    async def get(self, token: str) -> RegistrationToken | None:
        return await registration_tokens.get(self._db, token) if _TOKEN.fullmatch(token) else None

    async def listed(self) -> list[RegistrationToken]:
        """The newest first, at most MAX_LISTED; those of the configuration are not among them."""
        return await registration_tokens.listed(self._db, MAX_LISTED)

    async def change(
        self, token: str, uses_allowed: int | None, expires_ts: int | None
    ) -> RegistrationToken | None:
        """Give a token other bounds; None when there is none. Raises BadRegistrationToken."""
        self._check(uses_allowed, expires_ts)
        if not _TOKEN.fullmatch(token):
            return None
        await registration_tokens.change(self._db, token, uses_allowed, expires_ts)
        return await registration_tokens.get(self._db, token)

    async def delete(self, token: str) -> bool:
        """Whether there was one."""
        return bool(_TOKEN.fullmatch(token)) and await registration_tokens.delete(self._db, token)

    def _check(self, uses_allowed: int | None, expires_ts: int | None) -> None:
        if uses_allowed is not None and not 0 <= uses_allowed <= MAX_NUMBER:
            raise BadRegistrationToken("the number of uses is 0 or more")
        if expires_ts is not None and not self._clock() < expires_ts <= MAX_NUMBER:
            raise BadRegistrationToken("the token would end in the past")

    def is_usable(self, token: RegistrationToken) -> bool:
        return token.is_valid(self._clock())


def _random(length: int) -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(max(1, length)))


def _hash(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
