"""Replacing rooms (CS API §Room Upgrades)."""

from __future__ import annotations

from lmserver.client_api import room_requests as rooms
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.outcomes import RoomBusy
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.rooms.presets import BadRoomRequest, Versions
from lmserver.rooms.upgrades import NotUpgraded, Upgrades
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, missing_param


class UpgradeEndpoints:
    """One endpoint."""

    def __init__(self, upgrades: Upgrades, versions: Versions) -> None:
        self._upgrades = upgrades
        self._versions = versions

    @endpoint(
        "POST",
        "/_matrix/client/v3/rooms/{room_id}/upgrade",
        auth=Auth.USER,
        rate="create_room",
        deadline=120,
    )
    async def upgrade(self, request: Request) -> JsonObject:
        """Make a room of another version and send everybody there; asked again, the same room."""
        body = await request.json()
        if body.get("new_version") is None:
            raise missing_param("new_version is missing")
        try:
            version = self._versions.choose(body["new_version"])
            new_id = await self._upgrades.upgrade(rooms.user(request), rooms.room_id(request), version)
        except BadRoomRequest as error:
            raise ApiError(400, error.errcode, error.reason) from None
        except HubSilent:
            raise rooms.hub_silent() from None
        except RoomBusy:
            raise rooms.busy() from None
        except NotUpgraded as refused:
            raise rooms.refused(refused.errcode, refused.reason) from None
        return {"replacement_room": new_id}
