"""Jumping to a date (CS API §GET /rooms/{roomId}/timestamp_to_event)."""

from __future__ import annotations

from lmserver.client_api import room_requests as rooms
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.reading import Reading
from lmserver.rooms.timestamps import Timestamps
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_param, missing_param, not_found

LATEST = 2**53 - 1


class TimestampEndpoints:
    """One endpoint."""

    def __init__(self, reading: Reading, timestamps: Timestamps) -> None:
        self._reading = reading
        self._timestamps = timestamps

    @endpoint("GET", "/_matrix/client/v1/rooms/{room_id}/timestamp_to_event", auth=Auth.USER, at_once=4)
    async def timestamp_to_event(self, request: Request) -> JsonObject:
        """The event closest to a moment, of those the user may see; 404 when there is none."""
        if "ts" not in request.query:
            raise missing_param("ts is missing")
        ts, direction = rooms.number(request, "ts", 0, most=LATEST), request.query.get("dir", "f")
        if direction not in ("f", "b"):
            raise bad_param("dir is f or b")
        access = await rooms.readable(self._reading, request)
        found = await self._timestamps.for_user(access, ts, forwards=direction == "f")
        if found is None:
            raise not_found("There is no such event")
        return {"event_id": found.event_id, "origin_server_ts": found.ts}
