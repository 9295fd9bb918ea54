"""What one was notified about (CS API §Listing Notifications)."""

from __future__ import annotations

from typing import Final

from lmserver.client_api import room_requests as rooms
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.notifications import BadToken, Notifications, parse_token
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_param

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 100


class NotificationEndpoints:
    """The unread ones."""

    def __init__(self, notifications: Notifications) -> None:
        self._notifications = notifications

    @endpoint("GET", "/_matrix/client/v3/notifications", auth=Auth.USER, at_once=2)
    async def notifications(self, request: Request) -> JsonObject:
        """A page of unread notifications, newest first; `only=highlight` leaves the others out."""
        limit = rooms.number(request, "limit", DEFAULT_LIMIT, least=1, most=MAX_LIMIT)
        token = request.query.get("from")
        try:
            before = parse_token(token) if token else None
        except BadToken as error:
            raise bad_param(str(error)) from None
        return await self._notifications.page(
            rooms.reader(request), before, limit, only_highlights=request.query.get("only") == "highlight"
        )
