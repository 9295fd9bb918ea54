"""Names of rooms, and finding people (CS API §Room aliases, §User Directory)."""

from __future__ import annotations

from lmserver.client_api import room_requests as rooms
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.room_versions import room_version
from lmserver.rooms.client_format import shown
from lmserver.rooms.directory import AliasTaken, Directory, NotAllowed
from lmserver.rooms.reading import Reading
from lmserver.storage import room_reads
from lmserver.storage.database import Executor
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError

CLIENT = "/_matrix/client/v3"
MAX_PAGE = 100
MAX_PEOPLE = 2_000
MAX_SEARCH = 255


class DirectoryEndpoints:
    """Aliases and the user directory."""

    def __init__(self, db: Executor, directory: Directory, reading: Reading) -> None:
        self._db = db
        self._directory = directory
        self._reading = reading

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
        """A room's local aliases, for its members."""
        access = await rooms.readable(self._reading, request)
        if access.state_position is None:
            raise rooms.not_in_room()
        return {"aliases": await self._directory.of_room(access.room_id)}

    # -- people ---------------------------------------------------------------------------------

    @endpoint("POST", CLIENT + "/user_directory/search", auth=Auth.USER)
    async def search_users(self, request: Request) -> JsonObject:
        """Users the requester shares a room with, by ID or display name."""
        body = await request.json()
        term, limit = body.get("search_term"), body.get("limit", 10)
        if not isinstance(term, str) or type(limit) is not int or len(term) > MAX_SEARCH:
            raise ApiError(400, "M_BAD_JSON", "search_term or limit has the wrong type")
        limit = max(1, min(limit, MAX_PAGE))
        found = await self._people(rooms.user(request), term.casefold().lstrip("@"), limit + 1)
        return {"results": found[:limit], "limited": len(found) > limit}

    async def _people(self, user_id: str, term: str, limit: int) -> list[JsonObject]:
        found: list[JsonObject] = []
        for version_id, stored in await room_reads.acquaintances(self._db, user_id, MAX_PEOPLE):
            event = shown(stored, room_version(version_id))
            name, avatar = event.content.get("displayname"), event.content.get("avatar_url")
            person: JsonObject = {"user_id": event.state_key}
            person |= {"display_name": name} if isinstance(name, str) else {}
            person |= {"avatar_url": avatar} if isinstance(avatar, str) else {}
            if any(term in text.casefold() for text in (person["user_id"], person.get("display_name", ""))):
                found.append(person)
            if len(found) == limit:
                break
        return found


def _alias(request: Request) -> str:
    return rooms.identifier(request.params["alias"], ids.check_room_alias, "room alias")
