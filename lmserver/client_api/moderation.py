"""What operators do to accounts through a client (CS API §Server Administration)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from lmserver.accounts.administration import AccountAdministration
from lmserver.accounts.errors import AccountError
from lmserver.client_api.login import api_error
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.storage.account_list import ListedAccount
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_json, bad_param, forbidden, not_found

Change = Callable[[str, str, bool], Awaitable[None]]
V1 = "/_matrix/client/v1/admin"
UNSTABLE = "/_matrix/client/unstable/uk.timedout.msc4323/admin"


class ModerationEndpoints:
    """The endpoints of operators that the specification gives to clients: whois, which is for users of
    themselves too, and locking and suspending accounts."""

    def __init__(self, our_name: str, administration: AccountAdministration) -> None:
        self._our_name = our_name
        self._administration = administration

    @endpoint("GET", "/_matrix/client/v3/admin/whois/{user_id}", auth=Auth.USER)
    async def whois(self, request: Request) -> JsonObject:
        """Where the user's devices were seen last; 403 for anybody but the user and administrators."""
        user_id = request.params["user_id"]
        if not ids.is_user_id(user_id):
            raise bad_param("user_id is not valid")
        if user_id != request.requester.user_id and not request.requester.is_admin:
            raise forbidden("You are not a server admin")
        if ids.server_of(user_id) != self._our_name:
            raise not_found("User not found")
        try:
            return await self._administration.whois(user_id)
        except AccountError as error:
            raise api_error(error) from None

    @endpoint("GET", V1 + "/suspend/{user_id}", UNSTABLE + "/suspend/{user_id}", auth=Auth.USER)
    async def is_suspended(self, request: Request) -> JsonObject:
        """Whether an account is suspended."""
        return {"suspended": (await self._account(request)).suspended}

    @endpoint("PUT", V1 + "/suspend/{user_id}", UNSTABLE + "/suspend/{user_id}", auth=Auth.USER)
    async def suspend(self, request: Request) -> JsonObject:
        """Let an account do hardly more than read, or all again."""
        return await self._set(request, "suspended", self._administration.set_suspended)

    @endpoint("GET", V1 + "/lock/{user_id}", UNSTABLE + "/lock/{user_id}", auth=Auth.USER)
    async def is_locked(self, request: Request) -> JsonObject:
        """Whether an account is locked."""
        return {"locked": (await self._account(request)).locked}

    @endpoint("PUT", V1 + "/lock/{user_id}", UNSTABLE + "/lock/{user_id}", auth=Auth.USER)
    async def lock(self, request: Request) -> JsonObject:
        """Lock an account out, or let it in again."""
        return await self._set(request, "locked", self._administration.set_locked)

    async def _set(self, request: Request, name: str, change: Change) -> JsonObject:
        account = await self._account(request)
        wanted = (await request.json()).get(name)
        if not isinstance(wanted, bool):
            raise bad_json(f"{name} is a boolean")
        if account.is_admin:
            raise forbidden("Not to administrators")
        if account.deactivated:
            raise not_found("User not found")
        await change(request.requester.user_id, account.user_id, wanted)
        return {name: wanted}

    async def _account(self, request: Request) -> ListedAccount:
        """The account of the path; nobody but an administrator learns whether there is one."""
        user_id = request.params["user_id"]
        if not request.requester.is_admin:
            raise forbidden("You are not a server admin")
        if not ids.is_user_id(user_id) or ids.server_of(user_id) != self._our_name:
            raise bad_param("user_id is not a user of this server")
        try:
            return await self._administration.get(user_id)
        except AccountError as error:
            raise api_error(error) from None
