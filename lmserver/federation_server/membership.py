"""make_* and send_*, and invites (D04 §Room Membership)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from lmserver.federation_client.errors import FederationError
from lmserver.federation_server.paths import STABLE, UNSTABLE
from lmserver.protocol import ids
from lmserver.protocol.auth_rules import authorize
from lmserver.protocol.events import EventDraft, Lpdu, is_lpdu_shaped, parse_lpdu
from lmserver.protocol.room_versions import room_version
from lmserver.protocol.room_view import RoomView
from lmserver.rooms import server_reading, stripped_state
from lmserver.rooms.checking import Verifier
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.invites import InviteRefused, Invites
from lmserver.rooms.outcomes import Rejected
from lmserver.rooms.server_reading import ServerReading
from lmserver.storage import inbound
from lmserver.storage.database import Database
from lmserver.storage.inbound import StoredResponse
from lmserver.web.endpoint import Auth, Reply, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, forbidden, not_found

MAX_TXN_ID = 255


class MembershipEndpoints:
    """How servers that are not in a room get in and out."""

    def __init__(
        self,
        db: Database,
        engine: RoomEngine,
        reading: ServerReading,
        verifier: Verifier,
        invites: Invites,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._engine = engine
        self._reading = reading
        self._verifier = verifier
        self._invites = invites
        self._clock = clock

    # -- make: templates, never hashed, never signed (attack T5) ---------------------------------

    @endpoint("GET", STABLE + "/v1/make_join/{room_id}/{user_id}", auth=Auth.SERVER)
    async def make_join(self, request: Request) -> dict[str, Any]:
        """A template for a join (D04 §Joins)."""
        return await self._make(request, "join")

    @endpoint("GET", STABLE + "/v1/make_leave/{room_id}/{user_id}", auth=Auth.SERVER)
    async def make_leave(self, request: Request) -> dict[str, Any]:
        """A template for a leave (D04 §Rejecting Invites and Leaves)."""
        return await self._make(request, "leave")

    @endpoint("GET", STABLE + "/v1/make_knock/{room_id}/{user_id}", auth=Auth.SERVER)
    async def make_knock(self, request: Request) -> dict[str, Any]:
        """A template for a knock (D04 §Knocks)."""
        return await self._make(request, "knock")

    async def _make(self, request: Request, membership: str) -> dict[str, Any]:
        user_id = request.params["user_id"]
        if not ids.is_user_id(user_id) or ids.server_of(user_id) != request.origin:
            raise forbidden("The user is not of the requesting server")
        view = await self._hub_view(request.params["room_id"])
        if membership != "leave" and view.version.id not in request.query.getall("ver", []):
            raise ApiError(
                400,
                "M_INCOMPATIBLE_ROOM_VERSION",
                "The room has a version the requesting server does not know",
                {"room_version": view.version.id},
            )
        draft = EventDraft(
            view.room_id, "m.room.member", user_id, {"membership": membership}, self._clock(), user_id
        )
        authorize(draft, view)
        template = {
            "type": draft.type,
            "room_id": draft.room_id,
            "sender": user_id,
            "state_key": user_id,
            "content": draft.content,
        }
        return {**template, "event": template, "room_version": view.version.id}

    async def _hub_view(self, room_id: str) -> RoomView:
        view = await self._engine.view(room_id) if ids.is_room_id(room_id) else None
        if view is None:
            raise not_found("Room not known")
        if view.hub != self._engine.our_name:
            raise ApiError(
                400,
                "M_WRONG_SERVER",
                "This server is not the hub of the room",
                {"org.lmserver.hub": view.hub},
            )
        return view

    # -- send -----------------------------------------------------------------------------------

    @endpoint("POST", STABLE + "/v3/send_join/{txn_id}", UNSTABLE + "/send_join/{txn_id}", auth=Auth.SERVER)
    async def send_join(self, request: Request) -> Reply:
        """Append a join and answer with the room's state (D04 §Joins)."""
        return await self._once(request, "send_join", self._send_join)

    @endpoint("POST", STABLE + "/v3/send_leave/{txn_id}", UNSTABLE + "/send_leave/{txn_id}", auth=Auth.SERVER)
    async def send_leave(self, request: Request) -> Reply:
        """Append a leave: an invite rejected, a knock retracted."""
        return await self._once(request, "send_leave", self._send_leave)

    @endpoint("POST", STABLE + "/v3/send_knock/{txn_id}", UNSTABLE + "/send_knock/{txn_id}", auth=Auth.SERVER)
    async def send_knock(self, request: Request) -> Reply:
        """Append a knock and answer with stripped state (D04 §Knocks)."""
        return await self._once(request, "send_knock", self._send_knock)

    async def _once(
        self, request: Request, name: str, handle: Callable[[Request], Awaitable[bytes]]
    ) -> Reply:
        """The same transaction ID of an origin gets the same answer; only successes are kept, so
        that a refused join may be tried again under its event ID."""
        txn_id = request.params["txn_id"]
        if not txn_id or len(txn_id) > MAX_TXN_ID or "\0" in txn_id:
            raise bad_json("the transaction ID is not valid")
        stored = await inbound.response(self._db, request.origin, name, txn_id)
        if stored is None:
            body = await handle(request)
            stored = StoredResponse(200, body)
            await inbound.finish(self._db, request.origin, name, txn_id, stored, self._clock())
        return Reply(stored.status, stored.body)

    async def _send_join(self, request: Request) -> bytes:
        lpdu, view = await self._lpdu(request, "join")
        event_id = await self._append(lpdu)
        state = await self._reading.state_for_join(lpdu.room_id, event_id)
        chain = await self._reading.auth_chain(lpdu.room_id, state)
        event = await self._stored(lpdu.room_id, event_id, view)
        return orjson.dumps(
            {
                "event": event,
                "state": [server_reading.fields_of(e, view.version) for e in state],
                "auth_chain": [server_reading.fields_of(e, view.version) for e in chain],
                "origin": self._engine.our_name,
                "members_omitted": False,
            }
        )

    async def _send_leave(self, request: Request) -> bytes:
        lpdu, _ = await self._lpdu(request, "leave")
        await self._append(lpdu)
        return b"{}"

    async def _send_knock(self, request: Request) -> bytes:
        lpdu, view = await self._lpdu(request, "knock")
        await self._append(lpdu)
        state = stripped_state.of_view(view)
        return orjson.dumps({"stripped_state": state, "knock_room_state": state})

    async def _lpdu(self, request: Request, membership: str) -> tuple[Lpdu, RoomView]:
        """The body as an LPDU of the requesting server's user (attack T6): room, user and
        membership are taken from what was signed and from nowhere else."""
        body = await request.json()
        room_id = body.get("room_id")
        view = await self._hub_view(room_id if isinstance(room_id, str) else "")
        if not is_lpdu_shaped(body):
            raise bad_json("an LPDU is expected")
        lpdu = parse_lpdu(body, view.version)
        if lpdu.type != "m.room.member" or lpdu.membership != membership or lpdu.state_key != lpdu.sender:
            raise bad_json(f"the event is not a {membership} of its sender")
        if lpdu.server != request.origin:
            raise forbidden("The event is not of the requesting server")
        [verdict] = await self._verifier.verify_events([lpdu])
        if verdict is not None:
            raise forbidden(str(verdict))
        return lpdu, view

    async def _append(self, lpdu: Lpdu) -> str:
        [outcome] = await self._engine.accept_lpdus(lpdu.room_id, [lpdu])
        if isinstance(outcome, Rejected):
            raise _refusal(outcome)
        return outcome.event_id

    async def _stored(self, room_id: str, event_id: str, view: RoomView) -> dict[str, Any]:
        found = await self._reading.stored(room_id, event_id)
        return server_reading.fields_of(found, view.version)

    # -- invite ---------------------------------------------------------------------------------

    @endpoint("POST", STABLE + "/v3/invite/{txn_id}", UNSTABLE + "/invite/{txn_id}", auth=Auth.SERVER)
    async def invite(self, request: Request) -> Reply:
        """An invite: an LPDU to pass on as hub, or a PDU for one of our users (D04 §Invites)."""
        return await self._once(request, "invite", self._invite)

    async def _invite(self, request: Request) -> bytes:
        body = await request.json()
        event = body.get("event")
        if not isinstance(event, dict):
            raise bad_json("event is missing")
        try:
            if is_lpdu_shaped(event):
                return await self._proxy(request.origin, event, body.get("room_version"))
            pdu = await self._invites.receive(
                request.origin, event, body.get("room_version"), body.get("invite_room_state")
            )
        except InviteRefused as refused:
            raise ApiError(refused.status, refused.errcode, refused.reason) from refused
        # Both names: the draft says `pdu`, the two existing peers `event`.
        return orjson.dumps({"pdu": pdu.fields, "event": pdu.fields})

    async def _proxy(self, origin: str, event: dict[str, Any], version_id: object) -> bytes:
        lpdu = parse_lpdu(event, room_version(version_id))
        [verdict] = await self._verifier.verify_events([lpdu])
        if verdict is not None:
            raise forbidden(str(verdict))
        try:
            outcome, pdu = await self._invites.proxy(origin, lpdu)
        except FederationError as error:
            raise ApiError(502, "M_UNKNOWN", "The invited user's server cannot be reached") from error
        if isinstance(outcome, Rejected):
            raise _refusal(outcome)
        view = await self._hub_view(lpdu.room_id)
        fields = pdu.fields if pdu is not None else await self._stored(lpdu.room_id, outcome.event_id, view)
        return orjson.dumps({"pdu": fields, "event": fields})


def _refusal(outcome: Rejected) -> ApiError:
    status = {"M_NOT_FOUND": 404, "M_BAD_JSON": 400, "M_TOO_LARGE": 413}.get(outcome.errcode, 403)
    return ApiError(status, outcome.errcode, outcome.reason)
