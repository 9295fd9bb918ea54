"""Creating, joining and leaving rooms (CS API §Rooms)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from lmserver.client_api import room_requests as rooms
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.errors import AuthRejected
from lmserver.protocol.events import EventDraft
from lmserver.rooms import presets
from lmserver.rooms.directory import AliasTaken, Directory, names_in
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.membership import Membership
from lmserver.rooms.outcomes import MembershipError
from lmserver.rooms.outsiders import newest
from lmserver.rooms.presets import BadRoomRequest, NewRoom, Versions
from lmserver.storage import aliases, outside, room_state
from lmserver.storage.database import Executor
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, limited
from lmserver.web.limits import RateLimiter

log = structlog.get_logger(__name__)

CLIENT = "/_matrix/client/v3"
ROOM = CLIENT + "/rooms/{room_id}"
MAX_VIA = 10

Profile = Callable[[str], Awaitable[dict[str, Any]]]
Change = Callable[[str, str, str, str | None], Awaitable[None]]
Entered = Callable[[str, str], Awaitable[None]]
"""Told of a user who has joined a room."""
MayLeave = Callable[[str, str], Awaitable[bool]]
Entering = Callable[[str, str, list[str], str | None], Awaitable[None]]


class RoomEndpoints:
    """Rooms and who is in them."""

    def __init__(
        self,
        db: Executor,
        engine: RoomEngine,
        membership: Membership,
        directory: Directory,
        profile_of: Profile,
        limiter: RateLimiter,
        clock: Callable[[], int],
        versions: Versions,
        entered: Entered,
        may_leave: MayLeave,
    ) -> None:
        self._db = db
        self._engine = engine
        self._membership = membership
        self._directory = directory
        self._profile_of = profile_of
        self._limiter = limiter
        self._clock = clock
        self._versions = versions
        self._entered = entered
        self._may_leave = may_leave

    @endpoint("POST", CLIENT + "/createRoom", auth=Auth.USER, rate="create_room", deadline=120)
    async def create(self, request: Request) -> JsonObject:
        """A new room whose hub is this server (CS API §POST /createRoom)."""
        body = await request.json_or_empty()
        try:
            new = presets.parse(body, self._versions)
        except BadRoomRequest as error:
            raise ApiError(400, error.errcode, error.reason) from None
        creator = rooms.user(request)
        alias = self._alias(new)
        _check_names(new, alias)
        self._limit_invites(creator, len(new.invite))
        room_id = f"!{secrets.token_urlsafe(18)}:{self._engine.our_name}"
        drafts = presets.drafts(new, room_id, creator, await self._profile_of(creator), alias, self._clock())
        for draft in drafts:
            rooms.check(draft)
        await self._make(new, drafts, alias)
        if new.public:
            await self._directory.publish(room_id, True)
        await self._invite_all(new, room_id, creator)
        return {"room_id": room_id} if alias is None else {"room_id": room_id, "room_alias": alias}

    def _alias(self, new: NewRoom) -> str | None:
        if new.alias_localpart is None:
            return None
        alias = f"#{new.alias_localpart}:{self._engine.our_name}"
        return rooms.identifier(alias, ids.check_room_alias, "room_alias_name")

    def _limit_invites(self, creator: str, count: int) -> None:
        """Invites of a new room count like any others (attack I4)."""
        wait = self._limiter.take("invite", creator, count) if count else 0.0
        if wait:
            raise limited(wait)

    async def _make(self, new: NewRoom, drafts: list[EventDraft], alias: str | None) -> None:
        """The alias first: of two rooms that want the same one only one comes into being."""
        room_id, creator = drafts[0].room_id, drafts[0].sender
        try:
            if alias is not None:
                await self._directory.reserve(alias, room_id, creator)
            await self._engine.create(new.version, drafts)
        except AliasTaken:
            raise ApiError(400, "M_ROOM_IN_USE", "Room alias already taken") from None
        except AuthRejected as error:
            if alias is not None:
                await self._directory.remove(alias, creator)
            raise ApiError(400, "M_INVALID_ROOM_STATE", error.reason) from None

    async def _invite_all(self, new: NewRoom, room_id: str, creator: str) -> None:
        """Invites after the room is there; one that fails undoes neither it nor the others."""
        await asyncio.gather(*(self._invite(creator, room_id, user_id, new) for user_id in new.invite))

    async def _invite(self, creator: str, room_id: str, user_id: str, new: NewRoom) -> None:
        try:
            await self._membership.invite(creator, room_id, user_id, is_direct=new.is_direct)
        except MembershipError as error:
            log.info("invite_of_new_room_failed", room_id=room_id, errcode=error.errcode)

    # -- one's own membership -------------------------------------------------------------------

    @endpoint("POST", CLIENT + "/join/{room}", auth=Auth.USER, rate="join", deadline=120)
    async def join_any(self, request: Request) -> JsonObject:
        """Join by room ID or alias."""
        return await self._enter(request, self._join, *await self._named(request))

    @endpoint("POST", ROOM + "/join", auth=Auth.USER, rate="join", deadline=120)
    async def join(self, request: Request) -> JsonObject:
        """Join a room by its ID."""
        room_id = rooms.identifier(request.params["room_id"], ids.check_room_id, "room_id")
        return await self._enter(request, self._join, room_id, request.query.getall("via", []))

    async def _join(self, user_id: str, room_id: str, via: list[str], reason: str | None) -> None:
        """As fast as the room may be joined, whoever joins (attack R7)."""
        wait = self._limiter.take("room_joins", room_id)
        if wait:
            raise limited(wait)
        await self._membership.join(user_id, room_id, via, reason)
        await self._entered(user_id, room_id)

    @endpoint("POST", CLIENT + "/knock/{room}", auth=Auth.USER, rate="knock", deadline=120)
    async def knock(self, request: Request) -> JsonObject:
        """Ask to be let into a room named by its ID or alias (CS API §Knocking on rooms)."""
        return await self._enter(request, self._membership.knock, *await self._named(request))

    async def _enter(self, request: Request, enter: Entering, room_id: str, via: list[str]) -> JsonObject:
        reason = rooms.optional_text(await request.json_or_empty(), "reason")
        servers = [name for name in via[:MAX_VIA] if ids.is_server_name(name)]
        try:
            await enter(rooms.user(request), room_id, servers, reason)
        except MembershipError as error:
            raise rooms.of_membership(error) from None
        await aliases.remember_room(self._db, rooms.user(request), room_id)
        return {"room_id": room_id}

    async def _named(self, request: Request) -> tuple[str, list[str]]:
        """The room of the path, and the servers that may know it."""
        named = request.params["room"]
        via = [*request.query.getall("via", []), *request.query.getall("server_name", [])]
        if named.startswith("#"):
            named, servers = await self._resolve(named)
            via = [*via, *servers]
        return rooms.identifier(named, ids.check_room_id, "room"), via

    async def _resolve(self, alias: str) -> tuple[str, list[str]]:
        rooms.identifier(alias, ids.check_room_alias, "room alias")
        found = await self._directory.resolve(alias)
        if found is None:
            raise ApiError(404, "M_NOT_FOUND", "Room alias not found")
        return found

    @endpoint("POST", ROOM + "/leave", auth=Auth.USER, deadline=120, suspended=True)
    async def leave(self, request: Request) -> JsonObject:
        """Leave, or reject an invite; leaving what one has left changes nothing."""
        reason = rooms.optional_text(await request.json_or_empty(), "reason")
        room_id = rooms.identifier(request.params["room_id"], ids.check_room_id, "room_id")
        if not await self._may_leave(rooms.user(request), room_id):
            raise ApiError(
                403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", "What the operator says cannot be declined"
            )
        try:
            await self._membership.leave(rooms.user(request), room_id, reason)
        except MembershipError as error:
            raise rooms.of_membership(error) from None
        return {}

    @endpoint("POST", ROOM + "/forget", auth=Auth.USER, suspended=True)
    async def forget(self, request: Request) -> JsonObject:
        """Never see a left room again (CS API §POST /rooms/{roomId}/forget)."""
        room_id = rooms.room_id(request)
        known = await newest(self._db, rooms.user(request), room_id)
        if known is not None and known.membership not in ("leave", "ban"):
            raise ApiError(400, "M_UNKNOWN", "You are still in this room")
        await outside.forget(self._db, rooms.user(request), room_id)
        await aliases.forget_room(self._db, rooms.user(request), room_id)
        return {}

    @endpoint("GET", CLIENT + "/joined_rooms", auth=Auth.USER)
    async def joined_rooms(self, request: Request) -> JsonObject:
        """Rooms the user is joined to."""
        memberships = await room_state.user_memberships(self._db, rooms.user(request))
        return {"joined_rooms": [m.room_id for m in memberships if m.membership == "join"]}

    # -- others' membership ---------------------------------------------------------------------

    @endpoint("POST", ROOM + "/invite", auth=Auth.USER, rate="invite", deadline=120)
    async def invite(self, request: Request) -> JsonObject:
        """Invite a user."""
        return await self._change(request, self._membership.invite)

    @endpoint("POST", ROOM + "/kick", auth=Auth.USER)
    async def kick(self, request: Request) -> JsonObject:
        """Remove a user."""
        return await self._change(request, self._membership.kick)

    @endpoint("POST", ROOM + "/ban", auth=Auth.USER)
    async def ban(self, request: Request) -> JsonObject:
        """Ban a user."""
        return await self._change(request, self._membership.ban)

    @endpoint("POST", ROOM + "/unban", auth=Auth.USER)
    async def unban(self, request: Request) -> JsonObject:
        """Lift a ban."""
        return await self._change(request, self._membership.unban)

    async def _change(self, request: Request, change: Change) -> JsonObject:
        """A change of the member named in the body, in a room the requester is in."""
        body = await request.json()
        target = rooms.identifier(body.get("user_id"), ids.check_user_id, "user_id")
        reason = rooms.optional_text(body, "reason")
        room_id, sender = rooms.room_id(request), rooms.user(request)
        view = await self._engine.view(room_id)
        if view is None or view.membership(sender) != "join":
            raise rooms.not_in_room()
        try:
            await change(sender, room_id, target, reason)
        except MembershipError as error:
            raise rooms.of_membership(error) from None
        return {}


def _check_names(new: NewRoom, alias: str | None) -> None:
    """A room that is not there yet has no alias but the one it is made with (attack C11)."""
    claimed = {
        name
        for type_, _, content in new.initial_state
        if type_ == "m.room.canonical_alias"
        for name in names_in(content)
    }
    if claimed - {alias}:
        raise ApiError(400, "M_BAD_ALIAS", "An alias does not lead to this room")
