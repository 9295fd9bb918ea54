"""What is in a space, for other servers (SS API §Spaces)."""

from __future__ import annotations

from typing import Any

from lmserver.federation_server.paths import STABLE
from lmserver.protocol import ids
from lmserver.rooms.spaces import Spaces
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import not_found


class SpaceEndpoints:
    """One endpoint."""

    def __init__(self, spaces: Spaces) -> None:
        self._spaces = spaces

    @endpoint(
        "GET", STABLE + "/v1/hierarchy/{room_id}", auth=Auth.SERVER, rate="federation_events", at_once=4
    )
    async def hierarchy(self, request: Request) -> dict[str, Any]:
        """A space and the rooms in it; 404 for one the server may not know of."""
        room_id = request.params["room_id"]
        suggested = request.query.get("suggested_only") == "true"
        found = (
            await self._spaces.for_server(request.origin, room_id, suggested_only=suggested)
            if ids.is_room_id(room_id)
            else None
        )
        if found is None:
            raise not_found("Room not found")
        return found
