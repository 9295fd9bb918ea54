"""The devices of a user (CS API §Device management)."""

from __future__ import annotations

from typing import Any

from lmserver.accounts.accounts import Accounts
from lmserver.client_api.interactive_auth import UserInteraction
from lmserver.protocol import ids
from lmserver.storage.accounts import Device
from lmserver.web.endpoint import Auth, Reply, Request, endpoint
from lmserver.web.errors import bad_json, bad_param, not_found

MAX_NAME = 256


class DeviceEndpoints:
    """The user's own devices."""

    def __init__(self, accounts: Accounts, interaction: UserInteraction) -> None:
        self._accounts = accounts
        self._interaction = interaction

    @endpoint("GET", "/_matrix/client/v3/devices", auth=Auth.USER)
    async def devices(self, request: Request) -> dict[str, Any]:
        """All devices of the user."""
        found = await self._accounts.devices(request.requester.user_id)
        return {"devices": [_shown(device) for device in found]}

    @endpoint("GET", "/_matrix/client/v3/devices/{device_id}", auth=Auth.USER)
    async def device(self, request: Request) -> dict[str, Any]:
        """One device."""
        return _shown(await self._own(request))

    @endpoint("PUT", "/_matrix/client/v3/devices/{device_id}", auth=Auth.USER)
    async def rename(self, request: Request) -> dict[str, Any] | Reply:
        """Give a device another name. An application service makes a device that is not there, for it
        needs no login (AS API §Device management)."""
        name = (await request.json()).get("display_name")
        if not isinstance(name, str | None) or len(name or "") > MAX_NAME or "\0" in (name or ""):
            raise bad_json("display_name is a string of at most 256 characters")
        if request.requester.appservice and await self._make(request, name):
            return Reply(201, {})
        device = await self._own(request)
        if name is not None:
            await self._accounts.rename_device(device.user_id, device.device_id, name)
        return {}

    async def _make(self, request: Request, name: str | None) -> bool:
        """Whether there was no such device, which there is now."""
        user_id, device_id = request.requester.user_id, request.params["device_id"]
        if not ids.is_device_id(device_id):
            raise bad_param("The device ID is not valid")
        return await self._accounts.make_device(user_id, device_id, name)

    async def _own(self, request: Request) -> Device:
        device_id = request.params["device_id"]
        found = None
        if "\0" not in device_id:
            found = await self._accounts.device(request.requester.user_id, device_id)
        if found is None:
            raise not_found("No such device")
        return found

    @endpoint("DELETE", "/_matrix/client/v3/devices/{device_id}", auth=Auth.USER, suspended=True)
    async def delete(self, request: Request) -> dict[str, Any]:
        """Log a device out, with the password."""
        body = await request.json_or_empty()
        await self._interaction.confirm(request, body)
        await self._accounts.log_out(request.requester.user_id, [request.params["device_id"]])
        return {}

    @endpoint("POST", "/_matrix/client/v3/delete_devices", auth=Auth.USER, suspended=True)
    async def delete_many(self, request: Request) -> dict[str, Any]:
        """Log several devices out, with the password."""
        body = await request.json()
        names = body.get("devices")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise bad_json("devices is a list of device IDs")
        await self._interaction.confirm(request, body)
        await self._accounts.log_out(request.requester.user_id, names)
        return {}


def _shown(device: Device) -> dict[str, Any]:
    return {
        "device_id": device.device_id,
        "display_name": device.display_name,
        "last_seen_ip": device.last_seen_ip,
        "last_seen_ts": device.last_seen_ts,
    }
