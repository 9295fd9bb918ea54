"""Rooms for tests: keys that never change, a clock that never stands still, and a room builder."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from itertools import count
from typing import Any

from lmserver.protocol import hub
from lmserver.protocol.events import EventDraft, Lpdu, Pdu
from lmserver.protocol.participant import build_lpdu
from lmserver.protocol.room_versions import LM_02, RoomVersion
from lmserver.protocol.room_view import RoomView
from lmserver.protocol.signatures import SigningKey

HUB = "hub.test"
PARTICIPANT = "participant.test"
EVIL = "evil.test"

ALICE = f"@alice:{HUB}"
BOB = f"@bob:{PARTICIPANT}"
MALLORY = f"@mallory:{EVIL}"
ROOM = f"!room:{HUB}"

_clock = count(1_700_000_000_000)


def now() -> int:
    """Milliseconds that grow with every call."""
    return next(_clock)


def key_of(server: str) -> SigningKey:
    """The same key for a server name in every test."""
    return SigningKey.from_seed(server, "ed25519:t1", sha256(server.encode()).digest())


KEYS = {name: {"ed25519:t1": key_of(name).verify_key} for name in (HUB, PARTICIPANT, EVIL)}


def draft(
    type_: str,
    content: dict[str, Any] | None = None,
    *,
    sender: str = ALICE,
    state_key: str | None = None,
    room_id: str = ROOM,
) -> EventDraft:
    return EventDraft(room_id, type_, sender, {} if content is None else content, now(), state_key)


def message(text: str = "hi", *, sender: str = ALICE, room_id: str = ROOM) -> EventDraft:
    return draft("m.room.message", {"msgtype": "m.text", "body": text}, sender=sender, room_id=room_id)


def member(
    membership: str, *, sender: str = ALICE, target: str | None = None, room_id: str = ROOM
) -> EventDraft:
    return draft(
        "m.room.member",
        {"membership": membership},
        sender=sender,
        state_key=target or sender,
        room_id=room_id,
    )


def lpdu(of: EventDraft, *, hub_server: str = HUB, version: RoomVersion = LM_02) -> Lpdu:
    """The draft as its sender's server would send it to the hub."""
    return build_lpdu(of, version, hub_server, key_of(of.server))


def opening(
    *,
    creator: str = ALICE,
    room_id: str = ROOM,
    join_rule: str = "public",
    levels: dict[str, Any] | None = None,
    version: RoomVersion = LM_02,
) -> list[EventDraft]:
    """The first events of a room."""
    power = {"users": {creator: 100}} if levels is None else levels
    return [
        draft("m.room.create", {"room_version": version.id}, sender=creator, state_key="", room_id=room_id),
        member("join", sender=creator, room_id=room_id),
        draft("m.room.power_levels", power, sender=creator, state_key="", room_id=room_id),
        draft("m.room.join_rules", {"join_rule": join_rule}, sender=creator, state_key="", room_id=room_id),
    ]


class RoomBuilder:
    """A room made by its hub, kept in memory: `view` is its head, `pdus` the list."""

    def __init__(self, events: Iterable[EventDraft] | None = None, *, version: RoomVersion = LM_02) -> None:
        first, *rest = opening() if events is None else events
        self.key = key_of(first.server)
        created = hub.create_event(first, version, self.key)
        self.view: RoomView = hub.view_of_create(created)
        self.pdus: list[Pdu] = [created]
        for event in rest:
            self.add(event)

    def add(self, event: EventDraft | Lpdu) -> Pdu:
        """Append an event the rules allow."""
        if isinstance(event, EventDraft) and event.server != self.key.server_name:
            event = lpdu(event, hub_server=self.key.server_name)
        decision = hub.decide(event, self.view, self.key)
        assert isinstance(decision, hub.Append), decision
        return self.force(decision.pdu)

    def force(self, pdu: Pdu) -> Pdu:
        """Append whatever a dishonest hub would."""
        self.view = hub.advance(self.view, pdu)
        self.pdus.append(pdu)
        return pdu

    def decide(self, event: EventDraft | Lpdu) -> hub.Decision:
        return hub.decide(event, self.view, self.key)
