"""Coming into and leaving rooms from outside (D04 §Room Membership): we are the hub, or an invited
user's server. Templates are hints, never hashed nor signed (attack T5)."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import orjson

from lmserver.federation_client.errors import FederationError
from lmserver.federation_server.event_lists import state_answer, wire
from lmserver.federation_server.once import Once
from lmserver.federation_server.paths import STABLE, UNSTABLE
from lmserver.federation_server.rooms_known import hub_view
from lmserver.federation_server.server_view import server_view
from lmserver.protocol import canonical_json, ids
from lmserver.protocol.auth_rules import authorize
from lmserver.protocol.errors import AuthRejected
from lmserver.protocol.events import EventDraft, Lpdu, is_lpdu_shaped, parse_lpdu
from lmserver.protocol.room_versions import room_version
from lmserver.protocol.room_view import RoomView
from lmserver.rooms import stripped_state
from lmserver.rooms.checking import Verifier
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.invites import InviteRefused, Invites
from lmserver.rooms.outcomes import HELD, Accepted, Outcome, Rejected, RoomBusy
from lmserver.storage import room_log
from lmserver.storage.database import Database
from lmserver.storage.room_log import StoredEvent
from lmserver.web.endpoint import Auth, Reply, Request, Streamed, endpoint
from lmserver.web.errors import ApiError, bad_json, bad_param, forbidden, limited, not_found, too_large
from lmserver.web.limits import RateLimiter

_RATE = "federation_membership"
_KNOCK_RATE = "federation_knock"
MAX_KNOCK = 24 * 1024
"""Bytes of a knock: a stranger's reason is read by everybody in the room (attack I7)."""


