"""Accounts: made, logged in, logged out, locked, deactivated."""

from __future__ import annotations

import secrets
import string
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from lmserver.accounts.access_tokens import AccessTokens, Issued
from lmserver.accounts.device_lists import DeviceLists, Reach
from lmserver.accounts.errors import AccountError
from lmserver.accounts.passwords import Passwords
from lmserver.protocol import ids
from lmserver.storage import (
    access_tokens,
    accounts,
    cross_signing,
    departures,
    e2e_keys,
    erasures,
    key_backups,
    media,
)
from lmserver.storage.accounts import Account, Device
from lmserver.storage.database import Connection, Database, UniqueViolation

MAX_NAME = 256
ENDED_AT_ONCE = 1000
NO_PASSWORD = ""
"""The hash that no password has."""


Claim = Callable[[Connection], Awaitable[None]]
"""What has to be right in the transaction that makes an account; raises what goes wrong."""


@dataclass(frozen=True, slots=True)
class Login:
    """A device that is logged in, and the only time its tokens are seen."""

    user_id: str
    device_id: str
    tokens: Issued

    @property
    def access_token(self) -> str:
        return self.tokens.access_token


class Accounts:
    """Local users and their devices."""

    def __init__(
        self,
        db: Database,
        server_name: str,
        passwords: Passwords,
        device_lists: DeviceLists,
        tokens: AccessTokens,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._tokens = tokens
        self._device_lists = device_lists
        self._server_name = server_name
        self._passwords = passwords
        self._clock = clock
        self.on_created: Callable[[Connection, str], Awaitable[None]] | None = None

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
        self,
        name: str,
        password: str,
        *,
        displayname: str | None = None,
        is_admin: bool = False,
        claim: Claim | None = None,
    ) -> str:
        """Make an account and return its user ID. Without a display name it has its localpart, with an
        empty one none. Raises AccountError, BadPassword or what `claim` does."""
        password_hash = await self._passwords.hash(password)
        return await self._create(name, password_hash, displayname, is_admin=is_admin, claim=claim)

    async def register_without_password(
        self, name: str, claim: Claim, *, displayname: str | None = None
    ) -> str:
        """Make an account of somebody who logs in otherwise; raises AccountError or what `claim` does."""
        return await self._create(name, NO_PASSWORD, displayname, is_admin=False, claim=claim)

    async def has_password(self, user_id: str) -> bool:
        account = await accounts.get(self._db, user_id)
        return account is not None and account.password_hash != NO_PASSWORD

    async def _create(
        self,
        name: str,
        password_hash: str,
        displayname: str | None,
        *,
        is_admin: bool,
        claim: Claim | None,
    ) -> str:
        user_id = self.user_id(name)
        shown = ids.localpart_of(user_id) if displayname is None else displayname or None

        async def work(db: Connection) -> None:
            if claim is not None:
                await claim(db)
            await accounts.create(db, user_id, password_hash, shown, is_admin, self._clock())
            if self.on_created is not None:
                await self.on_created(db, user_id)

        try:
            await self._db.run(work)
        except UniqueViolation as error:
            if error.constraint != "accounts_pkey":
                raise
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

    async def set_locked(self, user_id: str, locked: bool) -> bool:
        """Lock an account out, its logins staying, or let it in again; whether there is such an account."""
        done = await accounts.set_locked(self._db, user_id, locked)
        if locked:
            self._tokens.ended(user_id)
        else:
            self._tokens.forget(user_id)
        return done

    async def set_suspended(self, user_id: str, suspended: bool) -> bool:
        """Let an account do hardly more than read, or all again; whether there is such an account."""
        done = await accounts.set_suspended(self._db, user_id, suspended)
        self._tokens.forget(user_id)
        return done

    async def set_admin(self, user_id: str, admin: bool) -> bool:
        """Make a user an administrator, or no longer one; whether there is such an account."""
        done = await accounts.set_admin(self._db, user_id, admin)
        self._tokens.forget(user_id)
        return done

    async def reactivate(self, user_id: str, password: str) -> None:
        """Let a deactivated user log in again, with a new password; they have nothing of what was. Raises
        BadPassword."""
        password_hash = await self._passwords.hash(password)

        async def work(db: Connection) -> None:
            await accounts.reactivate(db, user_id, password_hash, ids.localpart_of(user_id))
            await departures.done(db, user_id)
            await erasures.remove(db, user_id)

        await self._db.run(work)

    async def set_password(self, user_id: str, password: str) -> None:
        """Raises BadPassword."""
        password_hash = await self._passwords.hash(password)
        await accounts.set_password(self._db, user_id, password_hash)

    async def deactivate(self, user_id: str, *, erase: bool = False) -> None:
        """End every login and let the user leave all rooms, by and by; the user ID is never given to
        anybody else. With `erase` what they uploaded is hidden, and what they sent from those who come to
        its rooms later. Doing it again does no harm."""
        names = [d.device_id for d in await accounts.devices(self._db, user_id)]

        async def work(db: Connection) -> Reach | None:
            await accounts.deactivate(db, user_id)
            if erase:
                await erasures.add(db, user_id)
                await media.quarantine_of_user(db, user_id)
            reach = await self.remove_devices(db, user_id, names)
            await cross_signing.remove_user(db, user_id)
            await key_backups.remove_user(db, user_id)
            await departures.add(db, user_id, self._clock())
            return reach

        self._device_lists.tell(await self._db.run(work))
        self._tokens.ended(user_id)

    async def remove_devices(self, db: Connection, user_id: str, device_ids: list[str]) -> Reach | None:
        """Inside the caller's transaction. Devices with keys are missed by others: whoever encrypts for
        them has to be told."""
        keyed = await e2e_keys.device_keys(db, {user_id: device_ids}) if device_ids else {}
        known = sorted(keyed.get(user_id, {}))
        await accounts.remove_devices(db, user_id, device_ids)
        await cross_signing.remove_signatures_on(db, user_id, device_ids)
        gone = [f"ed25519:{device_id}" for device_id in device_ids]
        await cross_signing.remove_signatures_by(db, user_id, gone)
        return await self._device_lists.record(db, user_id, removed=known) if known else None

    # -- logins ---------------------------------------------------------------------------------

    async def log_in(
        self,
        user_id: str,
        device_id: str | None,
        display_name: str | None,
        *,
        refreshable: bool = False,
        expires_ts: int | None = None,
    ) -> Login:
        """New tokens for a new device, or in place of the device's old ones; `expires_ts` (ms) ends one
        that cannot be renewed. Raises AccountError."""
        if device_id is not None and not ids.is_device_id(device_id):
            raise AccountError("M_INVALID_PARAM", 400, "The device ID is not valid")
        device = device_id or "".join(secrets.choice(string.ascii_uppercase) for _ in range(10))

        async def work(db: Connection) -> Issued:
            issued = await self._tokens.issue(
                db, user_id, device, refreshable=refreshable, expires_ts=expires_ts
            )
            await accounts.add_device(db, user_id, device, (display_name or "")[:MAX_NAME] or None)
            return issued

        issued = await self._db.run(work)
        self._tokens.ended(user_id, [device])
        return Login(user_id, device, issued)

    async def log_out(self, user_id: str, device_ids: list[str] | None = None) -> list[str]:
        """Remove devices, all when none is named; returns those that were there."""
        existing = [d.device_id for d in await accounts.devices(self._db, user_id)]
        gone = existing if device_ids is None else [d for d in existing if d in device_ids]

        reach = await self._db.run(lambda db: self.remove_devices(db, user_id, gone))
        self._device_lists.tell(reach)
        self._tokens.ended(user_id, gone)
        return gone

    async def tidy(self) -> None:
        """Remove the devices of logins that were to end and have, ENDED_AT_ONCE of them."""
        for user_id, device_id in await access_tokens.ended(self._db, self._clock(), ENDED_AT_ONCE):
            await self.log_out(user_id, [device_id])

    # -- devices and profiles -------------------------------------------------------------------

    async def devices(self, user_id: str) -> list[Device]:
        return await accounts.devices(self._db, user_id)

    async def device(self, user_id: str, device_id: str) -> Device | None:
        return await accounts.device(self._db, user_id, device_id)

    async def make_device(self, user_id: str, device_id: str, name: str | None) -> bool:
        """A device that nobody has logged in on; whether it is new."""
        if await accounts.device(self._db, user_id, device_id) is not None:
            return False
        await accounts.add_device(self._db, user_id, device_id, name)
        return True

    async def rename_device(self, user_id: str, device_id: str, name: str | None) -> None:
        """Users here who share a room see the name with the device's keys; other servers do not."""

        async def work(db: Connection) -> Reach:
            await accounts.rename_device(db, user_id, device_id, name)
            return await self._device_lists.record(db, user_id)

        self._device_lists.tell(await self._db.run(work))

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
