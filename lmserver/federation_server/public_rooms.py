"""Our list of public rooms for other servers (SS API §Public Room Directory)."""

from __future__ import annotations

from typing import Any

from lmserver.federation_server.paths import STABLE
from lmserver.rooms.public_list import BadQuery, PublicList, parse_query
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_param, forbidden

_RATE = "federation_devices"


class PublicRoomEndpoints:
    """Both forms of the question; `shown` is what the operator says."""

    def __init__(self, listing: PublicList, *, shown: bool) -> None:
        self._listing = listing
        self._shown = shown

    @endpoint("GET", STABLE + "/v1/publicRooms", auth=Auth.SERVER, rate=_RATE)
    async def public_rooms(self, request: Request) -> dict[str, Any]:
        """SS API §GET publicRooms."""
        limit = request.query.get("limit")
        if limit is not None and not (limit.isascii() and limit.isdigit() and len(limit) < 10):
            raise bad_param("limit is not a number")
        return await self._page(None if limit is None else int(limit), request.query.get("since"), None)

    @endpoint("POST", STABLE + "/v1/publicRooms", auth=Auth.SERVER, rate=_RATE)
    async def search(self, request: Request) -> dict[str, Any]:
        """SS API §POST publicRooms."""
        body = await request.json()
        return await self._page(body.get("limit"), body.get("since"), body.get("filter"))

    async def _page(self, limit: object, since: object, wanted: object) -> dict[str, Any]:
        if not self._shown:
            raise forbidden("The list is not shown to other servers")
        try:
            query = parse_query(limit, since, wanted)
        except BadQuery as error:
            raise bad_param(str(error)) from None
        return await self._listing.page(query, for_servers=True)
