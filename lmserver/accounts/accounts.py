"""Accounts: made, logged in, logged out, deactivated; access tokens stored only as hashes."""

from __future__ import annotations

import secrets
import string
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lmserver.accounts.device_lists import DeviceLists, Reach
from lmserver.accounts.passwords import Passwords
from lmserver.protocol import ids
from lmserver.storage import accounts, cross_signing, e2e_keys, key_backups
from lmserver.storage.accounts import Account, Device, TokenOwner
from lmserver.storage.database import Connection, Database, UniqueViolation

TOKEN_BYTES = 32
CACHE_SIZE = 10_000
CACHE_MS = 30_000
MAX_NAME = 256
SEEN_EVERY_MS = 60_000


Claim = Callable[[Connection], Awaitable[None]]
"""What has to be right in the transaction that makes an account; raises what goes wrong."""


class AccountError(Exception):
    """Something about an account that cannot be done: Matrix error code, HTTP status, text."""

    def __init__(self, errcode: str, status: int, reason: str) -> None:
        super().__init__(reason)
        self.errcode = errcode
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Login:
    """A device that is logged in, and the only time its token is seen."""

    user_id: str
    device_id: str
    access_token: str


class Accounts:
    """Local users and their devices."""

    def __init__(
        self,
        db: Database,
        server_name: str,
        passwords: Passwords,
        device_lists: DeviceLists,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._device_lists = device_lists
        self._server_name = server_name
        self._passwords = passwords
        self._clock = clock
        self._tokens: OrderedDict[bytes, tuple[TokenOwner, int]] = OrderedDict()
        self._seen: OrderedDict[tuple[str, str], int] = OrderedDict()

    # -- accounts -------------------------------------------------------------------------------

    def user_id(self, name: str) -> str:
        """A local user ID from a localpart or a full ID, in lower case; raises AccountError."""
        user_id = name if name.startswith("@") else f"@{name}:{self._server_name}"
        localpart, _, server = user_id.partition(":")
        if localpart.isascii():  # of other letters too many have a lower case in ASCII
            user_id = f"{localpart.lower()}:{server}"
        if not ids.is_user_id(user_id) or server != self._server_name:
            raise AccountError(
                "M_INVALID_USERNAME", 400, "A user name has the characters a-z, 0-9 and any of . _ = / + -"
            )
        return user_id

    async def register(
        self, name: str, password: str, *, is_admin: bool = False, claim: Claim | None = None
    ) -> str:
        """Make an account and return its user ID; raises AccountError, BadPassword or what `claim` does."""
        user_id = self.user_id(name)
        password_hash = await self._passwords.hash(password)

        async def work(db: Connection) -> None:
            if claim is not None:
                await claim(db)
            await accounts.create(db, user_id, password_hash, is_admin, self._clock())

        try:
            await self._db.run(work)
        except UniqueViolation:
            raise AccountError("M_USER_IN_USE", 400, "This user name is taken") from None
        return user_id

    async def exists(self, user_id: str) -> bool:
        """Whether a user ID is taken, by somebody deactivated too."""
        return await accounts.get(self._db, user_id) is not None

    async def is_active(self, user_id: str) -> bool:
        """Whether a local user exists and may be reached."""
        account = await accounts.get(self._db, user_id)
        return account is not None and not account.deactivated

    async def account(self, user_id: str) -> Account | None:
        return await accounts.get(self._db, user_id)

    async def check_password(self, user_id: str, password: str) -> bool:
        """The same work whether the user exists or not."""
        account = await accounts.get(self._db, user_id)
        usable = account is not None and not account.deactivated
        password_hash = account.password_hash if account is not None and usable else None
        return await self._passwords.check(password_hash, password)

    async def set_password(self, user_id: str, password: str) -> None:
        """Raises BadPassword."""
        password_hash = await self._passwords.hash(password)
        await accounts.set_password(self._db, user_id, password_hash)

    async def deactivate(self, user_id: str) -> None:
        """End every login; the user ID is never given to anybody else."""
        names = [d.device_id for d in await accounts.devices(self._db, user_id)]

        async def work(db: Connection) -> Reach | None:
            await accounts.deactivate(db, user_id)
            reach = await self._remove_devices(db, user_id, names)
            await cross_signing.remove_user(db, user_id)
            await key_backups.remove_user(db, user_id)
            return reach

        self._device_lists.tell(await self._db.run(work))
        self._forget_tokens(user_id)

    async def _remove_devices(self, db: Connection, user_id: str, device_ids: list[str]) -> Reach | None:
        """Devices with keys are missed by others: whoever encrypts for them has to be told."""
        keyed = await e2e_keys.device_keys(db, {user_id: device_ids}) if device_ids else {}
        known = sorted(keyed.get(user_id, {}))
        await accounts.remove_devices(db, user_id, device_ids)
        await cross_signing.remove_signatures_on(db, user_id, device_ids)
        gone = [f"ed25519:{device_id}" for device_id in device_ids]
        await cross_signing.remove_signatures_by(db, user_id, gone)
        return await self._device_lists.record(db, user_id, removed=known) if known else None

    # -- logins ---------------------------------------------------------------------------------

    async def log_in(self, user_id: str, device_id: str | None, display_name: str | None) -> Login:
        """A new token for a new device, or in place of the device's old one."""
        if device_id is not None and not ids.is_device_id(device_id):
            raise AccountError("M_INVALID_PARAM", 400, "The device ID is not valid")
        device = device_id or "".join(secrets.choice(string.ascii_uppercase) for _ in range(10))
        token = f"lm_{secrets.token_urlsafe(TOKEN_BYTES)}"

        async def work(db: Connection) -> None:
            await accounts.add_device(db, user_id, device, (display_name or "")[:MAX_NAME] or None)
            await accounts.remove_tokens(db, user_id, device)
            await accounts.add_token(db, _hash(token), user_id, device, self._clock())

        await self._db.run(work)
        self._forget_tokens(user_id)
        return Login(user_id, device, token)

    async def owner(self, token: str) -> TokenOwner | None:
        """Whom a token stands for; None for any other string, the empty one included."""
        if not token or len(token) > 200:
            return None
        key = _hash(token)
        cached = self._tokens.get(key)
        if cached is not None and self._clock() - cached[1] < CACHE_MS:
            return cached[0]
        owner = await accounts.token_owner(self._db, key)
        if owner is None or owner.deactivated:
            self._tokens.pop(key, None)
            return None
        self._tokens[key] = (owner, self._clock())
        while len(self._tokens) > CACHE_SIZE:
            self._tokens.popitem(last=False)
        return owner

    async def seen(self, owner: TokenOwner, ip: str) -> None:
        """Note when and where a device was last seen, at most once a minute."""
        key, now = (owner.user_id, owner.device_id), self._clock()
        if now - self._seen.get(key, -SEEN_EVERY_MS) < SEEN_EVERY_MS:
            return
        self._seen[key] = now
        while len(self._seen) > CACHE_SIZE:
            self._seen.popitem(last=False)
        await accounts.seen(self._db, owner.user_id, owner.device_id, ip[:64], now)

    async def log_out(self, user_id: str, device_ids: list[str] | None = None) -> list[str]:
        """Remove devices, all when none is named; returns those that were there."""
        existing = [d.device_id for d in await accounts.devices(self._db, user_id)]
        gone = existing if device_ids is None else [d for d in existing if d in device_ids]

        reach = await self._db.run(lambda db: self._remove_devices(db, user_id, gone))
        self._device_lists.tell(reach)
        self._forget_tokens(user_id)
        return gone

    def _forget_tokens(self, user_id: str) -> None:
        for key in [k for k, (owner, _) in self._tokens.items() if owner.user_id == user_id]:
            del self._tokens[key]

    # -- devices and profiles -------------------------------------------------------------------

    async def devices(self, user_id: str) -> list[Device]:
        return await accounts.devices(self._db, user_id)

    async def device(self, user_id: str, device_id: str) -> Device | None:
        return await accounts.device(self._db, user_id, device_id)

    async def rename_device(self, user_id: str, device_id: str, name: str | None) -> None:
        await accounts.rename_device(self._db, user_id, device_id, name)

    async def profile(self, user_id: str) -> dict[str, Any]:
        """`displayname` and `avatar_url` as far as they are set."""
        account = await accounts.get(self._db, user_id)
        if account is None:
            return {}
        fields = {"displayname": account.displayname, "avatar_url": account.avatar_url}
        return {key: value for key, value in fields.items() if value is not None}

    async def set_profile(self, user_id: str, field: str, value: str | None) -> None:
        if field == "displayname":
            await accounts.set_displayname(self._db, user_id, value)
        else:
            await accounts.set_avatar_url(self._db, user_id, value)


def _hash(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
