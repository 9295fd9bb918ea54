"""What is in a space, and what a room is before one is in it (CS API §Spaces, §Room summary)."""

from __future__ import annotations

import re

from lmserver.client_api import room_requests as rooms
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.directory import Directory
from lmserver.rooms.spaces import NotVisible, Spaces, Walk
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_param, forbidden, not_found

MAX_PAGE = 50
MAX_VIA = 10
UNSTABLE = "/_matrix/client/unstable/im.nheko.summary"


class SpaceEndpoints:
    """Hierarchies and summaries."""

    def __init__(self, spaces: Spaces, directory: Directory) -> None:
        self._spaces = spaces
        self._directory = directory

    @endpoint("GET", "/_matrix/client/v1/rooms/{room_id}/hierarchy", auth=Auth.USER, at_once=2)
    async def hierarchy(self, request: Request) -> JsonObject:
        """Rooms in and under a space, depth first; 403 for a space one may not know of."""
        suggested = request.query.get("suggested_only", "false")
        if suggested not in ("true", "false"):
            raise bad_param("suggested_only is true or false")
        limit = rooms.number(request, "limit", MAX_PAGE, least=1, most=MAX_PAGE)
        depth = request.query.get("max_depth")
        most = None if depth is None else rooms.number(request, "max_depth", 0, most=1_000)
        settings = f"{'x' if most is None else most}_{suggested}"
        walk = Walk(_start(request.query.get("from"), settings), limit, most, suggested == "true")
        room_id = rooms.room_id(request)
        try:
            found, more = await self._spaces.hierarchy(rooms.user(request), room_id, walk)
        except NotVisible:
            raise forbidden("You may not see this room") from None
        answer: JsonObject = {"rooms": found}
        if more:
            answer["next_batch"] = f"{walk.start + limit}_{settings}"
        return answer

    @endpoint(
        "GET",
        "/_matrix/client/v1/room_summary/{room}",
        UNSTABLE + "/summary/{room}",
        UNSTABLE + "/rooms/{room}/summary",
        auth=Auth.OPTIONAL_USER,
        at_once=8,
    )
    async def summary(self, request: Request) -> JsonObject:
        """A room by its ID or alias; 404 for one that one may not know of."""
        named, via = request.params["room"], request.query.getall("via", [])[:MAX_VIA]
        if named.startswith("#"):
            rooms.identifier(named, ids.check_room_alias, "room alias")
            found = await self._directory.resolve(named)
            if found is None:
                raise not_found("Room not found")
            named, via = found[0], [*via, *found[1]]
        rooms.identifier(named, ids.check_room_id, "room")
        try:
            return await self._spaces.summary(request.requester.user_id or None, named, via)
        except NotVisible:
            raise not_found("Room not found") from None


def _start(token: str | None, settings: str) -> int:
    """A walk's pages go on with what it began with (CS API §GET hierarchy)."""
    if not token:
        return 0
    match = re.fullmatch(r"([0-9]{1,4})_(.*)", token)
    if match is None or match[2] != settings:
        raise bad_param("from is not a token of this walk")
    return int(match[1])
