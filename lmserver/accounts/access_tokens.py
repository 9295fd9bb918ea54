"""Tokens: what a device shows with each request, what renews that, and what logs in once.

All are random, and stored only as hashes. A token that ends comes with a refresh token; both are good
until one of the pair that replaces them is used (CS API §Refreshing access tokens).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256

from lmserver.accounts.errors import AccountError, AccountLocked
from lmserver.storage import access_tokens, accounts
from lmserver.storage.access_tokens import TokenOwner
from lmserver.storage.database import Connection, Database, DatabaseUnavailable

TOKEN_BYTES = 32
MAX_TOKEN = 200
CACHE_SIZE = 10_000
CACHE_MS = 30_000
SEEN_EVERY_MS = 60_000
ACCESS_MS = 5 * 60_000
"""How long a token lives whose device can renew it."""
LOGIN_MS = 2 * 60_000


class TokenExpired(Exception):
    """The token was right and has ended: its device may renew it or log in again."""


@dataclass(frozen=True, slots=True)
class Issued:
    """The only time the tokens are seen. The last two are None for a token without an end."""

    access_token: str
    refresh_token: str | None
    expires_in_ms: int | None


class AccessTokens:
    """The tokens of local users' devices."""

    def __init__(self, db: Database, clock: Callable[[], int]) -> None:
        self._db = db
        self._clock = clock
        self._owners: OrderedDict[bytes, tuple[TokenOwner, int]] = OrderedDict()
        self._forgotten = 0  # how often
        self._seen: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._noting: set[asyncio.Task[None]] = set()
        self.on_ended: Callable[[str, Collection[str] | None], None] | None = None

    async def issue(
        self,
        db: Connection,
        user_id: str,
        device_id: str,
        *,
        refreshable: bool,
        expires_ts: int | None = None,
    ) -> Issued:
        """New tokens in place of all the device had; one that cannot be renewed ends at `expires_ts` (ms),
        if that is given. Raises AccountError for a user who may not log in.

        The device's old login has `ended` after COMMIT.
        """
        await check_may_log_in(db, user_id)
        await access_tokens.remove_of_device(db, user_id, device_id)
        return await self._add(db, user_id, device_id, _new("lmr") if refreshable else None, expires_ts)

    async def refresh(self, token: str) -> Issued | None:
        """A new pair for a refresh token; None when it is not known. Raises AccountLocked.

        Asked again with the same token, because an answer was lost, the pair that was lost ends.
        """
        key = token_hash(token)

        async def work(db: Connection) -> tuple[Issued, list[bytes]] | None:
            found = await access_tokens.take_refresh(db, key) if len(token) <= MAX_TOKEN else None
            if found is None:
                return None
            await check_may_log_in(db, found.user_id)
            gone: list[bytes] = []
            for other in (found.next_hash, await access_tokens.replaced_by(db, key)):
                if other is not None:
                    gone += await access_tokens.remove_pair(db, other)
            text = _new("lmr")
            issued = await self._add(db, found.user_id, found.device_id, text)
            await access_tokens.set_next(db, key, token_hash(text))
            return issued, gone

        done = await self._db.run(work)
        if done is None:
            return None
        self._drop(done[1])
        return done[0]

    async def _add(
        self,
        db: Connection,
        user_id: str,
        device_id: str,
        refresh: str | None,
        expires_ts: int | None = None,
    ) -> Issued:
        now, text = self._clock(), _new("lm")
        expires = expires_ts if refresh is None else now + ACCESS_MS
        refresh_hash = None if refresh is None else token_hash(refresh)
        if refresh_hash is not None:
            await access_tokens.add_refresh(db, refresh_hash, user_id, device_id, now)
        await access_tokens.add(db, token_hash(text), user_id, device_id, expires, refresh_hash, now)
        return Issued(text, refresh, None if refresh is None else ACCESS_MS)

    async def owner(self, token: str) -> TokenOwner | None:
        """Whom a token stands for; None for any other string, the empty one included. The first use of
        a token ends the pair it replaces. Raises TokenExpired."""
        if not token or len(token) > MAX_TOKEN:
            return None
        key = token_hash(token)
        cached = self._owners.get(key)
        if cached is not None and self._clock() - cached[1] < CACHE_MS:
            return self._unexpired(cached[0])
        forgotten = self._forgotten
        owner = await access_tokens.owner(self._db, key)
        if owner is None or owner.deactivated:
            self._owners.pop(key, None)
            return None
        self._unexpired(owner)
        if owner.replaces is not None:
            self._drop(await access_tokens.remove_pair(self._db, owner.replaces))
        elif forgotten == self._forgotten:  # else its login may have ended while it was looked up
            self._owners[key] = (owner, self._clock())
        while len(self._owners) > CACHE_SIZE:
            self._owners.popitem(last=False)
        return owner

    def _unexpired(self, owner: TokenOwner) -> TokenOwner:
        if owner.expires_ts is not None and owner.expires_ts <= self._clock():
            raise TokenExpired
        return owner

    def seen(self, owner: TokenOwner, ip: str) -> None:
        """Note when and where a device was last seen, at most once a minute; its request does not wait
        for that."""
        key, now = (owner.user_id, owner.device_id), self._clock()
        if now - self._seen.get(key, -SEEN_EVERY_MS) < SEEN_EVERY_MS:
            return
        self._seen[key] = now
        while len(self._seen) > CACHE_SIZE:
            self._seen.popitem(last=False)
        task = asyncio.create_task(self._note_seen(owner, ip[:64], now), name="device seen")
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)

    async def _note_seen(self, owner: TokenOwner, ip: str, now: int) -> None:
        with contextlib.suppress(DatabaseUnavailable):  # the next minute says it again
            await accounts.seen(self._db, owner.user_id, owner.device_id, ip, now)

    def ended(self, user_id: str, device_ids: Collection[str] | None = None) -> None:
        """Call it after COMMIT: logins of the user have ended, those of some devices or all."""
        self.forget(user_id)
        if self.on_ended is not None:
            self.on_ended(user_id, device_ids)

    def forget(self, user_id: str) -> None:
        """Ask the database again about the user's tokens."""
        self._drop([key for key, (owner, _) in self._owners.items() if owner.user_id == user_id])

    def _drop(self, keys: list[bytes]) -> None:
        self._forgotten += 1
        for key in keys:
            self._owners.pop(key, None)

    # -- logging in once ------------------------------------------------------------------------

    async def login_token(self, user_id: str) -> str:
        """A token that logs in once, within LOGIN_MS (CS API §Token-based user login)."""
        text, now = _new("lml"), self._clock()
        await access_tokens.add_login(self._db, token_hash(text), user_id, now + LOGIN_MS)
        return text

    async def use_login_token(self, token: str) -> str | None:
        """Whose login token it is; it is used up with that."""
        if len(token) > MAX_TOKEN:
            return None
        return await access_tokens.take_login(self._db, token_hash(token), self._clock())


async def check_may_log_in(db: Connection, user_id: str) -> None:
    """Raises AccountError for an account that is none, deactivated or locked (attack C3), and holds that
    off until the transaction ends."""
    account = await accounts.share(db, user_id)
    if account is None or account.deactivated:
        raise AccountError("M_USER_DEACTIVATED", 403, "This account has been deactivated")
    if account.locked:
        raise AccountLocked


def _new(prefix: str) -> str:
    return f"{prefix}_{secrets.token_urlsafe(TOKEN_BYTES)}"


def token_hash(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
