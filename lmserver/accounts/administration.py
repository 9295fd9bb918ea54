"""What an operator does with accounts, through the admin API, its page, or the command line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from lmserver.accounts.accounts import Accounts, Login
from lmserver.accounts.errors import AccountError
from lmserver.accounts.passwords import check_length
from lmserver.storage import account_list
from lmserver.storage.account_list import AccountQuery, ListedAccount
from lmserver.storage.database import Executor
from lmserver.storage.list_page import ListPage

DEVICE_NAME = "An administrator of the server"

TellRooms = Callable[[str], Awaitable[None]]
"""A user's name or avatar has changed: the rooms the user is in are told."""


@dataclass(frozen=True, slots=True)
class AccountChange:
    """What becomes of an account; what is None stays. An empty name or avatar is removed."""

    password: str | None = None
    log_out: bool = True
    displayname: str | None = None
    avatar_url: str | None = None
    admin: bool | None = None
    locked: bool | None = None
    suspended: bool | None = None
    deactivated: bool | None = None


class AccountAdministration:
    """Accounts from an operator's side. Every method raises AccountError for what cannot be."""

    def __init__(self, db: Executor, accounts: Accounts, tell_rooms: TellRooms) -> None:
        self._db = db
        self._accounts = accounts
        self._tell_rooms = tell_rooms

    async def page(self, query: AccountQuery, part: ListPage) -> tuple[list[ListedAccount], int]:
        """One page, and how many there are on all pages."""
        return await account_list.page(self._db, query, part), await account_list.count(self._db, query)

    async def get(self, user_id: str) -> ListedAccount:
        """Raises AccountError 404."""
        found = await account_list.one(self._db, user_id)
        if found is None:
            raise AccountError("M_NOT_FOUND", 404, "User not found")
        return found

    async def put(self, by: str, user_id: str, change: AccountChange) -> bool:
        """Make an account, or change it; whether it was made. Everything is checked before anything is
        changed. Raises BadPassword too."""
        found = await account_list.one(self._db, user_id)
        if change.password is not None:
            check_length(change.password)
        self._check_own(by, user_id, change)
        if found is None:
            await self._create(user_id, change)
        else:
            await self._change(found, change)
        return found is None

    def _check_own(self, by: str, user_id: str, change: AccountChange) -> None:
        """No administrator locks themselves out by mistake."""
        if by == user_id and (
            change.admin is False or change.locked or change.suspended or change.deactivated
        ):
            raise AccountError("M_FORBIDDEN", 400, "You cannot do this to your own account")

    async def _create(self, user_id: str, change: AccountChange) -> None:
        if change.password is None:
            raise AccountError("M_MISSING_PARAM", 400, "password is missing")
        await self._accounts.register(
            user_id, change.password, displayname=change.displayname, is_admin=change.admin is True
        )
        if change.avatar_url:
            await self._accounts.set_profile(user_id, "avatar_url", change.avatar_url)
        if change.locked:
            await self._accounts.set_locked(user_id, True)
        if change.suspended:
            await self._accounts.set_suspended(user_id, True)

    async def _change(self, found: ListedAccount, change: AccountChange) -> None:
        user_id = found.user_id
        active = not found.deactivated
        if found.deactivated and change.deactivated is False:
            if change.password is None:
                raise AccountError("M_MISSING_PARAM", 400, "To activate an account it needs a password")
            await self._accounts.reactivate(user_id, change.password)
            active = True
        elif change.password is not None:
            await self.reset_password(user_id, change.password, log_out=change.log_out)
        if change.admin is not None:
            await self._accounts.set_admin(user_id, change.admin)
        if change.locked is not None:
            await self._accounts.set_locked(user_id, change.locked)
        if change.suspended is not None:
            await self._accounts.set_suspended(user_id, change.suspended)
        if change.deactivated and active:
            await self._accounts.deactivate(user_id)
        elif active:
            await self._set_profile(user_id, change)

    async def _set_profile(self, user_id: str, change: AccountChange) -> None:
        fields = {"displayname": change.displayname, "avatar_url": change.avatar_url}
        wanted = {field: value for field, value in fields.items() if value is not None}
        for field, value in wanted.items():
            await self._accounts.set_profile(user_id, field, value or None)
        if wanted:
            await self._tell_rooms(user_id)

    async def reset_password(self, user_id: str, password: str, *, log_out: bool) -> None:
        """Set a password and, with `log_out`, end every login. Raises BadPassword too."""
        check_length(password)
        if (await self.get(user_id)).deactivated:
            raise AccountError("M_USER_DEACTIVATED", 400, "This account has been deactivated")
        await self._accounts.set_password(user_id, password)
        if log_out:
            await self._accounts.log_out(user_id)

    async def set_admin(self, by: str, user_id: str, admin: bool) -> None:
        await self.get(user_id)
        self._check_own(by, user_id, AccountChange(admin=admin))
        await self._accounts.set_admin(user_id, admin)

    async def set_locked(self, by: str, user_id: str, locked: bool) -> None:
        await self.get(user_id)
        self._check_own(by, user_id, AccountChange(locked=locked))
        await self._accounts.set_locked(user_id, locked)

    async def set_suspended(self, by: str, user_id: str, suspended: bool) -> None:
        await self.get(user_id)
        self._check_own(by, user_id, AccountChange(suspended=suspended))
        await self._accounts.set_suspended(user_id, suspended)

    async def deactivate(self, by: str, user_id: str, *, erase: bool = False) -> None:
        """End the account for good (see Accounts.deactivate); doing it again does no harm."""
        await self.get(user_id)
        self._check_own(by, user_id, AccountChange(deactivated=True))
        await self._accounts.deactivate(user_id, erase=erase)

    async def log_in_as(self, by: str, user_id: str, expires_ts: int | None) -> Login:
        """A device of the user's, which they see in their list, that somebody else uses."""
        await self.get(user_id)
        if by == user_id:
            raise AccountError("M_FORBIDDEN", 400, "You are logged in as this user")
        return await self._accounts.log_in(user_id, None, DEVICE_NAME, expires_ts=expires_ts)

    async def revoke(self, user_id: str, device_ids: list[str] | None = None) -> list[str]:
        """End logins, all when none is named; those that there were."""
        await self.get(user_id)
        return await self._accounts.log_out(user_id, device_ids)

    async def whois(self, user_id: str) -> dict[str, Any]:
        """Where the user's devices were seen last (CS API §Server Administration)."""
        await self.get(user_id)
        return {
            "user_id": user_id,
            "devices": {
                d.device_id: {
                    "sessions": [
                        {
                            "connections": [
                                {"ip": d.last_seen_ip, "last_seen": d.last_seen_ts, "user_agent": ""}
                            ]
                        }
                    ]
                }
                for d in await self._accounts.devices(user_id)
                if d.last_seen_ip is not None
            },
        }
