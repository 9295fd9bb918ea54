"""Where a user is logged in, and in which rooms."""

from __future__ import annotations

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.administration import AccountAdministration
from lmserver.accounts.errors import AccountError
from lmserver.admin_api import parameters as p
from lmserver.admin_api.parameters import SYNAPSE
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.storage import room_state
from lmserver.storage.accounts import Device
from lmserver.storage.database import Executor
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_json, bad_param, not_found

DEVICE = SYNAPSE + "/v2/users/{user_id}/devices/{device_id}"


class SessionEndpoints:
    """Devices, logins and rooms of one user."""

    def __init__(
        self, db: Executor, our_name: str, accounts: Accounts, administration: AccountAdministration
    ) -> None:
        self._db = db
        self._our_name = our_name
        self._accounts = accounts
        self._administration = administration

    @endpoint("GET", SYNAPSE + "/v2/users/{user_id}/devices", auth=Auth.ADMIN)
    async def devices(self, request: Request) -> JsonObject:
        """All devices of a user."""
        found = await self._accounts.devices(await self._user(request))
        return {"devices": [_device(device) for device in found], "total": len(found)}

    @endpoint("GET", DEVICE, auth=Auth.ADMIN)
    async def device(self, request: Request) -> JsonObject:
        """One device of a user."""
        return _device(await self._device(request))

    @endpoint("DELETE", DEVICE, auth=Auth.ADMIN)
    async def delete_device(self, request: Request) -> JsonObject:
        """End one login; one that is not there is none already."""
        user_id = await self._user(request)
        await self._administration.revoke(user_id, [request.params["device_id"]])
        return {}

    @endpoint("POST", SYNAPSE + "/v2/users/{user_id}/delete_devices", auth=Auth.ADMIN)
    async def delete_devices(self, request: Request) -> JsonObject:
        """End several logins."""
        user_id, names = await self._user(request), p.needed(await request.json(), "devices", list)
        if not all(isinstance(name, str) for name in names):
            raise bad_json("devices is a list of strings")
        await self._administration.revoke(user_id, names)
        return {}

    @endpoint("POST", SYNAPSE + "/v1/users/{user_id}/login", auth=Auth.ADMIN)
    async def log_in_as(self, request: Request) -> JsonObject:
        """An access token of the user's, until `valid_until_ms` where that is given: a device that the user
        sees in their list."""
        user_id, body = p.user_id(request, self._our_name), await request.json_or_empty()
        until = p.of_body(body, "valid_until_ms", int)
        if until is not None and not 0 <= until <= p.MAX_NUMBER:
            raise bad_json("valid_until_ms is a time in milliseconds")
        try:
            login = await self._administration.log_in_as(request.requester.user_id, user_id, until)
        except AccountError as error:
            raise p.of_account(error) from None
        return {"access_token": login.access_token}

    @endpoint("GET", SYNAPSE + "/v1/whois/{user_id}", auth=Auth.ADMIN)
    async def whois(self, request: Request) -> JsonObject:
        """Where the user's devices were seen last."""
        return await self._administration.whois(await self._user(request))

    @endpoint("GET", SYNAPSE + "/v1/users/{user_id}/joined_rooms", auth=Auth.ADMIN)
    async def joined_rooms(self, request: Request) -> JsonObject:
        """The rooms a user is in; of users of other servers those that we know."""
        user_id = request.params["user_id"]
        if not ids.is_user_id(user_id):
            raise bad_param("user_id is not valid")
        if ids.server_of(user_id) == self._our_name:
            user_id = await self._user(request)
        memberships = await room_state.user_memberships(self._db, user_id)
        rooms = sorted(m.room_id for m in memberships if m.membership == "join")
        return {"joined_rooms": rooms, "total": len(rooms)}

    async def _user(self, request: Request) -> str:
        user_id = p.user_id(request, self._our_name)
        try:
            await self._administration.get(user_id)
        except AccountError as error:
            raise p.of_account(error) from None
        return user_id

    async def _device(self, request: Request) -> Device:
        user_id, device_id = await self._user(request), request.params["device_id"]
        found = None if "\0" in device_id else await self._accounts.device(user_id, device_id)
        if found is None:
            raise not_found("Device not found")
        return found


def _device(device: Device) -> JsonObject:
    return {
        "device_id": device.device_id,
        "display_name": device.display_name,
        "last_seen_ip": device.last_seen_ip,
        "last_seen_user_agent": None,
        "last_seen_ts": device.last_seen_ts,
        "user_id": device.user_id,
    }
