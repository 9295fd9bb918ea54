"""Accounts: found, made, changed, ended (as Synapse's user admin API has it)."""

from __future__ import annotations

from typing import Any

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.administration import AccountAdministration, AccountChange
from lmserver.accounts.errors import AccountError
from lmserver.accounts.passwords import BadPassword
from lmserver.admin_api import parameters as p
from lmserver.admin_api.paging import next_token, page_of
from lmserver.admin_api.parameters import SYNAPSE
from lmserver.protocol.canonical_json import JsonObject
from lmserver.storage.account_list import ORDERS, AccountQuery, ListedAccount
from lmserver.web.endpoint import Auth, Reply, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, missing_param

_UNKNOWN_HERE = frozenset({"is_guest", "user_type", "shadow_banned"})
"""Orders of Synapse's for what nobody has here: the name decides."""


class UserEndpoints:
    """What an operator does with accounts as a whole."""

    def __init__(self, our_name: str, accounts: Accounts, administration: AccountAdministration) -> None:
        self._our_name = our_name
        self._accounts = accounts
        self._administration = administration

    @endpoint("GET", SYNAPSE + "/v2/users", auth=Auth.ADMIN)
    async def users(self, request: Request) -> JsonObject:
        """Accounts in pages, by name, ID and kind; there are no guests, so `guests` changes nothing."""
        p.flag(request, "guests")
        order = p.choice(request, "order_by", "name", ORDERS | _UNKNOWN_HERE)
        query = AccountQuery(
            p.text(request, "name"),
            p.text(request, "user_id"),
            p.flag(request, "admins"),
            p.flag(request, "deactivated") is True,
            p.flag(request, "locked") is True,
        )
        part = page_of(request, order if order in ORDERS else "name")
        found, total = await self._administration.page(query, part)
        return {
            "users": [_listed(account) for account in found],
            "total": total,
            **next_token(part.start, part.limit, total),
        }

    @endpoint("GET", SYNAPSE + "/v2/users/{user_id}", auth=Auth.ADMIN)
    async def user(self, request: Request) -> JsonObject:
        """One account."""
        return await self._details(p.user_id(request, self._our_name))

    @endpoint("PUT", SYNAPSE + "/v2/users/{user_id}", auth=Auth.ADMIN)
    async def put_user(self, request: Request) -> Reply:
        """Make an account (201) or change it (200). `threepids`, `external_ids` and `user_type` are not kept
        here and change nothing."""
        user_id, body = p.user_id(request, self._our_name), await request.json()
        try:
            made = await self._administration.put(request.requester.user_id, user_id, _change(body))
        except AccountError as error:
            raise p.of_account(error) from None
        except BadPassword as error:
            raise _weak(error) from None
        return Reply(201 if made else 200, await self._details(user_id))

    @endpoint("GET", SYNAPSE + "/v1/users/{user_id}/admin", auth=Auth.ADMIN)
    async def is_admin(self, request: Request) -> JsonObject:
        """Whether a user is an administrator."""
        return {"admin": (await self._account(p.user_id(request, self._our_name))).is_admin}

    @endpoint("PUT", SYNAPSE + "/v1/users/{user_id}/admin", auth=Auth.ADMIN)
    async def set_admin(self, request: Request) -> JsonObject:
        """Make a user an administrator, or no longer one; nobody does the latter to themselves."""
        user_id, admin = p.user_id(request, self._our_name), p.needed(await request.json(), "admin", bool)
        try:
            await self._administration.set_admin(request.requester.user_id, user_id, admin)
        except AccountError as error:
            raise p.of_account(error) from None
        return {}

    @endpoint("POST", SYNAPSE + "/v1/reset_password/{user_id}", auth=Auth.ADMIN)
    async def reset_password(self, request: Request) -> JsonObject:
        """Set a password; all logins end unless `logout_devices` is false."""
        user_id, body = p.user_id(request, self._our_name), await request.json()
        password = p.needed(body, "new_password", str)
        log_out = p.of_body(body, "logout_devices", bool)
        try:
            await self._administration.reset_password(user_id, password, log_out=log_out is not False)
        except AccountError as error:
            raise p.of_account(error) from None
        except BadPassword as error:
            raise _weak(error) from None
        return {}

    @endpoint("POST", SYNAPSE + "/v1/deactivate/{user_id}", auth=Auth.ADMIN)
    async def deactivate(self, request: Request) -> JsonObject:
        """End an account for good. What is only the user's goes with it in any case, and with `erase` what
        they uploaded is hidden, and what they sent from those who come to its rooms later."""
        user_id, body = p.user_id(request, self._our_name), await request.json_or_empty()
        erase = p.of_body(body, "erase", bool) is True
        try:
            await self._administration.deactivate(request.requester.user_id, user_id, erase=erase)
        except AccountError as error:
            raise p.of_account(error) from None
        return {"id_server_unbind_result": "no-support"}

    @endpoint("PUT", SYNAPSE + "/v1/suspend/{user_id}", auth=Auth.ADMIN)
    async def suspend(self, request: Request) -> JsonObject:
        """Let a user do hardly more than read and leave, or all again."""
        user_id, suspend = p.user_id(request, self._our_name), p.needed(await request.json(), "suspend", bool)
        try:
            await self._administration.set_suspended(request.requester.user_id, user_id, suspend)
        except AccountError as error:
            raise p.of_account(error) from None
        return {f"user_{user_id}_suspended": suspend}

    @endpoint("GET", SYNAPSE + "/v1/username_available", auth=Auth.ADMIN)
    async def username_available(self, request: Request) -> JsonObject:
        """Whether an operator could make an account of this name."""
        name = p.text(request, "username")
        if not name:
            raise missing_param("username is missing")
        try:
            taken = await self._accounts.exists(self._accounts.user_id(name))
        except AccountError as error:
            raise p.of_account(error) from None
        if taken:
            raise ApiError(400, "M_USER_IN_USE", "This user name is taken")
        return {"available": True}

    async def _account(self, user_id: str) -> ListedAccount:
        try:
            return await self._administration.get(user_id)
        except AccountError as error:
            raise p.of_account(error) from None

    async def _details(self, user_id: str) -> JsonObject:
        account = await self._account(user_id)
        return {
            **_listed(account),
            "is_guest": False,
            # Seconds here and milliseconds in the list, as in Synapse.
            "creation_ts": account.created_ts // 1000,
            "threepids": [],
            "external_ids": [],
            "appservice_id": None,
        }


def _listed(account: ListedAccount) -> JsonObject:
    return {
        "name": account.user_id,
        "is_guest": False,
        "admin": account.is_admin,
        "user_type": None,
        "deactivated": account.deactivated,
        "erased": account.erased,
        "shadow_banned": False,
        "displayname": account.displayname,
        "avatar_url": account.avatar_url,
        "creation_ts": account.created_ts,
        "last_seen_ts": account.last_seen_ts,
        "locked": account.locked,
        "suspended": account.suspended,
    }


def _change(body: dict[str, Any]) -> AccountChange:
    if not isinstance(body.get("threepids", []), list):
        raise bad_json("threepids is a list")
    log_out = p.of_body(body, "logout_devices", bool)
    return AccountChange(
        p.of_body(body, "password", str),
        log_out is not False,
        p.of_body(body, "displayname", str),
        p.of_body(body, "avatar_url", str),
        p.of_body(body, "admin", bool),
        p.of_body(body, "locked", bool),
        p.of_body(body, "suspended", bool),
        p.of_body(body, "deactivated", bool),
    )


def _weak(error: BadPassword) -> ApiError:
    return ApiError(400, "M_WEAK_PASSWORD", str(error))
