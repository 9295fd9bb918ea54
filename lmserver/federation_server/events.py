"""Events and state for other servers (D04 §Event and State APIs).

An event must be in the room named before anything about it is looked up, and everything goes
through what the requesting server may see.
"""

from __future__ import annotations

from typing import Any

from lmserver.federation_server.paths import STABLE, UNSTABLE
from lmserver.protocol import ids
from lmserver.rooms import server_reading
from lmserver.rooms.server_reading import ServerAccess, ServerReading
from lmserver.storage.room_log import StoredEvent
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_param, missing_param, not_found

MAX_BACKFILL = 100


class EventEndpoints:
    """Reads of a room by servers that are or were in it."""

    def __init__(self, reading: ServerReading, our_name: str) -> None:
        self._reading = reading
        self._our_name = our_name

    @endpoint("GET", STABLE + "/v2/event/{event_id}", UNSTABLE + "/event/{event_id}", auth=Auth.SERVER)
    async def event(self, request: Request) -> dict[str, Any]:
        """One event; an LPDU or a refused event is as if it did not exist."""
        event_id = request.params["event_id"]
        found = await self._reading.event(request.origin, event_id) if ids.is_event_id(event_id) else None
        if found is None:
            raise not_found("Event not found")
        return found

    @endpoint("GET", STABLE + "/v1/state/{room_id}", auth=Auth.SERVER)
    async def state(self, request: Request) -> dict[str, Any]:
        """The state before an event, and its auth chain; only the hub answers."""
        access, state, chain = await self._state(request)
        return {
            "pdus": [server_reading.serve_state(e, access) for e in state],
            "auth_chain": [server_reading.serve_state(e, access) for e in chain],
        }

    @endpoint("GET", STABLE + "/v1/state_ids/{room_id}", auth=Auth.SERVER)
    async def state_ids(self, request: Request) -> dict[str, Any]:
        """The same as event IDs."""
        _, state, chain = await self._state(request)
        return {"pdu_ids": [e.event_id for e in state], "auth_chain_ids": [e.event_id for e in chain]}

    async def _state(self, request: Request) -> tuple[ServerAccess, list[StoredEvent], list[StoredEvent]]:
        event_id = request.query.get("event_id")
        if event_id is None:
            raise missing_param("event_id is missing")
        access = await self._access(request)
        if access.room.hub_server != self._our_name:
            raise ApiError(
                400,
                "M_WRONG_SERVER",
                "This server is not the hub of the room",
                {"org.lmserver.hub": access.room.hub_server},
            )
        state = await self._reading.state_before(access, event_id) if ids.is_event_id(event_id) else None
        if state is None:
            raise not_found("Event not found")
        return access, state, await self._reading.auth_chain(access.room.room_id, state)

    @endpoint("GET", STABLE + "/v2/backfill/{room_id}", UNSTABLE + "/backfill/{room_id}", auth=Auth.SERVER)
    async def backfill(self, request: Request) -> dict[str, Any]:
        """Events up to and including `v`, oldest first, at most `limit` and never over 100."""
        event_id, limit = request.query.get("v"), request.query.get("limit")
        if event_id is None or limit is None:
            raise missing_param("v or limit is missing")
        if not limit.isascii() or not limit.isdigit() or len(limit) > 9 or int(limit) < 1:
            raise bad_param("limit is not a positive integer")
        access = await self._access(request)
        found = (
            await self._reading.backfill(access, event_id, min(int(limit), MAX_BACKFILL))
            if ids.is_event_id(event_id)
            else None
        )
        if found is None:
            raise not_found("Event not found")
        return {"pdus": found}

    async def _access(self, request: Request) -> ServerAccess:
        room_id = request.params["room_id"]
        access = await self._reading.access(request.origin, room_id) if ids.is_room_id(room_id) else None
        if access is None:
            raise not_found("Room not known")
        return access
