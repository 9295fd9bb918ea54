"""Searching messages (CS API §Server Side Search)."""

from __future__ import annotations

from lmserver.client_api import room_requests as rooms
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.search import BadSearch, Search, parse_query, parse_token
from lmserver.rooms.sync.filters import BadFilter
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_json, bad_param


class SearchEndpoints:
    """One endpoint."""

    def __init__(self, search: Search) -> None:
        self._search = search

    @endpoint("POST", "/_matrix/client/v3/search", auth=Auth.USER, rate="search", at_once=2, suspended=True)
    async def search(self, request: Request) -> JsonObject:
        """Messages, names and topics with these words in what the user may see."""
        categories = (await request.json()).get("search_categories")
        if not isinstance(categories, dict):
            raise bad_json("search_categories is not an object")
        if "room_events" not in categories:
            return {"search_categories": {}}
        try:
            query = parse_query(categories["room_events"])
        except (BadSearch, BadFilter) as error:
            raise bad_json(str(error)) from None
        token = request.query.get("next_batch")
        try:
            start = parse_token(token, query) if token else None
        except BadSearch as error:
            raise bad_param(str(error)) from None
        found = await self._search.search(rooms.reader(request), query, start)
        return {"search_categories": {"room_events": found}}
