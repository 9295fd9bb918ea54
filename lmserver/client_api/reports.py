"""Reporting rooms, events and users to whoever runs this server (CS API §Reporting Content)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from lmserver.client_api import room_requests as rooms
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.reading import Reading
from lmserver.storage import reports, room_log
from lmserver.storage.database import Executor
from lmserver.storage.reports import Report
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_json, bad_param, not_found

CLIENT = "/_matrix/client/v3"
_RATE = "report"


class ReportEndpoints:
    """Takes reports; they are read by operators."""

    def __init__(
        self,
        db: Executor,
        reading: Reading,
        our_name: str,
        exists: Callable[[str], Awaitable[bool]],
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._reading = reading
        self._our_name = our_name
        self._exists = exists
        self._clock = clock

    @endpoint("POST", CLIENT + "/rooms/{room_id}/report/{event_id}", auth=Auth.USER, rate=_RATE)
    async def report_event(self, request: Request) -> JsonObject:
        """Report an event of a room one is in; 404 for one that one does not see."""
        body = await request.json_or_empty()
        room_id = request.params["room_id"]
        access = await self._reading.access(rooms.user(request), room_id) if ids.is_room_id(room_id) else None
        if access is None or not access.joined:
            raise not_found("No such event in a room you are in")
        event_id = request.params["event_id"]
        # Whoever reports somebody has often ignored them first.
        event = (
            await self._reading.event(replace(access, ignored=frozenset()), event_id)
            if ids.is_event_id(event_id)
            else None
        )
        if event is None:
            raise not_found("No such event in a room you are in")
        return await self._file(request, body, "event", room_id, event.event_id, event.sender)

    @endpoint("POST", CLIENT + "/rooms/{room_id}/report", auth=Auth.USER, rate=_RATE)
    async def report_room(self, request: Request) -> JsonObject:
        """Report a room known here, whether one is in it or not."""
        body = await request.json_or_empty()
        room_id = request.params["room_id"]
        if not ids.is_room_id(room_id) or await room_log.room(self._db, room_id) is None:
            raise not_found("Room not found")
        return await self._file(request, body, "room", room_id, None, None)

    @endpoint("POST", CLIENT + "/users/{user_id}/report", auth=Auth.USER, rate=_RATE)
    async def report_user(self, request: Request) -> JsonObject:
        """Report a user, of this server or another."""
        body = await request.json_or_empty()
        user_id = rooms.identifier(request.params["user_id"], ids.check_user_id, "user_id")
        if ids.server_of(user_id) == self._our_name and not await self._exists(user_id):
            raise not_found("User not found")
        return await self._file(request, body, "user", None, None, user_id)

    async def _file(
        self,
        request: Request,
        body: Mapping[str, Any],
        kind: str,
        room_id: str | None,
        event_id: str | None,
        reported: str | None,
    ) -> JsonObject:
        reason = rooms.optional_text(body, "reason") or ""
        if "\0" in reason:
            raise bad_param("reason is not acceptable text")
        score = body.get("score")
        if score is not None and (type(score) is not int or not -100 <= score <= 0):
            raise bad_json("score is a whole number from -100 to 0")
        await reports.file(
            self._db,
            Report(rooms.user(request), kind, room_id, event_id, reported, reason, score, self._clock()),
        )
        return {}
