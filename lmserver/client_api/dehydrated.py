"""Dehydrated devices (MSC3814), under the path clients use for them."""

from __future__ import annotations

import re
from typing import Any

import orjson

from lmserver.accounts.dehydrated import DehydratedDevices, DeviceInUse, NewDevice, OtherDevice
from lmserver.accounts.device_data import KeyConflict, TooManyKeys
from lmserver.client_api import key_shapes as shapes
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_json, bad_param, forbidden, not_found

PATH = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
MAX_TEXT = 255
_TOKEN = re.compile(r"d([0-9]{1,18})")


class DehydratedEndpoints:
    """The user's dehydrated device."""

    def __init__(self, devices: DehydratedDevices) -> None:
        self._devices = devices

    @endpoint("PUT", PATH, auth=Auth.USER, suspended=True)
    async def put(self, request: Request) -> dict[str, Any]:
        """Leave a device here, in the place of the one there is."""
        device = _device(await request.json(), request.requester.user_id)
        try:
            await self._devices.put(request.requester.user_id, device)
        except DeviceInUse:
            raise bad_param("A device of this ID is logged in") from None
        except (KeyConflict, TooManyKeys):
            raise bad_param("The one-time keys cannot be taken") from None
        return {"device_id": device.device_id}

    @endpoint("GET", PATH, auth=Auth.USER)
    async def get(self, request: Request) -> dict[str, Any]:
        """The device, encrypted."""
        device = await self._devices.get(request.requester.user_id)
        if device is None:
            raise not_found("No dehydrated device available")
        return {"device_id": device.device_id, "device_data": orjson.loads(device.data)}

    @endpoint("DELETE", PATH, auth=Auth.USER, suspended=True)
    async def delete(self, request: Request) -> dict[str, Any]:
        """Remove the device with its messages."""
        device_id = await self._devices.delete(request.requester.user_id)
        if device_id is None:
            raise not_found("No dehydrated device available")
        return {"device_id": device_id}

    @endpoint("POST", PATH + "/{device_id}/events", auth=Auth.USER, suspended=True)
    async def events(self, request: Request) -> dict[str, Any]:
        """Messages sent to the device, a part at a time; no more come when a part is empty."""
        since = _since((await request.json_or_empty()).get("next_batch"))
        user_id, device_id = request.requester.user_id, request.params["device_id"]
        try:
            events, upto = await self._devices.messages(user_id, device_id, since)
        except OtherDevice:
            raise forbidden("This is not the dehydrated device") from None
        return {"events": events, "next_batch": f"d{upto}"}


def _device(body: dict[str, Any], user_id: str) -> NewDevice:
    device_id, data = body.get("device_id"), body.get("device_data")
    name = body.get("initial_device_display_name")
    if not isinstance(device_id, str) or not 0 < len(device_id) <= MAX_TEXT or not device_id.isprintable():
        raise bad_json("device_id is the ID of a device")
    if not isinstance(data, dict) or not isinstance(data.get("algorithm"), str):
        raise bad_json("device_data is an object with an algorithm")
    shapes.check_canonical(data, "device_data")
    if not isinstance(name, str | None) or len(name or "") > MAX_TEXT or "\0" in (name or ""):
        raise bad_json("initial_device_display_name is a string of at most 255 characters")
    keys = body.get("device_keys")
    shapes.check_device_keys(keys, user_id, device_id)
    one_time, fallback = shapes.keys(body, "one_time_keys"), shapes.keys(body, "fallback_keys")
    return NewDevice(device_id, data, name, keys or {}, one_time, fallback)


def _since(token: object) -> int:
    if token is None or token == "":
        return 0
    match = _TOKEN.fullmatch(token) if isinstance(token, str) else None
    if match is None:
        raise bad_param("next_batch is not a token")
    return int(match[1])
