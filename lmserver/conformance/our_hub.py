"""A persona as a hub: the endpoints of its rooms, and the events it owes the server under test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from lmserver.conformance import draft
from lmserver.conformance.draft import Event
from lmserver.conformance.exchange import Answer
from lmserver.conformance.model import Failed
from lmserver.conformance.our_room import OurRoom
from lmserver.conformance.persona import NOT_FOUND, Inbound, Persona, Reply
from lmserver.conformance.session import Session

MEMBERSHIPS = ("join", "leave", "knock")
FORBIDDEN: Reply = (403, {"errcode": "M_FORBIDDEN", "error": "The event is not validly signed"})
INCOMPATIBLE: Reply = (
    400, {"errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "Your server does not know the room's version"},
)  # fmt: skip


class OurHub:
    """Serves rooms by ID; LPDUs that are validly signed are appended and echoed."""

    def __init__(self, session: Session, persona: Persona) -> None:
        self.session = session
        self.persona = persona
        self.rooms: dict[str, OurRoom] = {}
        self._delivered: dict[str, int] = {}
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        persona.on_lpdu = self._lpdu
        for membership in MEMBERSHIPS:
            persona.handlers[f"make_{membership}"] = self._make
            persona.handlers[f"send_{membership}"] = self._send
        persona.handlers |= {
            "event": self._event, "state": self._state, "state_ids": self._state, "backfill": self._backfill,
        }  # fmt: skip

    def open(self, **content: Any) -> OurRoom:
        """A new room; see OurRoom."""
        room_id = f"!{self.session.fresh('room')}:{self.persona.name}"
        room = self.rooms[room_id] = OurRoom(self.persona, room_id, self.session.version, **content)
        return room

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- delivering ----------------------------------------------------------------------------------

    async def flush(self, room: OurRoom) -> None:
        """Deliver what the server has not got yet, in list order, one transaction at a time."""
        async with self._sending:
            while (done := self._delivered.get(room.room_id, 0)) < len(room.events):
                pdus = room.events[done : done + 50]
                answer = await self.session.transaction(pdus, persona=self.persona)
                answer.expect(200)
                self._delivered[room.room_id] = done + len(pdus)

    async def deliver(self, room: OurRoom, pdus: Iterable[Any], txn_id: str | None = None) -> Answer:
        """Send exactly these, after all that stands in the list before them."""
        sent = list(pdus)
        async with self._sending:
            answer = await self.session.transaction(sent, persona=self.persona, txn_id=txn_id)
        tail = [event for event in sent if event in room.events]
        if answer.status == 200 and tail:
            self._delivered[room.room_id] = room.events.index(tail[-1]) + 1
        return answer

    async def say(self, room: OurRoom, text: str) -> str:
        """A message of the hub's user, delivered; its ID."""
        pdu = room.append(room.message(text))
        await self.flush(room)
        return room.event_id(pdu)

    def _owe(self, room: OurRoom) -> None:
        async def flush() -> None:
            try:
                await self.flush(room)
            except Failed:
                return  # whoever waits for what it causes will say so

        task = asyncio.create_task(flush())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _lpdu(self, lpdu: Event) -> dict[str, Any] | None:
        room = self.rooms.get(str(lpdu.get("room_id")))
        if room is None or lpdu in room.lpdus:
            return None
        room.lpdus.append(lpdu)
        pdu = await self._taken(room, lpdu)
        if pdu is None:
            return {room.event_id(lpdu): {"error": "The event is not validly signed"}}
        self._owe(room)
        return None

    async def _taken(self, room: OurRoom, lpdu: Event) -> Event | None:
        """The LPDU appended: redacted if its hash is wrong, and not at all without a valid signature."""
        keys = await self.session.server_keys()
        message = draft.reference(lpdu, room.version)
        if not draft.has_signature(lpdu, draft.server_of(lpdu["sender"]), keys, message):
            return None
        right = lpdu["hashes"].get("lpdu") == {"sha256": draft.lpdu_hash(lpdu)}
        return room.append(lpdu if right else draft.redact(lpdu, room.version))

    # -- being asked ----------------------------------------------------------------------------------

    async def _make(self, request: Inbound) -> Reply:
        """The template, bare as the draft has it and wrapped as the known peers have it."""
        room = self.rooms.get(request.arguments[0])
        if room is None:
            return NOT_FOUND
        user, membership = request.arguments[1], request.endpoint.removeprefix("make_")
        if membership != "leave" and room.version not in request.query("ver"):
            return INCOMPATIBLE
        template = {
            "type": "m.room.member", "room_id": room.room_id, "sender": user, "state_key": user,
            "content": {"membership": membership}, "hub_server": self.persona.name,
        }  # fmt: skip
        return 200, {**template, "event": template, "room_version": room.version}

    async def _send(self, request: Inbound) -> Reply:
        lpdu = request.fields
        room = self.rooms.get(str(lpdu.get("room_id")))
        if room is None:
            return NOT_FOUND
        state = list(room.state.values())
        room.lpdus.append(lpdu)
        pdu = await self._taken(room, lpdu)
        if pdu is None:
            return FORBIDDEN
        if request.endpoint == "send_leave":
            return 200, {}
        if request.endpoint == "send_knock":
            return 200, {"stripped_state": room.stripped(), "knock_room_state": room.stripped()}
        self._delivered[room.room_id] = len(room.events)
        return 200, {"state": state, "auth_chain": room.auth_chain([*state, pdu]), "event": pdu}

    async def _event(self, request: Inbound) -> Reply:
        found = (room.find(request.arguments[0]) for room in self.rooms.values())
        return next(((200, event) for event in found if event is not None), NOT_FOUND)

    async def _state(self, request: Inbound) -> Reply:
        room, event_id = self._asked(request, "event_id")
        if room is None:
            return NOT_FOUND
        state = room.state_before(event_id)
        chain = room.auth_chain(state)
        if request.endpoint == "state":
            return 200, {"pdus": state, "auth_chain": chain}
        ids = [[room.event_id(event) for event in events] for events in (state, chain)]
        return 200, {"pdu_ids": ids[0], "auth_chain_ids": ids[1]}

    async def _backfill(self, request: Inbound) -> Reply:
        room, event_id = self._asked(request, "v")
        limit = next(iter(request.query("limit")), "")
        if room is None or not limit.isdecimal():
            return NOT_FOUND
        ids = [room.event_id(event) for event in room.events]
        last = ids.index(event_id) + 1
        return 200, {"pdus": room.events[max(0, last - int(limit)) : last]}

    def _asked(self, request: Inbound, name: str) -> tuple[OurRoom | None, str]:
        """The room in the path, if the event in the query is in it."""
        room = self.rooms.get(request.arguments[0]) if request.arguments else None
        event_id = next(iter(request.query(name)), "")
        return (room, event_id) if room is not None and room.find(event_id) else (None, event_id)
