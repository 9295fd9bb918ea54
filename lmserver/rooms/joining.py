"""Joining a room on another server: the make and send handshake, and what we then believe.

The hub's answer is the foundation of everything we later check, so one bad state event refuses
the whole join (attack S3). Our own numbering of the list starts at the join.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from lmserver.federation_client.room_api import JoinResponse, RoomApi
from lmserver.protocol import hashes, ids
from lmserver.protocol.auth_rules import authorize, check_create
from lmserver.protocol.errors import AuthRejected, ProtocolError
from lmserver.protocol.events import EventDraft, Lpdu, Pdu
from lmserver.protocol.hub import state_event
from lmserver.protocol.joined_state import check_by_citations
from lmserver.protocol.participant import build_lpdu
from lmserver.protocol.room_versions import SUPPORTED, RoomVersion, room_version
from lmserver.protocol.room_view import RoomView, StateKey
from lmserver.protocol.signatures import SigningKey
from lmserver.rooms.checking import Verifier, check_pdus
from lmserver.rooms.turns import Turns
from lmserver.storage import outside, people, room_log, room_state
from lmserver.storage.database import Connection, Database
from lmserver.storage.room_log import NewEvent, RoomRow
from lmserver.storage.room_state import NewState

FIRST_POSITION = 2**40
"""Where a participant's list starts: history fetched later goes below, never negative."""
REJOIN_LEAP = 2**32
"""Positions left free between leaving and joining again, for the history in between."""
CHECKED_AT_ONCE = 100
"""Events judged before others get their turn: a large room must not stop the server."""
STORED_AT_ONCE = 2_000
"""Events in one statement: none may take longer than statements are waited for."""
MAX_STATE_EVENTS = 200_000
JOIN_WAIT_SECONDS = 20.0


class BadJoinResponse(ProtocolError):
    """The server that claims to be the hub answered with something we cannot build on."""


