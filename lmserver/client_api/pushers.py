"""Pushers over HTTP (CS API §Push Notifications)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lmserver.federation_client.push_gateway import BadGateway
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.push.pushers import Pushers, TooManyPushers
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, bad_param, missing_param

PUSHERS = "/_matrix/client/v3/pushers"
MAX_BODY: Final = 16 * 1024
# Member, most characters, whether it has to be there.
_TEXTS: Final = (
    ("app_id", 64, True),
    ("pushkey", 512, True),
    ("app_display_name", 255, True),
    ("device_display_name", 255, True),
    ("lang", 64, True),
    ("profile_tag", 32, False),
)


class PusherEndpoints:
    """One's own pushers; `check` refuses a gateway's URL with BadGateway."""

    def __init__(self, pushers: Pushers, check: Callable[[str], None]) -> None:
        self._pushers = pushers
        self._check = check

    @endpoint("GET", PUSHERS, auth=Auth.USER)
    async def all(self, request: Request) -> JsonObject:
        """Every pusher of the user."""
        return {"pushers": await self._pushers.all(request.requester.user_id)}

    @endpoint("POST", PUSHERS + "/set", auth=Auth.USER, max_body=MAX_BODY)
    async def set(self, request: Request) -> JsonObject:
        """Add, replace or (`kind` null) delete a pusher."""
        body = await request.json()
        user_id = request.requester.user_id
        if "kind" not in body:
            raise missing_param("kind is missing")
        if body["kind"] is None:
            await self._pushers.remove(user_id, _text(body, "app_id", 64), _text(body, "pushkey", 512))
            return {}
        if body["kind"] != "http":
            raise bad_param("kind is http or null")
        append = body.get("append", False)
        if not isinstance(append, bool):
            raise bad_json("append is a boolean")
        data = _data(body)
        url = self._url(data)
        texts = {name: _text(body, name, most) for name, most, needed in _TEXTS if needed or name in body}
        shown = {**texts, "kind": "http", "data": data}
        try:
            await self._pushers.put(user_id, request.requester.device_id or "", shown, url, append=append)
        except TooManyPushers:
            raise ApiError(400, "M_LIMIT_EXCEEDED", "Too many pushers") from None
        return {}

    def _url(self, data: JsonObject) -> str:
        url = data.get("url")
        if url is None:
            raise missing_param("data.url is missing")
        try:
            self._check(url if isinstance(url, str) else "")
        except BadGateway as error:
            raise bad_param(f"data: {error}") from None
        return str(url)


def _text(body: JsonObject, name: str, most: int) -> str:
    value = body.get(name)
    if value is None:
        raise missing_param(f"{name} is missing")
    if not isinstance(value, str) or len(value) > most or "\0" in value:
        raise bad_param(f"{name} is text of at most {most} characters")
    return value


def _data(body: JsonObject) -> dict[str, Any]:
    data = body.get("data")
    if data is None:
        raise missing_param("data is missing")
    if not isinstance(data, dict) or data.get("format", "event_id_only") != "event_id_only":
        raise bad_param("data is an object whose format is event_id_only or absent")
    return data
