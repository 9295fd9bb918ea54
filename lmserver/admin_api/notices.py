"""What the operator has to say to users (as Synapse's server notices API has it)."""

from __future__ import annotations

from lmserver.admin_api import parameters as p
from lmserver.admin_api.parameters import SYNAPSE
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.notices import Notices, NotSent
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, bad_param, not_found


class NoticeEndpoints:
    """Notices come in a room of the user's own; only their text is kept."""

    def __init__(self, our_name: str, notices: Notices) -> None:
        self._our_name = our_name
        self._notices = notices

    @endpoint("POST", SYNAPSE + "/v1/send_server_notice", auth=Auth.ADMIN)
    async def send(self, request: Request) -> JsonObject:
        """Tell a user of this server something: `content.body`. Other kinds of events are not sent."""
        body = await request.json()
        user_id, content = p.needed(body, "user_id", str), p.needed(body, "content", dict)
        if not ids.is_user_id(user_id) or ids.server_of(user_id) != self._our_name:
            raise bad_param("user_id is no user of this server")
        if body.get("type", "m.room.message") != "m.room.message" or "state_key" in body:
            raise bad_param("Notices are messages")
        text = content.get("body")
        if not isinstance(text, str) or not text:
            raise bad_json("content.body is text")
        try:
            return {"event_id": await self._notices.send(user_id, text)}
        except NotSent as error:
            raise not_found(str(error)) from None
        except HubSilent:
            raise ApiError(504, "M_UNKNOWN", "The room's hub has not answered yet") from None