class Joining:
    """Joins rooms through their hub, one join for a room at a time."""

    def __init__(
        self,
        db: Database,
        key: SigningKey,
        api: RoomApi,
        verifier: Verifier,
        turns: Turns,
        publish: Callable[[Iterable[str]], None],
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._key = key
        self._api = api
        self._verifier = verifier
        self._turns = turns
        self._publish = publish
        self._clock = clock
        self._in_flight: dict[str, asyncio.Future[None]] = {}

    async def settled(self, room_id: str) -> None:
        """Wait for a join of the room that is under way: a hub sends events to us from the
        moment it has accepted the join, before we have its answer."""
        join = self._in_flight.get(room_id)
        if join is not None:
            await asyncio.wait([join], timeout=JOIN_WAIT_SECONDS)

    @asynccontextmanager
    async def alone(self, room_id: str) -> AsyncIterator[None]:
        """Hold back other joins of the room: the second user of a server needs no handshake."""
        while (other := self._in_flight.get(room_id)) is not None:
            await asyncio.wait([other])
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._in_flight[room_id] = done
        try:
            yield
        finally:
            del self._in_flight[room_id]
            done.set_result(None)

    async def join(self, server: str, draft: EventDraft) -> str:
        """Join through `server`, which has to be the hub, while nobody else joins the room;
        returns the join's event ID.

        Raises FederationError, BadJoinResponse, UnknownRoomVersion or another ProtocolError.
        """
        version_id = await self._api.make_membership(
            server, "join", draft.room_id, draft.sender, list(SUPPORTED)
        )
        version = room_version(version_id)
        # Nothing but the version is taken from the template (attacks T1-T3).
        lpdu = build_lpdu(draft, version, server, self._key)
        response = await self._api.send_join(server, version.id, lpdu.event_id, lpdu.fields)
        join, state = await self._check(response, version, server, lpdu)
        await self._db.run(lambda db: self.store(db, version, server, state, join))
        self._turns.forget(draft.room_id)
        self._publish([draft.room_id, draft.sender])
        return join.event_id

    async def _check(
        self, response: JoinResponse, version: RoomVersion, hub: str, lpdu: Lpdu
    ) -> tuple[Pdu, dict[StateKey, Pdu]]:
        raw = [response.event, *response.state, *response.auth_chain]
        if len(raw) > MAX_STATE_EVENTS:
            raise BadJoinResponse("the room has too much state")
        checked = await check_pdus(raw, version, lpdu.room_id, self._verifier)
        for item in checked:
            if isinstance(item, ProtocolError):
                raise BadJoinResponse(f"the hub answered with a bad event: {item}")
        pdus = [item for item in checked if isinstance(item, Pdu)]
        await self._check_state(pdus[1:], hub)
        join, chain = pdus[0], pdus[1 : 1 + len(response.state)]
        state = {(p.type, p.state_key): p for p in chain if p.state_key is not None}
        _check_join(join, lpdu)
        _check_create(state.get(("m.room.create", "")), version, hub)
        view = RoomView(
            lpdu.room_id, version, hub, join.prev_events[0], 0, {k: state_event(p) for k, p in state.items()}
        )
        try:
            authorize(join, view)
        except AuthRejected as error:
            raise BadJoinResponse("the join is not allowed by the state it came with") from error
        return join, state

    async def _check_state(self, came: Sequence[Pdu], hub: str) -> None:
        """State the rules allow, with nothing that they refused when we saw it (attacks S3, A22)."""
        by_id = {pdu.event_id: pdu for pdu in came}
        for count, pdu in enumerate(by_id.values()):
            if pdu.state_key is None:
                continue  # one peer sends its whole list
            try:
                check_by_citations(pdu, hub, by_id)
            except AuthRejected as error:
                raise BadJoinResponse("the state has an event that is not allowed") from error
            if count % CHECKED_AT_ONCE == 0:
                await asyncio.sleep(0)
        if came and await room_log.any_soft_failed(self._db, came[0].room_id, by_id):
            raise BadJoinResponse("the state has an event that was refused before")

    async def store(
        self, db: Connection, version: RoomVersion, hub: str, state: dict[StateKey, Pdu], join: Pdu
    ) -> None:
        """The join, the state before it and the room's row, in one transaction."""
        now = self._clock()
        await outside.lock_room(db, join.room_id)
        known = await room_log.lock_head(db, join.room_id)
        if known is None:
            position = FIRST_POSITION
            create = state["m.room.create", ""]
            row = RoomRow(join.room_id, version.id, hub, create.event_id, position, join.event_id, position)
            await room_log.create_room(db, row, now)
        elif await room_log.event_position(db, join.room_id, join.event_id) is not None:
            return  # the same answer again, after a crash or a retry
        elif await room_state.has_joined_user(db, join.room_id, self._key.server_name):
            return  # another process was first: the hub sends us this join as any other event
        else:
            position = known.head_position + REJOIN_LEAP
            await room_state.close_all(db, join.room_id, position - 1)
        pdus = list(state.values())
        for start in range(0, len(pdus), STORED_AT_ONCE):
            some = pdus[start : start + STORED_AT_ONCE]
            await room_log.add_outliers(db, join.room_id, [_row(p, None) for p in some], now)
            await room_state.begin_state(db, join.room_id, [_entry(p, position - 1) for p in some])
        await room_log.append(db, join.room_id, [_row(join, position)], now)
        await room_state.set_state(db, join.room_id, [_entry(join, position)])
        await self._note(db, join, state)
        await outside.forget_room(db, join.room_id)

    async def _note(self, db: Connection, join: Pdu, state: dict[StateKey, Pdu]) -> None:
        """For the user directory: who is in the room, and whether everybody may know."""
        members = [p for p in (*state.values(), join) if p.membership == "join"]
        people_in = {p.state_key: p.content for p in members if p.state_key is not None}
        await people.note(db, self._key.server_name, people_in)
        events = {key: state_event(p) for key, p in state.items()}
        view = RoomView(join.room_id, join.version, "", join.event_id, 0, events)
        await room_log.set_public(db, join.room_id, view.is_public())


def _check_join(join: Pdu, lpdu: Lpdu) -> None:
    """The event must be our LPDU with the hub's fields added, and nothing else (attack B9)."""
    same = (
        join.lpdu_hash == lpdu.lpdu_hash
        and join.hub_server == lpdu.hub_server
        and hashes.lpdu_content_hash(join.fields) == lpdu.lpdu_hash
        and len(join.prev_events) == 1
    )
    if not same:
        raise BadJoinResponse("the event is not the join we sent")


def _check_create(create: Pdu | None, version: RoomVersion, hub: str) -> None:
    if create is None:
        raise BadJoinResponse("the state has no m.room.create event")
    try:
        check_create(create)
    except AuthRejected as error:
        raise BadJoinResponse("the room's m.room.create event is not valid") from error
    if create.content.get("room_version") != version.id:
        raise BadJoinResponse("the room has another version than the hub said")
    if ids.server_of(create.sender) != hub:
        raise BadJoinResponse("the server is not the hub of the room")


def _row(pdu: Pdu, position: int | None) -> NewEvent:
    prev = None if position is None else pdu.prev_events[0]
    return NewEvent(
        pdu.event_id, position, prev, pdu.lpdu_hash, pdu.type, pdu.state_key, pdu.sender, pdu.canonical
    )


def _entry(pdu: Pdu, position: int) -> NewState:
    return NewState(pdu.type, pdu.state_key or "", pdu.event_id, pdu.membership, position)
