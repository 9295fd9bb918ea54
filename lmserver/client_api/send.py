"""Sending events and setting state (CS API §Sending events to a room, §Getting events for a room)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lmserver.client_api import room_requests as rooms
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.events import EventDraft
from lmserver.protocol.power_levels import PowerLevels
from lmserver.rooms.directory import Directory
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.reading import Reading
from lmserver.rooms.typing import Typing
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, user_suspended

ROOM = "/_matrix/client/v3/rooms/{room_id}"


class SendEndpoints:
    """Events into rooms, and the state out of them."""

    def __init__(
        self,
        engine: RoomEngine,
        reading: Reading,
        typing: Typing,
        directory: Directory,
        clock: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._reading = reading
        self._typing = typing
        self._directory = directory
        self._clock = clock

    @endpoint("PUT", ROOM + "/send/{event_type}/{txn_id}", auth=Auth.USER, rate="send")
    async def send(self, request: Request) -> JsonObject:
        """A message event; the same transaction ID of a device gives the same event."""
        draft = await self._draft(request, request.params["event_type"], None)
        txn = rooms.transaction(request)
        if "m.relates_to" in draft.content:
            rooms.check(draft)  # before anything of it is looked for
            if await self._reading.repeats_annotation(draft, txn):
                raise ApiError(400, "M_DUPLICATE_ANNOTATION", "You have reacted with this before")
        event_id = await rooms.send(self._engine, [draft], txn)
        self._typing.stop(draft.room_id, draft.sender)
        return {"event_id": event_id}

    @endpoint("PUT", ROOM + "/redact/{event_id}/{txn_id}", auth=Auth.USER, rate="send", suspended=True)
    async def redact(self, request: Request) -> JsonObject:
        """Redact an event (CS API §Redactions). Whether it takes effect is decided where it is
        applied: own events, or the room's redact level (protocol decision 8)."""
        target = rooms.identifier(request.params["event_id"], ids.check_event_id, "event_id")
        body = await request.json_or_empty()
        content: JsonObject = {"redacts": target}
        reason = rooms.optional_text(body, "reason")
        if reason is not None:
            content["reason"] = reason
        await self._check_redactable(request, target)
        draft = EventDraft(
            rooms.room_id(request),
            "m.room.redaction",
            rooms.user(request),
            content,
            rooms.sent_at(request, self._clock()),
        )
        txn = replace(rooms.transaction(request), redacts=target)
        return {"event_id": await rooms.send(self._engine, [draft], txn)}

    async def _check_redactable(self, request: Request, target: str) -> None:
        """Say no at once where nothing would come of it (attack A24)."""
        access = await rooms.joined(self._reading, request)
        # A moderator may have ignored whom they clean up after.
        event = await self._reading.event(replace(access, ignored=frozenset()), target)
        if event is None:
            raise ApiError(404, "M_NOT_FOUND", "No such event in this room")
        if event.type == "m.room.create":
            raise ApiError(403, "M_FORBIDDEN", "The room's create event cannot be redacted")
        view = await self._engine.view(access.room_id)
        if event.sender != rooms.user(request) and request.requester.suspended:
            raise user_suspended()
        if event.sender != rooms.user(request) and not (
            view and PowerLevels.from_view(view).allows(rooms.user(request), "redact")
        ):
            raise ApiError(403, "M_FORBIDDEN", "You may not redact events of others")

    @endpoint(
        "PUT",
        ROOM + "/state/{event_type}/{state_key}",
        ROOM + "/state/{event_type}/",
        ROOM + "/state/{event_type}",
        auth=Auth.USER,
        rate="send",
    )
    async def put_state(self, request: Request) -> JsonObject:
        """Set a state event; setting what is there already changes nothing."""
        draft = await self._draft(request, request.params["event_type"], request.params.get("state_key", ""))
        if draft.type == "m.room.create":
            raise ApiError(403, "M_FORBIDDEN", "A room has one create event")
        if draft.type == "m.room.canonical_alias":
            await self._check_names(draft)
        current = await self._unchanged(draft)
        if current is not None:
            return {"event_id": current}
        return {"event_id": await rooms.send(self._engine, [draft])}

    async def _check_names(self, draft: EventDraft) -> None:
        """400 for what is no alias, and for one of another room (CS API §PUT /rooms/{roomId}/state)."""
        alias, others = draft.content.get("alias"), draft.content.get("alt_aliases", [])
        named = [*([] if alias in (None, "") else [alias]), *(others if isinstance(others, list) else [None])]
        if not all(ids.is_room_alias(name) for name in named):
            raise ApiError(400, "M_INVALID_PARAM", "alias or alt_aliases is not valid")
        view = await self._engine.view(draft.room_id)
        if view is None or view.membership(draft.sender) != "join":
            raise rooms.not_in_room()
        if await self._directory.wrong_names(view, draft.content):
            raise ApiError(400, "M_BAD_ALIAS", "An alias does not lead to this room")

    async def _unchanged(self, draft: EventDraft) -> str | None:
        """Setting what is set already is not a new event, so a client may repeat itself."""
        view = await self._engine.view(draft.room_id)
        entry = None if view is None else view.get(draft.type, draft.state_key or "")
        if entry is None or entry.sender != draft.sender or entry.content != draft.content:
            return None
        return entry.event_id

    @endpoint(
        "GET",
        ROOM + "/state/{event_type}/{state_key}",
        ROOM + "/state/{event_type}/",
        ROOM + "/state/{event_type}",
        auth=Auth.USER,
    )
    async def get_state(self, request: Request) -> JsonObject:
        """One state event's content, or with `format=event` all of it."""
        access = await rooms.readable(self._reading, request)
        if access.state_position is None:
            raise rooms.not_in_room()
        event_type, state_key = request.params["event_type"], request.params.get("state_key", "")
        event = None
        if "\0" not in event_type + state_key:
            event = await self._reading.state_entry(access, event_type, state_key)
        if event is None:
            raise ApiError(404, "M_NOT_FOUND", "No such state event")
        if request.query.get("format") == "event":
            [whole] = await self._reading.render(access, rooms.reader(request), [event])
            return whole
        return event.content

    @endpoint("GET", ROOM + "/state", auth=Auth.USER, at_once=2)
    async def all_state(self, request: Request) -> list[JsonObject]:
        """The current state, or that of the moment the user left."""
        access = await rooms.readable(self._reading, request)
        if access.state_position is None:
            raise rooms.not_in_room()
        state = await self._reading.state(access)
        return await self._reading.render(access, rooms.reader(request), state)

    async def _draft(self, request: Request, event_type: str, state_key: str | None) -> EventDraft:
        content = await request.json()
        if event_type == "m.room.redaction" and not ids.is_event_id(content.get("redacts")):
            raise ApiError(400, "M_BAD_JSON", "redacts is not an event ID")
        return EventDraft(
            rooms.room_id(request),
            event_type,
            rooms.user(request),
            content,
            rooms.sent_at(request, self._clock()),
            state_key,
        )
