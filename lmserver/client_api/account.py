"""One's own account: whose token it is, its password, its end (CS API §Account management)."""

from __future__ import annotations

from typing import Any

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.passwords import BadPassword, check_length
from lmserver.client_api.interactive_auth import UserInteraction
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, missing_param, unrecognized


class AccountEndpoints:
    """What a user may do to the account as a whole."""

    def __init__(self, accounts: Accounts, interaction: UserInteraction) -> None:
        self._accounts = accounts
        self._interaction = interaction

    @endpoint("GET", "/_matrix/client/v3/account/whoami", auth=Auth.USER)
    async def whoami(self, request: Request) -> dict[str, Any]:
        """Whose token this is."""
        requester = request.requester
        device = {"device_id": requester.device_id} if requester.device_id else {}
        return {"user_id": requester.user_id, **device, "is_guest": False}

    @endpoint("GET", "/_matrix/client/v3/account/3pid", auth=Auth.USER)
    async def third_party_ids(self, request: Request) -> dict[str, Any]:
        """There are no e-mail addresses or telephone numbers of users."""
        return {"threepids": []}

    @endpoint("POST", "/_matrix/client/v3/account/password", auth=Auth.USER)
    async def change_password(self, request: Request) -> dict[str, Any]:
        """Set a new password, with the old one; other devices are logged out unless asked not to."""
        body = await request.json()
        new, log_out = body.get("new_password"), body.get("logout_devices", True)
        if new is None:
            raise missing_param("new_password is missing")
        if not isinstance(new, str) or not isinstance(log_out, bool):
            raise bad_json("new_password is a string, logout_devices true or false")
        try:
            check_length(new)
        except BadPassword as error:
            raise ApiError(400, "M_WEAK_PASSWORD", str(error)) from None
        await self._interaction.confirm(request, body)
        requester = request.requester
        await self._accounts.set_password(requester.user_id, new)
        if log_out:
            devices = await self._accounts.devices(requester.user_id)
            others = [d.device_id for d in devices if d.device_id != requester.device_id]
            await self._accounts.log_out(requester.user_id, others)
        return {}

    @endpoint("POST", "/_matrix/client/v3/account/deactivate", auth=Auth.USER, suspended=True)
    async def deactivate(self, request: Request) -> dict[str, Any]:
        """End the account for good, with the password; the user leaves all rooms. With `erase` what they
        uploaded is hidden; what they sent belongs to the rooms."""
        body = await request.json_or_empty()
        erase = body.get("erase", False)
        if not isinstance(erase, bool):
            raise bad_json("erase is a boolean")
        await self._interaction.confirm(request, body)
        await self._accounts.deactivate(request.requester.user_id, erase=erase)
        return {"id_server_unbind_result": "no-support"}

    @endpoint("GET", "/_matrix/client/v1/auth_metadata", auth=Auth.NONE)
    async def auth_metadata(self, request: Request) -> dict[str, Any]:
        """There is no OAuth 2.0 here: clients log in as ever (CS API §OAuth 2.0 API)."""
        raise unrecognized(404)
