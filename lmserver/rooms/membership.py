"""Joining, leaving, inviting, kicking: one way for each, whether the room is here or elsewhere.

Where our server is in the room, membership is an event like any other; where it is not, the make
and send handshake or an invite through the hub does it (D04 §Room Membership).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Sequence
from typing import Any

from lmserver.federation_client.errors import FederationError, RemoteError
from lmserver.federation_client.room_api import RoomApi
from lmserver.protocol import ids
from lmserver.protocol.errors import ProtocolError, UnknownRoomVersion
from lmserver.protocol.events import EventDraft, parse_pdu
from lmserver.protocol.participant import build_lpdu
from lmserver.protocol.room_versions import room_version
from lmserver.protocol.room_view import RoomView
from lmserver.protocol.signatures import SigningKey
from lmserver.rooms import stripped_state
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.invites import InviteRefused, Invites
from lmserver.rooms.joining import Joining
from lmserver.rooms.outcomes import Accepted, Outcome, Rejected
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.storage import invites as stored_invites
from lmserver.storage.database import Database
from lmserver.storage.invites import PendingInvite

MAX_JOIN_CANDIDATES = 6


class MembershipError(Exception):
    """A membership change that did not happen: Matrix error code, HTTP status, reason."""

    def __init__(self, errcode: str, status: int, reason: str) -> None:
        super().__init__(reason)
        self.errcode = errcode
        self.status = status
        self.reason = reason


_STATUS = {"M_NOT_FOUND": 404, "M_LIMIT_EXCEEDED": 429, "M_BAD_JSON": 400, "M_TOO_LARGE": 413}


class Membership:
    """What our users do to their own and others' membership."""

    def __init__(
        self,
        db: Database,
        key: SigningKey,
        engine: RoomEngine,
        joining: Joining,
        invites: Invites,
        api: RoomApi,
        profile_of: Callable[[str], Awaitable[dict[str, Any]]],
        publish: Callable[[Sequence[str]], None],
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._key = key
        self._engine = engine
        self._joining = joining
        self._invites = invites
        self._api = api
        self._profile_of = profile_of
        self._publish = publish
        self._clock = clock

    async def join(
        self, user_id: str, room_id: str, via: Sequence[str] = (), reason: str | None = None
    ) -> None:
        """Join a room here or, through the first server that lets us, elsewhere."""
        content = {"membership": "join", **await self._profile_of(user_id)}
        draft = self._draft(room_id, user_id, user_id, content, reason)
        snapshot = await self._engine.snapshot(room_id)
        if snapshot is not None and self._participates(snapshot.view, snapshot.servers):
            if snapshot.view.membership(user_id) == "join":
                return
            await self._send(draft)
            return
        invite = await stored_invites.get(self._db, user_id, room_id)
        known_hub = None if snapshot is None else snapshot.view.hub
        await self._join_elsewhere(draft, self._candidates(room_id, invite, known_hub, via))

    async def leave(self, user_id: str, room_id: str, reason: str | None = None) -> None:
        """Leave a room, reject an invite or retract a knock."""
        draft = self._draft(room_id, user_id, user_id, {"membership": "leave"}, reason)
        snapshot = await self._engine.snapshot(room_id)
        invite = await stored_invites.get(self._db, user_id, room_id)
        if snapshot is not None and self._participates(snapshot.view, snapshot.servers):
            await self._send(draft)
        elif invite is not None and not invite.retired:
            await self._reject_invite(draft, invite)
        elif snapshot is None:
            raise MembershipError("M_NOT_FOUND", 404, "you are not in this room")
        else:
            raise MembershipError("M_FORBIDDEN", 403, "you are not in this room")

    async def invite(self, sender: str, room_id: str, target: str, reason: str | None = None) -> None:
        """Invite a user; of a server not in the room, through the hub."""
        profile: dict[str, Any] = {}
        if ids.server_of(target) == self._key.server_name:
            profile = await self._profile_of(target)
        draft = self._draft(room_id, sender, target, {"membership": "invite", **profile}, reason)
        snapshot = await self._engine.snapshot(room_id)
        if snapshot is None:
            raise MembershipError("M_FORBIDDEN", 403, "you are not in this room")
        server = ids.server_of(target)
        if server in (self._key.server_name, snapshot.view.hub) or server in snapshot.servers:
            await self._send(draft)
        elif snapshot.view.hub == self._key.server_name:
            await self._invite_as_hub(draft)
        else:
            await self._invite_through_hub(draft, snapshot.view)

    async def kick(self, sender: str, room_id: str, target: str, reason: str | None = None) -> None:
        """Make a user leave; a kick of oneself is a leave."""
        view = await self._view(room_id)
        if view.membership(target) in ("leave", "ban"):
            raise MembershipError("M_FORBIDDEN", 403, "the user is not in the room")
        await self._send(self._draft(room_id, sender, target, {"membership": "leave"}, reason))

    async def ban(self, sender: str, room_id: str, target: str, reason: str | None = None) -> None:
        await self._view(room_id)
        await self._send(self._draft(room_id, sender, target, {"membership": "ban"}, reason))

    async def unban(self, sender: str, room_id: str, target: str, reason: str | None = None) -> None:
        view = await self._view(room_id)
        if view.membership(target) != "ban":
            raise MembershipError("M_FORBIDDEN", 403, "the user is not banned")
        await self._send(self._draft(room_id, sender, target, {"membership": "leave"}, reason))

    # -- inside ---------------------------------------------------------------------------------

    def _draft(
        self, room_id: str, sender: str, target: str, content: dict[str, Any], reason: str | None
    ) -> EventDraft:
        if reason is not None:
            content = {**content, "reason": reason}
        return EventDraft(room_id, "m.room.member", sender, content, self._clock(), target)

    def _participates(self, view: RoomView, servers: Container[str]) -> bool:
        return view.hub == self._key.server_name or self._key.server_name in servers

    async def _view(self, room_id: str) -> RoomView:
        view = await self._engine.view(room_id)
        if view is None:
            raise MembershipError("M_FORBIDDEN", 403, "you are not in this room")
        return view

    async def _send(self, draft: EventDraft) -> None:
        try:
            [outcome] = await self._engine.send([draft])
        except HubSilent:
            raise MembershipError(
                "M_UNKNOWN", 504, "the room's hub does not answer; it is asked again"
            ) from None
        _raise_if_rejected(outcome)

    def _candidates(
        self, room_id: str, invite: PendingInvite | None, known_hub: str | None, via: Sequence[str]
    ) -> list[str]:
        """Servers to ask, best first: who invited us, the create event's sender, the room ID's
        server, then what the client was told."""
        found = [] if known_hub is None else [known_hub]
        if invite is not None:
            found.append(invite.hub_server)
            state = stored_invites.decode_state(invite.stripped_state)
            found += [ids.server_of(e["sender"]) for e in state if e["type"] == "m.room.create"]
        found += [ids.server_of(room_id), *via]
        usable = [s for s in dict.fromkeys(found) if s != self._key.server_name and ids.is_server_name(s)]
        return usable[:MAX_JOIN_CANDIDATES]

    async def _join_elsewhere(self, draft: EventDraft, candidates: list[str]) -> None:
        if not candidates:
            raise MembershipError("M_NOT_FOUND", 404, "no server is known for this room")
        asked: set[str] = set()
        failure = MembershipError("M_UNKNOWN", 502, "no server of this room could be reached")
        while candidates and len(asked) < MAX_JOIN_CANDIDATES:
            server = candidates.pop(0)
            if server in asked or server == self._key.server_name:
                continue
            asked.add(server)
            try:
                await self._joining.join(server, draft)
                return
            except UnknownRoomVersion:
                failure = MembershipError("M_INCOMPATIBLE_ROOM_VERSION", 400, "room version not supported")
            except RemoteError as error:
                candidates[:0] = _named_hub(error)
                failure = _of_remote(error, failure)
            except FederationError:
                continue
            except ProtocolError as error:
                failure = MembershipError("M_UNKNOWN", 502, f"the join failed: {error}")
        raise failure

    async def _reject_invite(self, draft: EventDraft, invite: PendingInvite) -> None:
        """Tell the hub if it listens; for our user the invite is gone either way."""
        version = room_version(invite.room_version)
        try:
            lpdu = build_lpdu(draft, version, invite.hub_server, self._key)
            await self._api.make_membership(invite.hub_server, "leave", draft.room_id, draft.sender, ())
            await self._api.send_leave(invite.hub_server, version.id, lpdu.event_id, lpdu.fields)
        except FederationError:
            pass  # eigen-server has no leave endpoints, and a dead hub must not hold an invite open
        await self._db.run(lambda db: stored_invites.retire(db, draft.sender, draft.room_id))
        self._publish([draft.sender])

    async def _invite_as_hub(self, draft: EventDraft) -> None:
        try:
            outcome, _ = await self._invites.invite(draft)
        except InviteRefused as refused:
            raise MembershipError(refused.errcode, refused.status, refused.reason) from None
        except FederationError:
            raise MembershipError("M_UNKNOWN", 502, "the invited user's server cannot be reached") from None
        _raise_if_rejected(outcome)

    async def _invite_through_hub(self, draft: EventDraft, view: RoomView) -> None:
        lpdu = build_lpdu(draft, view.version, view.hub, self._key)
        stripped = stripped_state.of_view(view, draft.sender)
        try:
            answer = await self._api.invite(view.hub, view.version.id, lpdu.event_id, lpdu.fields, stripped)
            if parse_pdu(answer, view.version).lpdu_hash != lpdu.lpdu_hash:
                raise MembershipError("M_UNKNOWN", 502, "the hub answered with another event")
        except RemoteError as error:
            raise _of_remote(error, MembershipError("M_UNKNOWN", 502, "the hub refused the invite")) from None
        except (FederationError, ProtocolError):
            raise MembershipError("M_UNKNOWN", 502, "the room's hub cannot be reached") from None


def _raise_if_rejected(outcome: Outcome) -> None:
    match outcome:
        case Rejected(errcode=errcode, reason=reason):
            raise MembershipError(errcode, _STATUS.get(errcode, 403), reason)
        case Accepted():
            return


def _named_hub(error: RemoteError) -> list[str]:
    """The hub a server that is not it names (our own extension of M_WRONG_SERVER)."""
    return [error.hub] if error.errcode == "M_WRONG_SERVER" and error.hub is not None else []


def _of_remote(error: RemoteError, otherwise: MembershipError) -> MembershipError:
    """A peer's refusal in words of ours; what it says in `error` is not trusted with more."""
    match error.errcode:
        case "M_FORBIDDEN":
            return MembershipError("M_FORBIDDEN", 403, "the room's server does not allow it")
        case "M_INCOMPATIBLE_ROOM_VERSION" | "M_UNSUPPORTED_ROOM_VERSION":
            return MembershipError("M_INCOMPATIBLE_ROOM_VERSION", 400, "room version not supported")
        case "M_NOT_FOUND":
            return MembershipError("M_NOT_FOUND", 404, "the room's server does not know it")
        case _:
            return otherwise
