"""The list of public rooms, here and of other servers (CS API §Listing rooms)."""

from __future__ import annotations

from typing import Any

from lmserver.client_api import room_requests as rooms
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.directory import Directory, NotAllowed
from lmserver.rooms.public_list import MAX_PAGE, BadQuery, ListQuery, PublicList, parse_query
from lmserver.rooms.remote_list import NoList, RemoteLists
from lmserver.storage import room_log
from lmserver.storage.database import Executor
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, bad_param, missing_token, not_found

CLIENT = "/_matrix/client/v3"


class PublicRoomEndpoints:
    """Showing, searching and changing the list."""

    def __init__(
        self, db: Executor, directory: Directory, listing: PublicList, lists: RemoteLists, our_name: str
    ) -> None:
        self._db = db
        self._directory = directory
        self._listing = listing
        self._lists = lists
        self._our_name = our_name

    @endpoint("GET", CLIENT + "/directory/list/room/{room_id}", auth=Auth.NONE)
    async def get_listing(self, request: Request) -> JsonObject:
        """Whether a room is in the public list."""
        room_id = await self._known(request)
        return {"visibility": "public" if await self._directory.is_published(room_id) else "private"}

    @endpoint("PUT", CLIENT + "/directory/list/room/{room_id}", auth=Auth.USER)
    async def put_listing(self, request: Request) -> JsonObject:
        """Show a room in the public list, or take it off."""
        visibility = (await request.json_or_empty()).get("visibility", "public")
        if visibility not in ("public", "private"):
            raise bad_param("visibility is public or private")
        room_id, requester = await self._known(request), request.requester
        try:
            await self._directory.set_published(
                room_id, visibility == "public", requester.user_id, admin=requester.is_admin
            )
        except NotAllowed as error:
            raise ApiError(403, "M_FORBIDDEN", str(error)) from None
        return {}

    async def _known(self, request: Request) -> str:
        room_id = rooms.identifier(request.params["room_id"], ids.check_room_id, "room_id")
        if await room_log.room(self._db, room_id) is None:
            raise not_found("Room not found")
        return room_id

    @endpoint("GET", CLIENT + "/publicRooms", auth=Auth.OPTIONAL_USER)
    async def public_rooms(self, request: Request) -> JsonObject:
        """Rooms in the public list, of another server for who is logged in."""
        limit = rooms.number(request, "limit", 100, least=1, most=MAX_PAGE)
        return await self._page(request, limit, request.query.get("since"), None)

    @endpoint("POST", CLIENT + "/publicRooms", auth=Auth.USER, suspended=True)
    async def search_public_rooms(self, request: Request) -> JsonObject:
        """The same, for a search term or types of rooms."""
        body = await request.json_or_empty()
        network = body.get("third_party_instance_id")
        if network and not body.get("include_all_networks"):
            return {"chunk": [], "total_room_count_estimate": 0}  # there are no bridges
        return await self._page(request, body.get("limit"), body.get("since"), body.get("filter"))

    async def _page(self, request: Request, limit: object, since: object, wanted: object) -> JsonObject:
        server = request.query.get("server") or self._our_name
        if not ids.is_server_name(server):
            raise bad_param("server is not a server name")
        if server == self._our_name:
            return await self._listing.page(_query(request, limit, since, wanted))
        if not request.requester.user_id:
            raise missing_token()
        if not isinstance(since, str | None) or not isinstance(wanted, dict | None):
            raise bad_param("since or filter has the wrong type")
        query = _query(request, limit, None, wanted)
        try:
            return await self._lists.page(server, query.limit, since or None, _filter(wanted))
        except NoList as failure:
            raise ApiError(502, "M_UNKNOWN", str(failure)) from None


def _query(request: Request, limit: object, since: object, wanted: object) -> ListQuery:
    try:
        return parse_query(limit, since or None, wanted)
    except BadQuery as error:
        wrong = bad_json if request.method == "POST" else bad_param
        raise wrong(str(error)) from None


def _filter(wanted: dict[str, Any] | None) -> dict[str, Any] | None:
    """Nothing but what is specified goes to another server."""
    kept = {k: v for k, v in (wanted or {}).items() if k in ("generic_search_term", "room_types") and v}
    return kept or None
