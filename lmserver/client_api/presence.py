"""Presence (CS API §Presence). Where it is switched off, everybody is offline and nothing is an error."""

from __future__ import annotations

from lmserver.client_api import room_requests as rooms
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.presence import MAX_STATUS, STATES, Presence
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_json, bad_param, forbidden

PATH = "/_matrix/client/v3/presence/{user_id}/status"


class PresenceEndpoints:
    """One's own status, and those of people one shares a room with."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence

    @endpoint("GET", PATH, auth=Auth.USER)
    async def get(self, request: Request) -> JsonObject:
        """Somebody's status."""
        user_id = rooms.identifier(request.params["user_id"], ids.check_user_id, "user_id")
        found = await self._presence.of(rooms.user(request), user_id)
        if found is None:
            raise forbidden("You share no room with this user")
        return found

    @endpoint("PUT", PATH, auth=Auth.USER, rate="send")
    async def put(self, request: Request) -> JsonObject:
        """Set one's own status."""
        if request.params["user_id"] != rooms.user(request):
            raise forbidden("You may change only your own presence")
        body = await request.json()
        presence, status_msg = body.get("presence"), body.get("status_msg")
        if presence not in STATES:
            raise bad_param(f"presence is one of {', '.join(STATES)}")
        if not isinstance(status_msg, str | None) or len(status_msg or "") > MAX_STATUS:
            raise bad_json(f"status_msg is a text of at most {MAX_STATUS} characters")
        if any(0xD800 <= ord(c) <= 0xDFFF for c in status_msg or ""):
            raise bad_json("status_msg is not valid text")
        await self._presence.set(rooms.user(request), presence, status_msg)
        return {}
