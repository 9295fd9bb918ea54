"""Joining, leaving, knocking, inviting, kicking: one way for each, whether the room is here or elsewhere.

Where our server is in the room, membership is an event like any other; where it is not, the make
and send handshake or an invite through the hub does it (D04 §Room Membership).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from lmserver.federation_client.errors import FederationError, RemoteError
from lmserver.federation_client.room_api import RoomApi
from lmserver.protocol import ids
from lmserver.protocol.auth_rules import authorize
from lmserver.protocol.errors import AuthRejected, ProtocolError
from lmserver.protocol.events import EventDraft, parse_pdu
from lmserver.protocol.participant import build_lpdu
from lmserver.protocol.room_view import RoomView
from lmserver.protocol.signatures import SigningKey
from lmserver.rooms import stripped_state
from lmserver.rooms.candidates import Candidates, ask, candidates, of_remote
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.handshakes import Handshakes
from lmserver.rooms.invites import InviteRefused, Invites
from lmserver.rooms.joining import Joining
from lmserver.rooms.outcomes import CLOSED, HELD, Accepted, MembershipError, Outcome, Rejected, RoomBusy
from lmserver.rooms.outsiders import newest
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.rooms.snapshot import Snapshot
from lmserver.storage import room_purges
from lmserver.storage.database import Database

_STATUS = {
    "M_NOT_FOUND": 404,
    "M_LIMIT_EXCEEDED": 429,
    "M_BAD_JSON": 400,
    "M_TOO_LARGE": 413,
}


class Membership:
    """What our users do to their own and others' membership; every method raises MembershipError."""

    def __init__(
        self,
        db: Database,
        key: SigningKey,
        engine: RoomEngine,
        joining: Joining,
        handshakes: Handshakes,
        invites: Invites,
        api: RoomApi,
        profile_of: Callable[[str], Awaitable[dict[str, Any]]],
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._key = key
        self._engine = engine
        self._joining = joining
        self._handshakes = handshakes
        self._invites = invites
        self._api = api
        self._profile_of = profile_of
        self._clock = clock

    # -- one's own ------------------------------------------------------------------------------

    async def join(
        self, user_id: str, room_id: str, via: Sequence[str] = (), reason: str | None = None
    ) -> None:
        """Join a room here or, through the first server that lets us, elsewhere."""
        content = {"membership": "join", **await self._profile_of(user_id)}
        draft = self._draft(room_id, user_id, user_id, content, reason)
        # Two users who join at once need one handshake: the second joins as in any room of ours.
        async with self._joining.alone(room_id):
            snapshot = await self._engine.snapshot(room_id)
            if not self._participates(snapshot):
                await self._check_open(room_id)
                servers = await self._candidates(user_id, room_id, snapshot, via)
                await ask(servers, lambda server: self._join_through(server, draft))
                return
        if snapshot is None or snapshot.view.membership(user_id) != "join":
            await self._send(draft)

    async def knock(
        self, user_id: str, room_id: str, via: Sequence[str] = (), reason: str | None = None
    ) -> None:
        """Ask to be let in, here or elsewhere (D04 §Knocks)."""
        content = {"membership": "knock", **await self._profile_of(user_id)}
        draft = self._draft(room_id, user_id, user_id, content, reason)
        snapshot = await self._engine.snapshot(room_id)
        if self._participates(snapshot):
            await self._send(draft)
            return
        await self._check_open(room_id)
        servers = await self._candidates(user_id, room_id, snapshot, via)
        await ask(servers, lambda server: self._handshakes.knock(server, draft))

    async def leave(self, user_id: str, room_id: str, reason: str | None = None) -> None:
        """Leave a room, reject an invite or retract a knock; leaving what one has left changes
        nothing."""
        draft = self._draft(room_id, user_id, user_id, {"membership": "leave"}, reason)
        snapshot = await self._engine.snapshot(room_id)
        if snapshot is not None and self._participates(snapshot):
            own = snapshot.view.get("m.room.member", user_id)
            if own is None or own.content.get("membership") != "leave":
                await self._send(draft)
            return
        known = await newest(self._db, user_id, room_id)
        if known is not None and known.pending:
            await self._handshakes.leave(draft, known)
        elif known is None or known.membership == "ban":
            status = 404 if snapshot is None else 403
            raise MembershipError(
                "M_NOT_FOUND" if status == 404 else "M_FORBIDDEN", status, "you are not in this room"
            )

    # -- others' --------------------------------------------------------------------------------

    async def invite(
        self,
        sender: str,
        room_id: str,
        target: str,
        reason: str | None = None,
        *,
        is_direct: bool = False,
    ) -> None:
        """Invite a user; of a server not in the room, through the hub. `is_direct` tells the
        user's client that the room is for the two of them (CS API §Direct messaging)."""
        content: dict[str, Any] = {"membership": "invite"}
        if is_direct:
            content["is_direct"] = True
        if ids.server_of(target) == self._key.server_name:
            content |= await self._profile_of(target)
        draft = self._draft(room_id, sender, target, content, reason)
        snapshot = await self._engine.snapshot(room_id)
        if snapshot is None:
            raise MembershipError("M_FORBIDDEN", 403, "you are not in this room")
        server = ids.server_of(target)
        if server == self._key.server_name:
            await self._invite_local(draft, snapshot.view)
        elif snapshot.includes(server):
            await self._send(draft)
        elif snapshot.view.hub == self._key.server_name:
            await self._invite_as_hub(draft)
        else:
            await self._invite_through_hub(draft, snapshot.view)

    async def kick(self, sender: str, room_id: str, target: str, reason: str | None = None) -> None:
        """Make a user leave, withdraw an invite or deny a knock; a kick of oneself is a leave."""
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

    async def _join_through(self, server: str, draft: EventDraft) -> None:
        try:
            await self._joining.join(server, draft)
        except RemoteError as error:
            if error.status == 403 and error.errcode == "M_FORBIDDEN":
                await self._handshakes.not_invited(server, draft.sender, draft.room_id)
            raise

    async def _check_open(self, room_id: str) -> None:
        """Not to be entered through another server where it is not to be entered here (RoomEngine.send)."""
        if await room_purges.is_closed(self._db, room_id):
            raise MembershipError(CLOSED.errcode, 403, CLOSED.reason)

    # -- inside ---------------------------------------------------------------------------------

    def _draft(
        self, room_id: str, sender: str, target: str, content: dict[str, Any], reason: str | None
    ) -> EventDraft:
        if reason is not None:
            content = {**content, "reason": reason}
        return EventDraft(room_id, "m.room.member", sender, content, self._clock(), target)

    def _participates(self, snapshot: Snapshot | None) -> bool:
        return snapshot is not None and snapshot.includes(self._key.server_name)

    async def _view(self, room_id: str) -> RoomView:
        view = await self._engine.view(room_id)
        if view is None:
            raise MembershipError("M_FORBIDDEN", 403, "you are not in this room")
        return view

    async def _candidates(
        self, user_id: str, room_id: str, snapshot: Snapshot | None, via: Sequence[str]
    ) -> Candidates:
        known = await newest(self._db, user_id, room_id)
        hub = None if snapshot is None else snapshot.view.hub
        return candidates(self._key.server_name, room_id, known, hub, via)

    async def _send(self, draft: EventDraft) -> None:
        try:
            [outcome] = await self._engine.send([draft])
        except HubSilent:
            raise MembershipError(
                "M_UNKNOWN", 504, "the room's hub does not answer; it is asked again"
            ) from None
        except RoomBusy:
            raise _busy() from None
        _raise_if_rejected(outcome)

    async def _invite_local(self, draft: EventDraft, view: RoomView) -> None:
        """Who may not invite at all is told so before the user's own wishes are looked at."""
        try:
            authorize(draft, view)
        except AuthRejected as error:
            raise MembershipError("M_FORBIDDEN", 403, error.reason) from None
        try:
            await self._invites.ask_local(draft)
        except InviteRefused as refused:
            raise MembershipError(
                refused.errcode, refused.status, refused.reason, refused.retry_after_ms
            ) from None
        await self._send(draft)

    async def _invite_as_hub(self, draft: EventDraft) -> None:
        try:
            outcome, _ = await self._invites.invite(draft)
        except InviteRefused as refused:
            raise _of_target(refused) from None
        except RoomBusy:
            raise _busy() from None
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
            if error.unknown_endpoint:
                await self._send(draft)  # one known hub takes invites by `send` alone
                return
            raise of_remote(error) from None
        except (FederationError, ProtocolError):
            raise MembershipError("M_UNKNOWN", 502, "the room's hub cannot be reached") from None


def _busy() -> MembershipError:
    return MembershipError("M_LIMIT_EXCEEDED", 429, "too many events wait for the room", 1000)


def _of_target(refused: InviteRefused) -> MembershipError:
    """What the target's server said, in words of ours: a client acts on an error code."""
    return of_remote(RemoteError(refused.status, refused.errcode, refused.reason, refused.retry_after_ms))


def _raise_if_rejected(outcome: Outcome) -> None:
    match outcome:
        case Rejected(errcode=errcode, reason=reason):
            status = 503 if outcome == HELD else _STATUS.get(errcode, 403)
            raise MembershipError(errcode, status, reason)
        case Accepted():
            return
