"""Account data, tags and filters (CS API §Client Config, §Room Tagging, §Filtering)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmserver.accounts.client_data import ClientData, TooManyEntries
from lmserver.protocol import ids
from lmserver.rooms.sync.filters import BadFilter, parse_sync_filter
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, bad_param, forbidden, not_found

USER = "/_matrix/client/v3/user/{user_id}"
ROOM = USER + "/rooms/{room_id}"
TAGS = "m.tag"
MAX_TAGS = 100
SERVER_MANAGED = ("m.push_rules", "m.fully_read")
MAX_CONTENT = 256 * 1024


class AccountDataEndpoints:
    """JSON the user's clients share among themselves."""

    def __init__(self, data: ClientData) -> None:
        self._data = data

    @endpoint("GET", USER + "/account_data/{type}", auth=Auth.USER)
    async def get(self, request: Request) -> dict[str, Any]:
        """Global account data."""
        return await self._get(request, "")

    @endpoint("PUT", USER + "/account_data/{type}", auth=Auth.USER, max_body=MAX_CONTENT, suspended=True)
    async def put(self, request: Request) -> dict[str, Any]:
        """Set global account data."""
        return await self._put(request, "")

    @endpoint("GET", ROOM + "/account_data/{type}", auth=Auth.USER)
    async def get_room(self, request: Request) -> dict[str, Any]:
        """Account data of a room."""
        return await self._get(request, _room(request))

    @endpoint("PUT", ROOM + "/account_data/{type}", auth=Auth.USER, max_body=MAX_CONTENT)
    async def put_room(self, request: Request) -> dict[str, Any]:
        """Set account data of a room."""
        return await self._put(request, _room(request))

    async def _get(self, request: Request, room_id: str) -> dict[str, Any]:
        content = await self._data.get(_own(request), room_id, _type(request))
        if content is None:
            raise not_found("Account data not found")
        return content

    async def _put(self, request: Request, room_id: str) -> dict[str, Any]:
        type_ = _type(request)
        user_id = _own(request)
        if type_ in SERVER_MANAGED:
            raise ApiError(405, "M_BAD_JSON", f"{type_} is not set this way")
        await self._store(user_id, room_id, type_, await request.json())
        return {}

    async def _store(self, user_id: str, room_id: str, type_: str, content: dict[str, Any]) -> None:
        try:
            await self._data.put(user_id, room_id, type_, content)
        except TooManyEntries:
            raise ApiError(400, "M_LIMIT_EXCEEDED", "Too much account data") from None

    # -- tags -----------------------------------------------------------------------------------

    @endpoint("GET", ROOM + "/tags", auth=Auth.USER)
    async def tags(self, request: Request) -> dict[str, Any]:
        """Tags of a room."""
        return {"tags": _tags_in(await self._data.get(_own(request), _room(request), TAGS))}

    @endpoint("PUT", ROOM + "/tags/{tag}", auth=Auth.USER)
    async def put_tag(self, request: Request) -> dict[str, Any]:
        """Set a tag."""
        user_id, room_id = _own(request), _room(request)
        tag, content = _text(request.params["tag"], "tag"), await request.json_or_empty()
        order = content.get("order", 0)
        if isinstance(order, bool) or not isinstance(order, int | float):
            raise bad_json("order is a number")

        def add(stored: dict[str, Any] | None) -> dict[str, Any]:
            tags = {**_tags_in(stored), tag: content}
            if len(tags) > MAX_TAGS:
                raise ApiError(400, "M_LIMIT_EXCEEDED", "Too many tags")
            return {"tags": tags}

        await self._change_tags(user_id, room_id, add)
        return {}

    @endpoint("DELETE", ROOM + "/tags/{tag}", auth=Auth.USER)
    async def delete_tag(self, request: Request) -> dict[str, Any]:
        """Remove a tag."""
        user_id, room_id = _own(request), _room(request)
        tag = request.params["tag"]

        def remove(stored: dict[str, Any] | None) -> dict[str, Any] | None:
            tags = _tags_in(stored)
            return {"tags": {k: v for k, v in tags.items() if k != tag}} if tag in tags else None

        await self._change_tags(user_id, room_id, remove)
        return {}

    async def _change_tags(
        self, user_id: str, room_id: str, changed: Callable[[dict[str, Any] | None], dict[str, Any] | None]
    ) -> None:
        """Two clients that tag a room at once both get their way."""
        try:
            await self._data.change(user_id, room_id, TAGS, changed)
        except TooManyEntries:
            raise ApiError(400, "M_LIMIT_EXCEEDED", "Too much account data") from None

    # -- filters --------------------------------------------------------------------------------

    @endpoint("POST", USER + "/filter", auth=Auth.USER, max_body=64 * 1024, suspended=True)
    async def put_filter(self, request: Request) -> dict[str, Any]:
        """Store a filter for /sync."""
        user_id = _own(request)
        content = await request.json()
        try:
            parse_sync_filter(content)
            return {"filter_id": await self._data.put_filter(user_id, content)}
        except BadFilter as error:
            raise bad_json(str(error)) from None
        except TooManyEntries:
            raise ApiError(400, "M_LIMIT_EXCEEDED", "Too many filters") from None

    @endpoint("GET", USER + "/filter/{filter_id}", auth=Auth.USER)
    async def get_filter(self, request: Request) -> dict[str, Any]:
        """A filter stored before."""
        content = await self._data.get_filter(_own(request), _text(request.params["filter_id"], "filter ID"))
        if content is None:
            raise not_found("No such filter")
        return content


def _tags_in(stored: dict[str, Any] | None) -> dict[str, Any]:
    tags = (stored or {}).get("tags")
    return tags if isinstance(tags, dict) else {}


def _own(request: Request) -> str:
    """The user in the path, who has to be the one asking."""
    if request.params["user_id"] != request.requester.user_id:
        raise forbidden("This is another user's")
    return request.requester.user_id


def _room(request: Request) -> str:
    room_id = request.params["room_id"]
    if not ids.is_room_id(room_id):
        raise bad_param("Not a room ID")
    return room_id


def _type(request: Request) -> str:
    return _text(request.params["type"], "type")


def _text(value: str, name: str) -> str:
    if not value or len(value) > 255 or "\0" in value:
        raise bad_param(f"The {name} has 1 to 255 characters")
    return value
