"""Rooms: found, looked into, closed and deleted (as Synapse's rooms API has it, and what it has not)."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from lmserver.admin_api import parameters as p
from lmserver.admin_api.paging import page_of
from lmserver.admin_api.parameters import OWN, SYNAPSE
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.administration import NoPower, RoomAdministration, RoomDetails, UnknownRoom
from lmserver.rooms.outcomes import MembershipError, RoomBusy
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.rooms.purging import AlreadyPurging
from lmserver.storage.room_list import SIZE_ORDERS, TEXT_ORDERS, RoomQuery
from lmserver.storage.room_purges import FAILED, Purge
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_param, forbidden, limited, not_found

T = TypeVar("T")

ROOM = SYNAPSE + "/v1/rooms/{room_id}"
# Synapse's names for an order of ours, and its orders that are told apart by the name here.
_ORDERS: Final = {
    "alphabetical": "name", "size": "joined_members", "creator": "name", "encryption": "name",
    "federatable": "name", "join_rules": "name", "guest_access": "name", "history_visibility": "name",
    **{name: name for name in TEXT_ORDERS | SIZE_ORDERS},
}  # fmt: skip
WAIT_SECONDS: Final = 45.0


async def known(work: Awaitable[T]) -> T:
    """404 for a room that is not here."""
    try:
        return await work
    except UnknownRoom:
        raise not_found("Room not found") from None


class RoomEndpoints:
    """What an operator finds out of rooms."""

    def __init__(self, administration: RoomAdministration) -> None:
        self._administration = administration

    @endpoint("GET", SYNAPSE + "/v1/rooms", auth=Auth.ADMIN, at_once=1)
    async def rooms(self, request: Request) -> JsonObject:
        """Rooms in pages, by name, alias, ID or hub."""
        order = p.choice(request, "order_by", "name", frozenset(_ORDERS))
        query = RoomQuery(
            p.text(request, "search_term"),
            p.flag(request, "empty_rooms"),
        )
        part = page_of(request, _ORDERS[order])
        found, total = await self._administration.page(query, part)
        answer: JsonObject = {
            "rooms": [_listed(details) for details in found],
            "offset": part.start,
            "total_rooms": total,
        }
        if part.start + part.limit < total:
            answer["next_batch"] = part.start + part.limit
        if part.start:
            answer["prev_batch"] = max(0, part.start - part.limit)
        return answer

    @endpoint("GET", ROOM, auth=Auth.ADMIN)
    async def room(self, request: Request) -> JsonObject:
        """One room."""
        details = await known(self._administration.get(p.room_id(request)))
        return {
            **_listed(details),
            "avatar": details.text("m.room.avatar", "url"),
            "topic": details.text("m.room.topic", "topic"),
            "joined_local_devices": 0,
            "forgotten": details.room.joined_local == 0,
        }

    @endpoint("GET", OWN + "/rooms/{room_id}", auth=Auth.ADMIN)
    async def linearized(self, request: Request) -> JsonObject:
        """What Synapse has no words for: the room's hub, where its list ends here, whether it is held."""
        room = (await known(self._administration.get(p.room_id(request)))).room
        return {
            "room_id": room.room_id,
            "hub": room.hub_server,
            "version": room.room_version,
            "first_position": room.min_position,
            "head_position": room.head_position,
            "hold": room.hold,
            "blocked": room.blocked,
        }

    @endpoint("GET", ROOM + "/members", auth=Auth.ADMIN)
    async def members(self, request: Request) -> JsonObject:
        """Everybody in a room."""
        found = await known(self._administration.members(p.room_id(request)))
        return {"members": found, "total": len(found)}

    @endpoint("GET", ROOM + "/state", auth=Auth.ADMIN, at_once=1)
    async def state(self, request: Request) -> JsonObject:
        """The current state of a room."""
        return {"state": await known(self._administration.state(p.room_id(request)))}

    @endpoint("GET", ROOM + "/messages", auth=Auth.ADMIN, at_once=1)
    async def messages(self, request: Request) -> JsonObject:
        """Events of a room's list, the newest first unless `dir` is f."""
        start = _position(request)
        backwards = p.choice(request, "dir", "b", frozenset({"f", "b"})) == "b"
        events, end = await known(
            self._administration.messages(
                p.room_id(request), start, p.limit(request, 10), backwards=backwards
            )
        )
        answer: JsonObject = {"chunk": events, "start": "" if start is None else f"p{start}"}
        return answer if end is None else {**answer, "end": f"p{end}"}

    @endpoint("POST", ROOM + "/make_room_admin", auth=Auth.ADMIN)
    async def make_room_admin(self, request: Request) -> JsonObject:
        """Give a user, or whoever asks, the power of the most powerful of our users in the room."""
        room_id, body = p.room_id(request), await request.json_or_empty()
        user_id = p.of_body(body, "user_id", str) or request.requester.user_id
        if not ids.is_user_id(user_id):
            raise bad_param("user_id is not valid")
        try:
            await known(self._administration.make_admin(room_id, user_id))
        except NoPower as error:
            raise forbidden(str(error)) from None
        except MembershipError as error:
            raise ApiError(error.status, error.errcode, error.reason) from None
        except HubSilent:
            raise ApiError(504, "M_UNKNOWN", "The room's hub has not answered yet") from None
        except RoomBusy:
            raise limited(1.0) from None
        return {}


