"""Invites across servers: participant to hub to target (D04 §Invites).

The target's server is asked with no lock held, and the hub decides again at the head. Only the
sender's and the hub's signatures count, so when the room moves on faster than the target answers
the invite is appended with those two alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from lmserver.federation_client.errors import RemoteError
from lmserver.federation_client.room_api import RoomApi
from lmserver.protocol import canonical_json, hub, ids
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.events import EventDraft, Lpdu, Pdu, parse_pdu
from lmserver.protocol.hashes import check_hashes
from lmserver.protocol.room_versions import room_version
from lmserver.protocol.room_view import RoomView
from lmserver.protocol.signatures import SigningKey
from lmserver.rooms import stripped_state
from lmserver.rooms.checking import Verifier
from lmserver.rooms.outcomes import CLOSED, HELD, GapFound, Outcome, Proposal, Rejected
from lmserver.rooms.push.outside_invites import OutsideInvites
from lmserver.rooms.turns import Turns
from lmserver.storage import holds, outside, room_log, room_purges, room_state
from lmserver.storage.database import Connection, Database
from lmserver.storage.outside import OutsideMembership
from lmserver.storage.pushers import NewNotification

MAX_ASKS = 3
PROXIED_STATUS = (400, 403, 404, 413, 429)
_ERRCODE = re.compile(r"M_(?!.*TOKEN)[A-Z_]{1,60}")


class InviteRefused(Exception):
    """An invite we or the target's server will not sign: HTTP status, error code, fixed text, and
    for a limit when to come back (ms), if known."""

    def __init__(self, status: int, errcode: str, reason: str, retry_after_ms: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.errcode = errcode
        self.reason = reason
        self.retry_after_ms = retry_after_ms


class Accounts(Protocol):
    """Whether a local user exists."""

    async def is_active(self, user_id: str) -> bool: ...


class Refusal(Protocol):
    """Why a user is not to be invited."""

    @property
    def status(self) -> int: ...
    @property
    def errcode(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def retry_after_ms(self) -> int | None: ...


class Policy(Protocol):
    """Blocks and limits of invites for local users (accounts/invite_policy.py)."""

    def server_limit(self, origin: str) -> Refusal | None: ...

    async def refusal(self, user_id: str, sender: str) -> Refusal | None: ...


class Invites:
    """Both ends of an invite: asking a target's server, and being the target's server."""

    def __init__(
        self,
        db: Database,
        key: SigningKey,
        api: RoomApi,
        verifier: Verifier,
        turns: Turns,
        accounts: Accounts,
        policy: Policy,
        pushes: OutsideInvites,
        publish: Callable[[Iterable[str]], None],
    ) -> None:
        self._db = db
        self._key = key
        self._api = api
        self._verifier = verifier
        self._turns = turns
        self._accounts = accounts
        self._policy = policy
        self._pushes = pushes
        self._publish = publish

    # -- as the hub -----------------------------------------------------------------------------

    async def invite(self, event: EventDraft | Lpdu) -> tuple[Outcome, Pdu | None]:
        """Invite a user of a server that is not in the room; we are its hub.

        Raises InviteRefused with the target server's own refusal, FederationError when it cannot
        be reached.
        """
        target = ids.server_of(_target(event))
        for _ in range(MAX_ASKS):
            snapshot = await self._turns.snapshot(event.room_id)
            if snapshot is None:
                return Rejected("M_NOT_FOUND", "room not known"), None
            if target in snapshot.servers:
                break  # it came in meanwhile, and gets the invite as everybody does
            if await holds.is_held(self._db, event.room_id):
                return HELD, None  # a signature at an old head could start a second list
            decision = hub.decide(event, snapshot.view, self._key)
            if isinstance(decision, hub.Reject):
                return Rejected(decision.errcode, decision.reason, decision.rule), None
            try:
                pdu = await self._ask_target(decision.pdu, snapshot.view)
            except InviteRefused:
                if not await self._is_in(event.room_id, target):
                    raise
                break
            [outcome] = await self._turns.submit(event.room_id, [Proposal(pdu, completed=True)])
            if not isinstance(outcome, GapFound):
                return outcome, pdu
        [last] = await self._turns.submit(event.room_id, [Proposal(event)])
        return (
            (last, None) if not isinstance(last, GapFound) else (Rejected("M_UNKNOWN", "room is busy"), None)
        )

    async def _is_in(self, room_id: str, server: str) -> bool:
        snapshot = await self._turns.snapshot(room_id)
        return snapshot is not None and server in snapshot.servers

    async def _ask_target(self, pdu: Pdu, view: RoomView) -> Pdu:
        target = ids.server_of(pdu.state_key or "")
        stripped = stripped_state.of_view(view, pdu.sender)
        try:
            answer = await self._api.invite(target, view.version.id, pdu.event_id, pdu.fields, stripped)
        except RemoteError as error:
            raise _proxied(error) from error
        return _with_target_signature(pdu, answer, target)

    async def proxy(self, origin: str, lpdu: Lpdu) -> tuple[Outcome, Pdu | None]:
        """A participant's invite LPDU, signatures checked: the first half of D04 §Invites."""
        if lpdu.server != origin or lpdu.membership != "invite" or lpdu.hub_server != self._key.server_name:
            raise InviteRefused(403, "M_FORBIDDEN", "not an invite of the requesting server")
        target = ids.server_of(lpdu.state_key or "")
        snapshot = await self._turns.snapshot(lpdu.room_id)
        if snapshot is None:
            raise InviteRefused(404, "M_NOT_FOUND", "room not known")
        if snapshot.view.hub != self._key.server_name:
            raise InviteRefused(400, "M_WRONG_SERVER", "not the hub of the room")
        if target == self._key.server_name:
            _raise(self._policy.server_limit(origin))
            await self.ask_local(lpdu)
        if target in snapshot.servers or target == self._key.server_name:
            [outcome] = await self._turns.accept_lpdus(lpdu.room_id, [lpdu])
            return outcome, None
        return await self.invite(lpdu)

    async def ask_local(self, invite: EventDraft | Lpdu | Pdu) -> None:
        """Whether a user of ours may be invited: there, to a room that may be entered, willing, and not too
        often; raises InviteRefused."""
        target = invite.state_key or ""
        if not await self._accounts.is_active(target):
            raise InviteRefused(404, "M_NOT_FOUND", "no such user")
        if await room_purges.is_closed(self._db, invite.room_id):
            raise InviteRefused(403, CLOSED.errcode, CLOSED.reason)
        _raise(await self._policy.refusal(target, invite.sender))

    # -- as the target's server -----------------------------------------------------------------

    async def receive(
        self, origin: str, event: Mapping[str, Any], version_id: object, stripped: object
    ) -> Pdu:
        """An invite for one of our users: check it all, keep it, sign it (attack I1).

        Returns the event with our signature added; raises InviteRefused.
        """
        pdu = await self._check_invite(origin, event, version_id)
        invite = OutsideMembership(
            user_id=pdu.state_key or "",
            room_id=pdu.room_id,
            membership="invite",
            hub_server=origin,
            sender=pdu.sender,
            room_version=pdu.version.id,
            event=pdu.canonical,
            event_id=pdu.event_id,
            stripped_state=outside.encode_state(stripped_state.clean(stripped)),
        )
        news = await self._pushes.news(pdu)
        await self._db.run(lambda db: self._keep(db, invite, pdu, news))
        self._publish([invite.user_id])
        self._pushes.wake([invite.user_id])
        signature = self._key.sign_base64(pdu.reference_bytes)
        return pdu.with_signature(self._key.server_name, self._key.key_id, signature)

    async def _keep(
        self, db: Connection, invite: OutsideMembership, pdu: Pdu, news: NewNotification | None
    ) -> None:
        """Store it, unless the room has a list here that its hub can and has to use (attack I5)."""
        await outside.lock_room(db, invite.room_id)
        room = await room_log.room(db, invite.room_id)
        if room is not None and room.hub_server != invite.hub_server:
            raise InviteRefused(403, "M_FORBIDDEN", "the invite does not come from the room's hub")
        if await room_state.has_joined_user(db, invite.room_id, self._key.server_name):
            raise InviteRefused(403, "M_FORBIDDEN", "this server is in the room already")
        known = await outside.get(db, invite.user_id, invite.room_id)
        await outside.store(db, invite)
        if news is not None and (known is None or not is_same_invite(known, pdu)):
            await self._pushes.queue(db, news)

    async def _check_invite(self, origin: str, event: Mapping[str, Any], version_id: object) -> Pdu:
        try:
            version = room_version(version_id)
        except ProtocolError as error:
            raise InviteRefused(400, "M_INCOMPATIBLE_ROOM_VERSION", "room version not supported") from error
        try:
            pdu = parse_pdu(event, version)
        except ProtocolError as error:
            raise InviteRefused(400, "M_BAD_JSON", str(error)) from error
        self._check_shape(pdu, origin)
        _raise(self._policy.server_limit(origin))
        [verdict] = await self._verifier.verify_events([pdu])
        if verdict is not None:
            raise InviteRefused(403, "M_FORBIDDEN", str(verdict))
        if not check_hashes(pdu):
            raise InviteRefused(403, "M_FORBIDDEN", "a content hash is wrong")
        await self.ask_local(pdu)
        return pdu

    def _check_shape(self, pdu: Pdu, origin: str) -> None:
        """What we sign is an invite of one of our users by another server's user, sent by the
        hub it names; anything else would make us a signing oracle."""
        ours = self._key.server_name
        if pdu.membership != "invite" or not ids.is_user_id(pdu.state_key):
            raise InviteRefused(400, "M_BAD_JSON", "not an invite")
        if ids.server_of(pdu.state_key or "") != ours or pdu.server == ours:
            raise InviteRefused(403, "M_FORBIDDEN", "not an invite for a user of this server")
        hub_server = pdu.hub_server if pdu.hub_server is not None else pdu.server
        # The hub is the creator's server, whose room ID it is (D04 §Auth Rules Algorithm, 3.2).
        if hub_server != origin or ids.server_of(pdu.room_id) != origin:
            raise InviteRefused(403, "M_FORBIDDEN", "the invite does not come from its hub")


