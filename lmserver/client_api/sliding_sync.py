"""Simplified sliding sync over HTTP (MSC4186): the query, the body, and the names of the answer.

Under the unstable prefix the answer has the members clients know; under the proposal's own path those
of its last text. Requests are understood in both forms under both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lmserver.client_api import room_requests as rooms
from lmserver.client_api.long_polls import LongPolls
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.presence import STATES, Presence
from lmserver.rooms.sliding.connection import UnknownPos
from lmserver.rooms.sliding.request import BadRequest, parse_request
from lmserver.rooms.sliding.service import SlidingPoll, SlidingSync
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, bad_param

MAX_TIMEOUT_MS: Final = 60_000
MAX_BODY: Final = 256 * 1024
_PROPOSED_NAMES: Final = {
    "timeline": "timeline_events",
    "invite_state": "stripped_state",
    "unstable_expanded_timeline": "expanded_timeline",
}


class SlidingSyncEndpoints:
    """The long poll of clients that want windows of rooms."""

    def __init__(self, service: SlidingSync, presence: Presence, long_polls: LongPolls) -> None:
        self._service = service
        self._presence = presence
        self._long_polls = long_polls

    @endpoint(
        "POST",
        "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
        auth=Auth.USER,
        deadline=90,
        max_body=MAX_BODY,
        suspended=True,
    )
    async def sync_unstable(self, request: Request) -> JsonObject:
        """What changed in the rooms asked for since `pos`; waits up to `timeout` ms when nothing did."""
        return await self._answer(request)

    @endpoint(
        "POST", "/_matrix/client/v4/sync", auth=Auth.USER, deadline=90, max_body=MAX_BODY, suspended=True
    )
    async def sync(self, request: Request) -> JsonObject:
        """The same with the members of the proposal's last text."""
        answer = await self._answer(request)
        for room in answer["rooms"].values():
            for old, new in _PROPOSED_NAMES.items():
                if old in room:
                    room[new] = room.pop(old)
        return answer

    async def _answer(self, request: Request) -> JsonObject:
        body = await request.json_or_empty()
        user = request.requester
        try:
            wanted = parse_request(body, user.user_id)
            poll = SlidingPoll(
                user.user_id, user.device_id, wanted, _pos(request, body), _timeout(request, body)
            )
            await self._note_presence(request, body)
            async with self._long_polls.while_logged_in(request):
                answer = await self._service.sync(poll)
        except BadRequest as error:
            raise ApiError(400, error.errcode, str(error)) from None
        except UnknownPos:
            raise ApiError(400, "M_UNKNOWN_POS", "The connection is not known any more") from None
        if isinstance(body.get("txn_id"), str):
            answer["txn_id"] = body["txn_id"]
        return answer

    async def _note_presence(self, request: Request, body: Mapping[str, Any]) -> None:
        state = request.query.get("set_presence") or body.get("set_presence") or "online"
        if state not in STATES:
            raise bad_param("set_presence is none of online, unavailable, offline")
        await self._presence.syncing(request.requester.user_id, state)


def _pos(request: Request, body: Mapping[str, Any]) -> str | None:
    pos = request.query.get("pos") or body.get("pos")
    if pos is not None and not isinstance(pos, str):
        raise bad_json("pos is not a string")
    return pos or None


def _timeout(request: Request, body: Mapping[str, Any]) -> float:
    """Seconds."""
    value = body.get("timeout")
    if request.query.get("timeout") is not None or value is None:
        return rooms.number(request, "timeout", 0, most=MAX_TIMEOUT_MS) / 1000
    if type(value) is not int:
        raise bad_json("timeout is not an integer")
    if value < 0:
        raise bad_param("timeout is negative")
    return min(value, MAX_TIMEOUT_MS) / 1000
