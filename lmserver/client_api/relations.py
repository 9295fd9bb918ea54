"""Events that relate to an event, and threads of a room (CS API §Relationships API, §Threads)."""

from __future__ import annotations

from typing import Final

from lmserver.client_api import room_requests as rooms
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms import relations
from lmserver.rooms.access import Access
from lmserver.rooms.reading import Reading
from lmserver.rooms.sync.tokens import RoomToken, SyncToken
from lmserver.rooms.visible_ranges import FOREVER
from lmserver.storage import room_reads
from lmserver.storage.database import Executor
from lmserver.storage.relations import Wanted
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_param

ROOM = "/_matrix/client/v1/rooms/{room_id}"
RELATIONS = ROOM + "/relations/{event_id}"
DEFAULT_LIMIT: Final = 5
MAX_LIMIT: Final = 100


class RelationEndpoints:
    """What was said about what, as far as the requester may know."""

    def __init__(self, db: Executor, reading: Reading) -> None:
        self._db = db
        self._reading = reading

    @endpoint(
        "GET",
        RELATIONS,
        RELATIONS + "/{rel_type}",
        RELATIONS + "/{rel_type}/{event_type}",
        auth=Auth.USER,
    )
    async def relations(self, request: Request) -> JsonObject:
        """A page of events that relate to one, of a kind and type if named; newest first unless `dir`
        is f. `recurse` follows relations of relations, three in all."""
        newest_first = _direction(request)
        recurse = _flag(request, "recurse")
        limit = rooms.number(request, "limit", DEFAULT_LIMIT, least=1, most=MAX_LIMIT)
        begin, stop = rooms.token(request, "from"), rooms.token(request, "to")
        access = await rooms.readable(self._reading, request)
        names = [
            request.params[name] for name in ("event_id", "rel_type", "event_type") if name in request.params
        ]
        parent = None
        if not any("\0" in name for name in names):
            parent = await self._reading.event(access, request.params["event_id"])
        if parent is None:
            raise ApiError(404, "M_NOT_FOUND", "Event not found")
        first = None if begin is None else await self._position(access, begin)
        last = None if stop is None else await self._position(access, stop)
        after, upto = (last, first) if newest_first else (first, last)
        page = await relations.related_to(
            self._db,
            access,
            Wanted(
                access.room_id,
                parent.event_id,
                request.params.get("rel_type"),
                request.params.get("event_type"),
                -FOREVER if after is None else after,
                FOREVER if upto is None else upto,
                limit,
                newest_first,
            ),
            recurse=recurse,
        )
        answer: JsonObject = {"chunk": await self._reading.render(access, rooms.reader(request), page.events)}
        if page.next_from is not None:
            answer["next_batch"] = str(RoomToken(page.next_from))
        if begin is not None:
            answer["prev_batch"] = str(begin)
        if recurse:
            answer["recursion_depth"] = relations.MAX_DEPTH
        return answer

    async def _position(self, access: Access, token: RoomToken | SyncToken) -> int:
        if isinstance(token, RoomToken):
            return token.position
        found = await room_reads.position_before(self._db, access.room_id, token.stream)
        return access.room.min_position - 1 if found is None else found

    @endpoint("GET", ROOM + "/threads", auth=Auth.USER)
    async def threads(self, request: Request) -> JsonObject:
        """Roots of the room's threads, the one replied to last first."""
        include = request.query.get("include", "all")
        if include not in ("all", "participated"):
            raise bad_param("include is all or participated")
        limit = rooms.number(request, "limit", DEFAULT_LIMIT, least=1, most=MAX_LIMIT)
        begin = rooms.token(request, "from")
        if isinstance(begin, SyncToken):
            raise bad_param("from is not a token of threads")
        access = await rooms.readable(self._reading, request)
        page = await relations.threads_of_room(
            self._db,
            access,
            rooms.user(request),
            FOREVER if begin is None else begin.position,
            limit,
            participated=include == "participated",
        )
        answer: JsonObject = {"chunk": await self._reading.render(access, rooms.reader(request), page.events)}
        if page.next_from is not None:
            answer["next_batch"] = str(RoomToken(page.next_from))
        return answer


def _direction(request: Request) -> bool:
    direction = request.query.get("dir", "b")
    if direction not in ("b", "f"):
        raise bad_param("dir is b or f")
    return bool(direction == "b")


def _flag(request: Request, name: str) -> bool:
    value = request.query.get(name, "false")
    if value not in ("true", "false"):
        raise bad_param(f"{name} is true or false")
    return bool(value == "true")