class RoomRemovalEndpoints:
    """Closing rooms to our users, and deleting them."""

    def __init__(self, administration: RoomAdministration) -> None:
        self._administration = administration

    @endpoint("GET", ROOM + "/block", auth=Auth.ADMIN)
    async def is_blocked(self, request: Request) -> JsonObject:
        """Whether a room, known here or not, is closed to our users, and who closed it."""
        by = await self._administration.blocked_by(p.room_id(request))
        return {"block": False} if by is None else {"block": True, "user_id": by}

    @endpoint("PUT", ROOM + "/block", auth=Auth.ADMIN)
    async def block(self, request: Request) -> JsonObject:
        """Close a room to our users, or open it again; who is in it stays."""
        room_id, wanted = p.room_id(request), p.needed(await request.json(), "block", bool)
        await self._administration.block(request.requester.user_id, room_id, wanted)
        return {"block": wanted}

    @endpoint("DELETE", ROOM, auth=Auth.ADMIN, at_once=4)
    async def delete(self, request: Request) -> JsonObject:
        """Delete a room and wait for the end of it; 504 if that takes too long: it goes on all the same."""
        delete_id = await self._begin(request)
        await self._administration.purges.wait(delete_id, WAIT_SECONDS)
        purge = await self._purge(delete_id)
        if purge.ended_ts is None:
            raise ApiError(504, "M_UNKNOWN", f"The room is still being deleted: {delete_id}")
        if purge.status == FAILED:
            raise ApiError(502, "M_UNKNOWN", purge.error or "The room could not be deleted")
        return _removed(purge)

    @endpoint("DELETE", SYNAPSE + "/v2/rooms/{room_id}", auth=Auth.ADMIN)
    async def delete_later(self, request: Request) -> JsonObject:
        """Delete a room beside the requests; what to ask for it by."""
        return {"delete_id": await self._begin(request)}

    @endpoint("GET", SYNAPSE + "/v2/rooms/{room_id}/delete_status", auth=Auth.ADMIN)
    async def deletions(self, request: Request) -> JsonObject:
        """All deletions of a room that are remembered."""
        found = await self._administration.deletions(p.room_id(request))
        if not found:
            raise not_found("No deletion of this room is known")
        return {"results": [_status(purge) for purge in found]}

    @endpoint("GET", SYNAPSE + "/v2/rooms/delete_status/{delete_id}", auth=Auth.ADMIN)
    async def deletion(self, request: Request) -> JsonObject:
        """How far one deletion is."""
        return _status(await self._purge(request.params["delete_id"]))

    async def _begin(self, request: Request) -> str:
        room_id, body = p.room_id(request), await request.json_or_empty()
        if body.get("new_room_user_id") is not None:
            raise bad_param("No room is made in the place of a deleted one")
        wanted = {key: p.of_body(body, key, bool) for key in ("block", "purge", "force_purge")}
        try:
            return await known(
                self._administration.delete(
                    request.requester.user_id,
                    room_id,
                    block=wanted["block"] is True,
                    deletes=wanted["purge"] is not False,
                    forced=wanted["force_purge"] is True,
                )
            )
        except AlreadyPurging:
            raise ApiError(400, "M_UNKNOWN", "The room is being deleted already") from None

    async def _purge(self, delete_id: str) -> Purge:
        found = None if "\0" in delete_id else await self._administration.deletion(delete_id)
        if found is None:
            raise not_found("No such deletion is known")
        return found


def _position(request: Request) -> int | None:
    text = request.query.get("from")
    if not text:
        return None
    number = text.removeprefix("p").removeprefix("-")
    if not text.startswith("p") or not number.isascii() or not number.isdigit() or len(number) > 18:
        raise bad_param("from is not a token")
    return int(text[1:])


def _removed(purge: Purge) -> JsonObject:
    return {
        "kicked_users": list(purge.kicked),
        "failed_to_kick_users": [],
        "local_aliases": list(purge.aliases),
        "new_room_id": None,
    }


def _status(purge: Purge) -> JsonObject:
    answer: JsonObject = {
        "delete_id": purge.delete_id,
        "room_id": purge.room_id,
        "status": purge.status,
        "shutdown_room": _removed(purge),
        "removed_rows": purge.removed,
    }
    return answer if purge.error is None else {**answer, "error": purge.error}


def _listed(details: RoomDetails) -> dict[str, Any]:
    room = details.room
    return {
        "room_id": room.room_id,
        "name": details.name,
        "canonical_alias": details.text("m.room.canonical_alias", "alias"),
        "joined_members": room.joined,
        "joined_local_members": room.joined_local,
        "version": room.room_version,
        "creator": details.creator,
        "encryption": details.text("m.room.encryption", "algorithm"),
        "federatable": details.contents.get("m.room.create", {}).get("m.federate") is not False,
        "public": room.is_published,
        "join_rules": details.text("m.room.join_rules", "join_rule"),
        "guest_access": details.text("m.room.guest_access", "guest_access"),
        "history_visibility": details.text("m.room.history_visibility", "history_visibility"),
        "state_events": room.entries,
        "room_type": details.text("m.room.create", "type"),
        "org.lmserver.hub": room.hub_server,
    }
