"""Which room a federation request is about, and whether we are the one to ask (D04 §Errors)."""

from __future__ import annotations

from lmserver.protocol import ids
from lmserver.protocol.room_view import RoomView
from lmserver.rooms.engine import RoomEngine
from lmserver.web.errors import ApiError, not_found


async def hub_view(engine: RoomEngine, room_id: object) -> RoomView:
    """The room, if we are its hub: 404 M_NOT_FOUND, or 400 M_WRONG_SERVER naming the hub."""
    view = await engine.view(room_id) if isinstance(room_id, str) and ids.is_room_id(room_id) else None
    if view is None:
        raise not_found("Room not known")
    if view.hub != engine.our_name:
        raise ApiError(400, "M_WRONG_SERVER", "Not the hub of the room", {"org.lmserver.hub": view.hub})
    return view
