"""Devices, keys, profiles and aliases of our users, for servers that ask us directly
(D04 §MLS; SS API §Device Management, §End-to-End Encryption, §Querying for information)."""

from __future__ import annotations

from typing import Any, Protocol

from lmserver.federation_server.paths import STABLE, UNSTABLE
from lmserver.protocol import ids
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_json, bad_param, not_found

MAX_USERS = 1000
MAX_DEVICES = 1000
_RATE = "federation_devices"


class Devices(Protocol):
    """Devices and keys of local users; users and devices that do not exist are left out."""

    async def device(self, user_id: str, device_id: str) -> dict[str, Any] | None: ...

    async def devices(self, user_id: str) -> dict[str, Any] | None: ...

    async def query_keys(self, wanted: dict[str, list[str]]) -> dict[str, Any]: ...

    async def claim_keys(self, origin: str, wanted: dict[str, dict[str, str]]) -> dict[str, Any]: ...


class Profiles(Protocol):
    async def of(self, user_id: str) -> dict[str, Any] | None: ...


class Aliases(Protocol):
    async def resolve(self, alias: str) -> tuple[str, list[str]] | None:
        """Room ID and servers in the room of a local alias."""
        ...


class DeviceEndpoints:
    """Thin: shapes are checked here, everything else is the collaborators'."""

    def __init__(self, our_name: str, devices: Devices, profiles: Profiles, aliases: Aliases) -> None:
        self._our_name = our_name
        self._devices = devices
        self._profiles = profiles
        self._aliases = aliases

    @endpoint("GET", STABLE + "/v1/user/{user_id}/device/{device_id}",
              UNSTABLE + "/user/{user_id}/device/{device_id}", auth=Auth.SERVER, rate=_RATE)  # fmt: skip
    async def device(self, request: Request) -> dict[str, Any]:
        """D04 §GET user/:userId/device/:deviceId."""
        user_id = self._local(request.params["user_id"])
        found = await self._devices.device(user_id, request.params["device_id"])
        if found is None:
            raise not_found("Device not found")
        return found

    @endpoint("GET", STABLE + "/v1/user/devices/{user_id}", auth=Auth.SERVER, rate=_RATE)
    async def devices(self, request: Request) -> dict[str, Any]:
        """SS API §GET user/devices."""
        found = await self._devices.devices(self._local(request.params["user_id"]))
        if found is None:
            raise not_found("User not found")
        return found

    @endpoint("POST", STABLE + "/v1/user/keys/claim", UNSTABLE + "/user/keys/claim",
              auth=Auth.SERVER, rate=_RATE)  # fmt: skip
    async def claim(self, request: Request) -> dict[str, Any]:
        """D04 §One Time Key Claiming: no key is handed out twice, which is the collaborator's."""
        wanted = self._users(await request.json(), "one_time_keys")
        asked = {
            user_id: {d: a for d, a in devices.items() if isinstance(a, str)}
            for user_id, devices in wanted.items()
            if isinstance(devices, dict)
        }
        if sum(map(len, asked.values())) > MAX_DEVICES:
            raise bad_json(f"one_time_keys names at most {MAX_DEVICES} devices")
        return {"one_time_keys": await self._devices.claim_keys(request.origin, asked)}

    @endpoint("POST", STABLE + "/v1/user/keys/query", UNSTABLE + "/user/keys/query",
              auth=Auth.SERVER, rate=_RATE)  # fmt: skip
    async def query_keys(self, request: Request) -> dict[str, Any]:
        """SS API §POST user/keys/query."""
        wanted = self._users(await request.json(), "device_keys")
        asked = {
            user_id: [d for d in devices if isinstance(d, str)]
            for user_id, devices in wanted.items()
            if isinstance(devices, list)
        }
        if sum(map(len, asked.values())) > MAX_DEVICES:
            raise bad_json(f"device_keys names at most {MAX_DEVICES} devices")
        return await self._devices.query_keys(asked)

    @endpoint("GET", STABLE + "/v1/query/profile", auth=Auth.SERVER, rate=_RATE)
    async def profile(self, request: Request) -> dict[str, Any]:
        """SS API §GET query/profile."""
        found = await self._profiles.of(self._local(request.query.get("user_id", "")))
        if found is None:
            raise not_found("User not found")
        field = request.query.get("field")
        return found if field is None else {k: v for k, v in found.items() if k == field}

    @endpoint("GET", STABLE + "/v1/query/directory", auth=Auth.SERVER, rate=_RATE)
    async def directory(self, request: Request) -> dict[str, Any]:
        """SS API §GET query/directory."""
        alias = request.query.get("room_alias", "")
        if not ids.is_room_alias(alias):
            raise bad_param("The room alias is not valid")
        found = await self._aliases.resolve(alias) if ids.server_of(alias) == self._our_name else None
        if found is None:
            raise not_found("Room alias not found")
        return {"room_id": found[0], "servers": found[1]}

    def _local(self, user_id: str) -> str:
        if not ids.is_user_id(user_id) or ids.server_of(user_id) != self._our_name:
            raise not_found("User not found")
        return user_id

    def _users(self, body: dict[str, Any], name: str) -> dict[str, Any]:
        """The named object's entries for users of ours; all others are ignored (D04)."""
        wanted = body.get(name)
        if not isinstance(wanted, dict) or len(wanted) > MAX_USERS:
            raise bad_json(f"{name} is an object of at most {MAX_USERS} users")
        return {u: v for u, v in wanted.items() if ids.is_user_id(u) and ids.server_of(u) == self._our_name}