class MembershipEndpoints:
    """make_*, send_* and invite."""

    def __init__(
        self,
        db: Database,
        engine: RoomEngine,
        verifier: Verifier,
        invites: Invites,
        limiter: RateLimiter,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._engine = engine
        self._verifier = verifier
        self._invites = invites
        self._limiter = limiter
        self._clock = clock
        self._requests = Once(db, clock)

    async def close(self) -> None:
        """Let requests in progress finish."""
        await self._requests.close()

    # -- templates ------------------------------------------------------------------------------

    @endpoint("GET", STABLE + "/v1/make_join/{room_id}/{user_id}",
              UNSTABLE + "/make_join/{room_id}/{user_id}", auth=Auth.SERVER, rate=_RATE)  # fmt: skip
    async def make_join(self, request: Request) -> dict[str, Any]:
        """D04 §Joins."""
        return await self._template(request, "join")

    @endpoint("GET", STABLE + "/v1/make_leave/{room_id}/{user_id}",
              UNSTABLE + "/make_leave/{room_id}/{user_id}", auth=Auth.SERVER, rate=_RATE)  # fmt: skip
    async def make_leave(self, request: Request) -> dict[str, Any]:
        """D04 §Rejecting Invites and Leaves."""
        return await self._template(request, "leave")

    @endpoint("GET", STABLE + "/v1/make_knock/{room_id}/{user_id}",
              UNSTABLE + "/make_knock/{room_id}/{user_id}", auth=Auth.SERVER, rate=_KNOCK_RATE)  # fmt: skip
    async def make_knock(self, request: Request) -> dict[str, Any]:
        """D04 §Knocks."""
        return await self._template(request, "knock")

    async def _template(self, request: Request, membership: str) -> dict[str, Any]:
        """The partial LPDU, bare as the draft has it and wrapped as both peers have it."""
        user_id = request.params["user_id"]
        if not ids.is_user_id(user_id):
            raise bad_param("The user ID is not valid")
        if ids.server_of(user_id) != request.origin:
            raise forbidden("Not a user of the requesting server")
        view = await hub_view(self._engine, request.params["room_id"])
        version = view.version.id
        if membership != "leave" and version not in request.query.getall("ver", []):
            raise ApiError(
                400, "M_INCOMPATIBLE_ROOM_VERSION", "Room version not supported", {"room_version": version}
            )
        content = {"membership": membership}
        draft = EventDraft(view.room_id, "m.room.member", user_id, content, self._clock(), user_id)
        authorize(draft, view)
        template = {**draft.fields(), "hub_server": view.hub}
        return {**template, "event": template, "room_version": version}

    # -- the events made from them --------------------------------------------------------------

    @endpoint("POST", STABLE + "/v3/send_join/{txn_id}", UNSTABLE + "/send_join/{txn_id}",
              auth=Auth.SERVER, rate=_RATE, at_once=4)  # fmt: skip
    async def send_join(self, request: Request) -> Streamed:
        """D04 §Joins: the state before the join, and what authorizes it, in list order, so it can be
        replayed. What is kept of the answer is which event it is about: the rest follows from that."""

        async def which(lpdu: Lpdu, event_id: str) -> bytes:
            return orjson.dumps({"room_id": lpdu.room_id, "event_id": event_id})

        reply = await self._send(request, "join", which, kept_as="joined")
        joined = orjson.loads(reply.body)
        return await self._join_answer(request.origin, joined["room_id"], joined["event_id"])

    @endpoint("POST", STABLE + "/v3/send_leave/{txn_id}", UNSTABLE + "/send_leave/{txn_id}",
              auth=Auth.SERVER, rate=_RATE)  # fmt: skip
    async def send_leave(self, request: Request) -> Reply:
        """D04 §Rejecting Invites and Leaves."""

        async def nothing(lpdu: Lpdu, event_id: str) -> bytes:
            return b"{}"

        return await self._send(request, "leave", nothing)

    @endpoint("POST", STABLE + "/v3/send_knock/{txn_id}", UNSTABLE + "/send_knock/{txn_id}",
              auth=Auth.SERVER, rate=_KNOCK_RATE)  # fmt: skip
    async def send_knock(self, request: Request) -> Reply:
        """D04 §Knocks."""
        return await self._send(request, "knock", self._knock_answer)

    async def _send(
        self,
        request: Request,
        membership: str,
        answer: Callable[[Lpdu, str], Awaitable[bytes]],
        kept_as: str | None = None,
    ) -> Reply:
        body = await request.json()
        origin = request.origin

        async def work() -> bytes:
            view = await hub_view(self._engine, body.get("room_id"))
            lpdu = parse_lpdu(body, view.version)
            _check_sent(lpdu, membership, origin)
            await self._verify(lpdu)
            if membership == "knock":
                self._limit_knock(lpdu)
            if membership == "join":
                self._limit_joins(origin, lpdu, view)
            with _not_too_full():
                [outcome] = await self._engine.accept_lpdus(lpdu.room_id, [lpdu])
            return await answer(lpdu, _accepted(outcome).event_id)

        name = kept_as or f"send_{membership}"
        return await self._requests.stored(origin, name, request.params["txn_id"], work)

    def _limit_knock(self, lpdu: Lpdu) -> None:
        if len(lpdu.canonical) > MAX_KNOCK:
            raise too_large()
        wait = self._limiter.take("knock", lpdu.sender)
        if wait:
            raise limited(wait)

    def _limit_joins(self, origin: str, lpdu: Lpdu, view: RoomView) -> None:
        """As fast as one server may join the room, and as all may together (attack R7). Joins that
        the room refuses are not counted, or whoever may not come in could keep others out."""
        with contextlib.suppress(AuthRejected):
            authorize(lpdu, view)
            wait = self._limiter.take_all(
                [
                    ("federation_room_joins", f"{origin} {lpdu.room_id}", 1),
                    ("room_joins", lpdu.room_id, 1),
                ]
            )
            if wait:
                raise limited(wait)

    async def _verify(self, lpdu: Lpdu) -> None:
        [verdict] = await self._verifier.verify_events([lpdu], current_keys_only=True)
        if verdict is not None:
            raise forbidden(str(verdict))

    async def _join_answer(self, origin: str, room_id: str, event_id: str) -> Streamed:
        join = await room_log.event(self._db, event_id, room_id)
        room = await room_log.room(self._db, room_id)
        if join is None or join.position is None or room is None:
            raise not_found("The room is not here any more")
        version = room_version(room.room_version)
        view = await server_view(self._db, room, origin)

        def show(event: StoredEvent) -> bytes:
            return wire(event, version, hide=view.erases(event))

        beginning = (
            b'{"event":' + show(join)
            + b',"members_omitted":false,"origin":' + orjson.dumps(self._engine.our_name) + b","
        )  # fmt: skip
        return state_answer(self._db, room_id, join.position, beginning, "state", show, show)

    async def _knock_answer(self, lpdu: Lpdu, event_id: str) -> bytes:
        view = await hub_view(self._engine, lpdu.room_id)
        state = stripped_state.of_view(view)
        # The ID lets the knocker's server tell what a later denial is about.
        return canonical_json.encode(
            {"stripped_state": state, "knock_room_state": state, "org.lmserver.event_id": event_id}
        )

    # -- invites --------------------------------------------------------------------------------

    @endpoint("POST", STABLE + "/v3/invite/{txn_id}", UNSTABLE + "/invite/{txn_id}",
              auth=Auth.SERVER, rate=_RATE)  # fmt: skip
    async def invite(self, request: Request) -> Reply:
        """D04 §Invites: as the hub for a participant's LPDU, as the target's server for a PDU."""
        body = await request.json()
        origin, event = request.origin, body.get("event")
        if not isinstance(event, dict):
            raise bad_json("event is an object")
        fields: dict[str, Any] = event

        async def work() -> bytes:
            try:
                if is_lpdu_shaped(fields):
                    return await self._proxy(origin, fields, body.get("room_version"))
                pdu = await self._invites.receive(
                    origin, fields, body.get("room_version"), body.get("invite_room_state", [])
                )
            except InviteRefused as error:
                raise _refusal(error) from error
            except FederationError as error:
                raise ApiError(502, "M_UNKNOWN", "The invited server does not answer") from error
            return _both(pdu.canonical)

        return await self._requests.stored(origin, "invite", request.params["txn_id"], work)

    async def _proxy(self, origin: str, fields: dict[str, Any], version_id: object) -> bytes:
        view = await hub_view(self._engine, fields.get("room_id"))
        if version_id != view.version.id:
            raise bad_json("room_version is not the version of the room")
        lpdu = parse_lpdu(fields, view.version)
        if lpdu.membership != "invite" or not ids.is_user_id(lpdu.state_key):
            raise bad_json("not an invite")
        await self._verify(lpdu)
        with _not_too_full():
            outcome, pdu = await self._invites.proxy(origin, lpdu)
        accepted = _accepted(outcome)
        if pdu is not None and pdu.event_id == accepted.event_id:
            return _both(pdu.canonical)
        stored = await room_log.event(self._db, accepted.event_id, lpdu.room_id)
        if stored is None:
            raise not_found("Event not found")
        return _both(wire(stored, view.version))


def _check_sent(lpdu: Lpdu, membership: str, origin: str) -> None:
    """Everything is taken from the signed body and checked against who asks (attack T6)."""
    if lpdu.membership != membership or lpdu.state_key is None:
        raise bad_json(f"not a member event with membership {membership}")
    if lpdu.state_key != lpdu.sender:
        raise bad_json("state_key is not the sender")
    if lpdu.server != origin:
        raise forbidden("Not a user of the requesting server")


def _refusal(error: InviteRefused) -> ApiError:
    extra = {} if error.retry_after_ms is None else {"retry_after_ms": error.retry_after_ms}
    return ApiError(error.status, error.errcode, error.reason, extra)


@contextlib.contextmanager
def _not_too_full() -> Iterator[None]:
    """429 where a room takes no more for now: the other server tells its user to come back."""
    try:
        yield
    except RoomBusy:
        raise limited(1.0) from None


def _accepted(outcome: Outcome) -> Accepted:
    if isinstance(outcome, Rejected):
        status = {"M_NOT_FOUND": 404, "M_BAD_JSON": 400, "M_TOO_LARGE": 413}.get(outcome.errcode, 403)
        raise ApiError(503 if outcome == HELD else status, outcome.errcode, outcome.reason)
    return outcome


def _both(event: bytes) -> bytes:
    """The draft says `pdu`, both peers say `event`."""
    return b'{"event":' + event + b',"pdu":' + event + b"}"
