"""Typing, receipts and read markers (CS API §Typing Notifications, §Receipts, §Fully read markers)."""

from __future__ import annotations

from lmserver.accounts.client_data import TooManyEntries
from lmserver.client_api import room_requests as rooms
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.access import Access
from lmserver.rooms.reading import Reading
from lmserver.rooms.receipts import (
    FULLY_READ,
    MAIN_THREAD,
    PRIVATE,
    PUBLIC,
    OtherThread,
    Receipts,
    UnknownEvent,
)
from lmserver.rooms.typing import MAX_SECONDS, Typing
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_param

ROOM = "/_matrix/client/v3/rooms/{room_id}"
DEFAULT_TYPING_MS = 30_000


class EphemeralEndpoints:
    """What is told to those in a room and not kept in its list; for joined users only (attack C8)."""

    def __init__(self, reading: Reading, typing: Typing, receipts: Receipts) -> None:
        self._reading = reading
        self._typing = typing
        self._receipts = receipts

    @endpoint("PUT", ROOM + "/typing/{user_id}", auth=Auth.USER)
    async def typing(self, request: Request) -> JsonObject:
        """Say that one is typing, or no longer."""
        if request.params["user_id"] != rooms.user(request):
            raise ApiError(403, "M_FORBIDDEN", "You may not type for others")
        body = await request.json()
        typing, timeout = body.get("typing"), body.get("timeout", DEFAULT_TYPING_MS)
        if not isinstance(typing, bool) or type(timeout) is not int:
            raise ApiError(400, "M_BAD_JSON", "typing is a boolean and timeout an integer")
        access = await rooms.joined(self._reading, request)
        if typing:
            self._typing.start(access.room_id, rooms.user(request), min(timeout / 1000, MAX_SECONDS))
        else:
            self._typing.stop(access.room_id, rooms.user(request))
        return {}

    @endpoint("POST", ROOM + "/receipt/{receipt_type}/{event_id}", auth=Auth.USER)
    async def receipt(self, request: Request) -> JsonObject:
        """Say how far one has read."""
        kind = request.params["receipt_type"]
        if kind not in (PUBLIC, PRIVATE, FULLY_READ):
            raise bad_param("receipt type is not known")
        thread = rooms.optional_text(await request.json_or_empty(), "thread_id")
        if thread not in (None, MAIN_THREAD) and not ids.is_event_id(thread):
            raise bad_param("thread_id is not valid")
        if thread is not None and kind == FULLY_READ:
            raise bad_param("a fully-read marker has no thread")
        access = await rooms.joined(self._reading, request)
        await self._record(request, access, kind, request.params["event_id"], thread)
        return {}

    @endpoint("POST", ROOM + "/read_markers", auth=Auth.USER)
    async def read_markers(self, request: Request) -> JsonObject:
        """Several markers at once; each may be absent."""
        body = await request.json_or_empty()
        access = await rooms.joined(self._reading, request)
        for kind in (FULLY_READ, PUBLIC, PRIVATE):
            event_id = body.get(kind)
            if event_id is not None:
                await self._record(request, access, kind, event_id, None)
        return {}

    async def _record(
        self, request: Request, access: Access, kind: str, event_id: object, thread: str | None
    ) -> None:
        checked = rooms.identifier(event_id, ids.check_event_id, "event_id")
        try:
            await self._receipts.record(rooms.user(request), access, kind, checked, thread)
        except UnknownEvent:
            raise ApiError(404, "M_NOT_FOUND", "No such event in this room") from None
        except OtherThread:
            raise bad_param("the event is not in this thread") from None
        except TooManyEntries:
            raise ApiError(400, "M_LIMIT_EXCEEDED", "Too much account data") from None
