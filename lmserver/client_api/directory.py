"""Names of rooms, and finding people (CS API §Room aliases, §User Directory)."""

from __future__ import annotations

from lmserver.client_api import room_requests as rooms
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.directory import AliasReserved, AliasTaken, Directory, NotAllowed
from lmserver.rooms.reading import Reading
from lmserver.storage import people
from lmserver.storage.database import Executor
from lmserver.storage.people import Person
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError

CLIENT = "/_matrix/client/v3"
MAX_PAGE = 100
MAX_SEARCH = 255


class DirectoryEndpoints:
    """Aliases and the user directory; `all_local` lets everybody find every user of this server."""

    def __init__(self, db: Executor, directory: Directory, reading: Reading, *, all_local: bool) -> None:
        self._db = db
        self._directory = directory
        self._reading = reading
        self._all_local = all_local

    # -- aliases --------------------------------------------------------------------------------

    @endpoint("GET", CLIENT + "/directory/room/{alias}", auth=Auth.NONE)
    async def get_alias(self, request: Request) -> JsonObject:
        """The room an alias stands for, here or on its server."""
        found = await self._directory.resolve(_alias(request))
        if found is None:
            raise ApiError(404, "M_NOT_FOUND", "Room alias not found")
        return {"room_id": found[0], "servers": found[1]}

    @endpoint("PUT", CLIENT + "/directory/room/{alias}", auth=Auth.USER)
    async def put_alias(self, request: Request) -> JsonObject:
        """Give a room an alias of this server."""
        alias = _alias(request)
        room_id = rooms.identifier((await request.json()).get("room_id"), ids.check_room_id, "room_id")
        try:
            await self._directory.add(alias, room_id, rooms.user(request))
        except AliasTaken:
            raise ApiError(409, "M_UNKNOWN", "Room alias already exists") from None
        except AliasReserved as error:
            raise ApiError(400, "M_EXCLUSIVE", str(error)) from None
        except NotAllowed as error:
            raise ApiError(403, "M_FORBIDDEN", str(error)) from None
        return {}

    @endpoint("DELETE", CLIENT + "/directory/room/{alias}", auth=Auth.USER)
    async def delete_alias(self, request: Request) -> JsonObject:
        """Remove an alias: its creator may, and who may change the room's."""
        requester = request.requester
        try:
            removed = await self._directory.remove(
                _alias(request), requester.user_id, admin=requester.is_admin
            )
        except NotAllowed as error:
            raise ApiError(403, "M_FORBIDDEN", str(error)) from None
        if not removed:
            raise ApiError(404, "M_NOT_FOUND", "Room alias not found")
        return {}

    @endpoint("GET", CLIENT + "/rooms/{room_id}/aliases", auth=Auth.USER)
    async def room_aliases(self, request: Request) -> JsonObject:
        """A room's local aliases, for its members and, while it is world-readable, for everybody."""
        access = await rooms.readable(self._reading, request)
        if not access.follows:
            raise rooms.not_in_room()
        return {"aliases": await self._directory.of_room(access.room_id)}

    # -- people ---------------------------------------------------------------------------------

    @endpoint("POST", CLIENT + "/user_directory/search", auth=Auth.USER, at_once=2, suspended=True)
    async def search_users(self, request: Request) -> JsonObject:
        """Users the requester shares a room with or who are in a public one, by words of ID and name."""
        body = await request.json()
        term, limit = body.get("search_term"), body.get("limit", 10)
        if not isinstance(term, str) or type(limit) is not int or len(term) > MAX_SEARCH:
            raise ApiError(400, "M_BAD_JSON", "search_term or limit has the wrong type")
        limit = max(1, min(limit, MAX_PAGE))
        found = await self._people(rooms.user(request), term.strip(), limit + 1)
        return {"results": [_entry(person) for person in found[:limit]], "limited": len(found) > limit}

    async def _people(self, user_id: str, term: str, limit: int) -> list[Person]:
        """A whole user ID is searched for by its localpart: whoever knows it needs no directory."""
        name = term[1:].partition(":")[0] if term.startswith("@") else term
        found = await people.search(self._db, user_id, name, limit)
        if self._all_local and term:
            found += await people.search_accounts(self._db, user_id, term, limit)
        return list({person.user_id: person for person in found}.values())


def _entry(person: Person) -> JsonObject:
    fields = {"display_name": person.display_name, "avatar_url": person.avatar_url}
    return {"user_id": person.user_id} | {k: v for k, v in fields.items() if v is not None}


def _alias(request: Request) -> str:
    return rooms.identifier(request.params["alias"], ids.check_room_alias, "room alias")
