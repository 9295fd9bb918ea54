"""Reading rooms: messages, single events, their context, members (CS API §Getting events for a room)."""

from __future__ import annotations

from typing import Any

from lmserver.client_api import room_requests as rooms
from lmserver.protocol.canonical_json import JsonObject, parse
from lmserver.protocol.errors import ProtocolError
from lmserver.rooms.access import Access
from lmserver.rooms.backfill import Backfill
from lmserver.rooms.client_format import Shown
from lmserver.rooms.reading import Reading
from lmserver.rooms.sync.filters import BadFilter, EventFilter, parse_event_filter
from lmserver.rooms.sync.tokens import RoomToken, SyncToken
from lmserver.storage import room_reads
from lmserver.storage.database import Executor
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_param

ROOM = "/_matrix/client/v3/rooms/{room_id}"
MAX_EVENTS = 1_000
MAX_FILTER = 64 * 1024
_MEMBERSHIPS = ("join", "invite", "knock", "leave", "ban")


class HistoryEndpoints:
    """What happened in a room, as far as the requester may know."""

    def __init__(self, db: Executor, reading: Reading, backfill: Backfill) -> None:
        self._db = db
        self._reading = reading
        self._backfill = backfill

    @endpoint("GET", ROOM + "/messages", auth=Auth.USER)
    async def messages(self, request: Request) -> JsonObject:
        """A page of history; `end` is absent where there is no more."""
        direction = request.query.get("dir", "b")
        if direction not in ("b", "f"):
            raise bad_param("dir is b or f")
        limit = rooms.number(request, "limit", 10, least=1, most=MAX_EVENTS)
        wanted = event_filter(request.query.get("filter"))
        limit = limit if wanted.limit is None else max(1, min(limit, wanted.limit))
        begin, stop = rooms.token(request, "from"), rooms.token(request, "to")
        access = await rooms.readable(self._reading, request)
        default = access.room.head_position if direction == "b" else access.room.min_position - 1
        start = default if begin is None else await self._position(access, begin)
        until = None if stop is None else await self._position(access, stop)
        more = False
        if direction == "b" and until is None:
            access, more = await self._reach_back(request, access, start, limit)
        walk = self._reading.backwards if direction == "b" else self._reading.forwards
        page = await walk(access, start, limit, wanted.passes, until)
        answer: JsonObject = {
            "start": str(RoomToken(start)),
            "chunk": await self._reading.render(access, rooms.reader(request), page.events),
        }
        if page.end is not None:
            answer["end"] = str(RoomToken(page.end))
        elif more and (page.events or start >= access.room.min_position):
            answer["end"] = str(RoomToken(access.room.min_position - 1))
        if wanted.lazy_load_members and page.events:
            answer["state"] = await self._senders(request, access, page.events)
        return answer

    async def _reach_back(
        self, request: Request, access: Access, start: int, limit: int
    ) -> tuple[Access, bool]:
        """On a participant, members may read what was before their server came: access to what is
        there now, and whether there may be more."""
        if not access.joined or access.room.min_position == 0:
            return access, False
        reached = await self._backfill.reach(access.room_id, start, limit)
        if reached.stored:
            access = await rooms.readable(self._reading, request)
        return access, not reached.complete

    async def _position(self, access: Access, token: RoomToken | SyncToken) -> int:
        if isinstance(token, RoomToken):
            return token.position
        found = await room_reads.position_before(self._db, access.room_id, token.stream)
        return access.room.min_position - 1 if found is None else found

    async def _senders(self, request: Request, access: Access, events: list[Shown]) -> list[JsonObject]:
        """Lazy loading: who wrote these events, as they were at the newest of them."""
        newest = max(e.position or 0 for e in events)
        members = await self._reading.members_named(access, newest + 1, [e.sender for e in events])
        return await self._reading.render(access, rooms.reader(request), members)

    @endpoint("GET", ROOM + "/event/{event_id}", auth=Auth.USER)
    async def event(self, request: Request) -> JsonObject:
        """One event; what may not be seen is not there."""
        access, event = await self._event(request)
        [rendered] = await self._reading.render(access, rooms.reader(request), [event])
        return rendered

    async def _event(self, request: Request) -> tuple[Access, Shown]:
        access = await rooms.readable(self._reading, request)
        event_id = request.params["event_id"]
        event = None if "\0" in event_id else await self._reading.event(access, event_id)
        if event is None:
            raise ApiError(404, "M_NOT_FOUND", "Event not found")
        return access, event

    @endpoint("GET", ROOM + "/context/{event_id}", auth=Auth.USER, at_once=4)
    async def context(self, request: Request) -> JsonObject:
        """An event with what surrounds it, `limit` events on both sides together, and the state at the
        last event returned. The filter is for everything but the event itself."""
        limit = rooms.number(request, "limit", 10, most=MAX_EVENTS)
        wanted = event_filter(request.query.get("filter"))
        access, event = await self._event(request)
        if event.position is None:
            raise ApiError(404, "M_NOT_FOUND", "Event not found")
        reader = rooms.reader(request)
        before: list[Shown] = []
        after: list[Shown] = []
        start, end = event.position - 1, event.position
        if limit > 1:
            before = (await self._reading.backwards(access, start, limit // 2, wanted.passes)).events
            start = (before[-1].position or 0) - 1 if before else start
        if limit:
            after = (await self._reading.forwards(access, end, limit - limit // 2, wanted.passes)).events
            end = after[-1].position or end if after else end
        state = await self._state_around(access, end, [event, *before, *after], wanted)
        return {
            "event": (await self._reading.render(access, reader, [event]))[0],
            "events_before": await self._reading.render(access, reader, before),
            "events_after": await self._reading.render(access, reader, after),
            "start": str(RoomToken(start)),
            "end": str(RoomToken(end)),
            "state": await self._reading.render(access, reader, state),
        }

    async def _state_around(
        self, access: Access, last: int, events: list[Shown], wanted: EventFilter
    ) -> list[Shown]:
        state = [e for e in await self._reading.state(access, last + 1) if wanted.passes(e)]
        if not wanted.lazy_load_members:
            return state
        senders = {e.sender for e in events}
        return [e for e in state if e.type != "m.room.member" or e.state_key in senders]

    @endpoint("GET", ROOM + "/members", auth=Auth.USER, at_once=4)
    async def members(self, request: Request) -> JsonObject:
        """Member events, now or at a token; those who left see the moment they left."""
        only, without = request.query.get("membership"), request.query.get("not_membership")
        for value in (only, without):
            if value is not None and value not in _MEMBERSHIPS:
                raise bad_param("membership is not known")
        at = rooms.token(request, "at")
        access = await rooms.readable(self._reading, request)
        if access.state_position is None:
            raise rooms.not_in_room()
        position = None if at is None else await self._position(access, at) + 1
        members = [
            event
            for membership, event in await self._reading.members(access, position)
            if (only is None or membership == only) and membership != without
        ]
        return {"chunk": await self._reading.render(access, rooms.reader(request), members)}

    @endpoint("GET", ROOM + "/joined_members", auth=Auth.USER)
    async def joined_members(self, request: Request) -> JsonObject:
        """Who is in the room now; for its members only."""
        access = await rooms.joined(self._reading, request)
        members = await self._reading.members(access)
        return {"joined": {e.state_key: _profile(e.content) for m, e in members if m == "join"}}


def _profile(content: dict[str, Any]) -> JsonObject:
    names = {"display_name": content.get("displayname"), "avatar_url": content.get("avatar_url")}
    return {key: value for key, value in names.items() if isinstance(value, str)}


def event_filter(text: str | None) -> EventFilter:
    """The `filter` query parameter of the history endpoints; raises ApiError."""
    if not text:
        return EventFilter()
    if len(text) > MAX_FILTER:
        raise bad_param("filter is too large")
    try:
        return parse_event_filter(parse(text.encode()))
    except (ProtocolError, BadFilter, UnicodeEncodeError) as error:
        raise ApiError(400, "M_BAD_JSON", f"filter: {error}") from None
