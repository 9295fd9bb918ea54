"""Events by their time, for other servers (SS API §GET timestamp_to_event)."""

from __future__ import annotations

from typing import Any

from lmserver.federation_server.paths import STABLE
from lmserver.federation_server.server_view import server_view
from lmserver.protocol import ids
from lmserver.protocol.room_versions import room_version
from lmserver.rooms.access import Access
from lmserver.rooms.timestamps import Timestamps
from lmserver.storage import room_log
from lmserver.storage.database import Executor
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_param, not_found


class TimestampEndpoints:
    """One endpoint."""

    def __init__(self, db: Executor, timestamps: Timestamps) -> None:
        self._db = db
        self._timestamps = timestamps

    @endpoint(
        "GET",
        STABLE + "/v1/timestamp_to_event/{room_id}",
        auth=Auth.SERVER,
        rate="federation_events",
        at_once=4,
    )
    async def timestamp_to_event(self, request: Request) -> dict[str, Any]:
        """The event closest to a moment, of those the server may see; 404 when there is none."""
        ts, direction = request.query.get("ts", ""), request.query.get("dir")
        if not (ts.isascii() and ts.isdigit() and len(ts) < 17) or direction not in ("f", "b"):
            raise bad_param("ts is a number of milliseconds, dir f or b")
        room_id = request.params["room_id"]
        room = await room_log.room(self._db, room_id) if ids.is_room_id(room_id) else None
        if room is None:
            raise not_found("There is no such event")
        view = await server_view(self._db, room, request.origin)
        access = Access(room, room_version(room.room_version), "join", view.visible, None)
        found = await self._timestamps.here(access, int(ts), forwards=direction == "f")
        if found is None:
            raise not_found("There is no such event")
        return {"event_id": found.event_id, "origin_server_ts": found.ts}