def is_same_invite(known: OutsideMembership, pdu: Pdu) -> bool:
    """Whether an invite is the one that is known, completed anew because its room had moved on meanwhile."""
    if known.membership != "invite" or known.event is None:
        return False
    asked = parse_pdu(canonical_json.parse_object(known.event), pdu.version)
    return (asked.sender, asked.origin_server_ts, asked.content) == (
        pdu.sender, pdu.origin_server_ts, pdu.content,
    )  # fmt: skip


def _raise(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise InviteRefused(refusal.status, refusal.errcode, refusal.reason, refusal.retry_after_ms)


def _target(event: EventDraft | Lpdu) -> str:
    return event.state_key or ""


def _proxied(error: RemoteError) -> InviteRefused:
    """The target's refusal in a form safe to pass on (D04 §Invites: proxied, without excess). No
    status or code of authentication passes: whoever invited is not the one that was asked."""
    known = error.status in PROXIED_STATUS and _ERRCODE.fullmatch(error.errcode) is not None
    return InviteRefused(
        error.status if known else 502,
        error.errcode if known else "M_UNKNOWN",
        (error.error or "invite refused")[:200],
        error.retry_after_ms,
    )


def _with_target_signature(pdu: Pdu, answer: Mapping[str, Any], target: str) -> Pdu:
    """Only the target's signature is taken from its answer, and only if the event is ours (I2)."""
    try:
        returned = parse_pdu(answer, pdu.version)
    except ProtocolError:
        raise InviteRefused(502, "M_UNKNOWN", "the invited server returned a bad event") from None
    if returned.event_id != pdu.event_id:
        raise InviteRefused(502, "M_UNKNOWN", "the invited server returned another event")
    for key_id, signature in list(returned.fields["signatures"].get(target, {}).items())[:1]:
        if ids.is_key_id(key_id) and len(signature) <= 100:
            return pdu.with_signature(target, key_id, signature)
    return pdu
