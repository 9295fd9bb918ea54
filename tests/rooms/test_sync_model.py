"""/sync against a model: whoever applies every answer has the server's state and history, without a
hole, whatever was played between two answers."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.outcomes import Rejected
from lmserver.storage import room_state
from tests.kit.reading_world import CAROL, DAVE, World
from tests.kit.rooms import ALICE, ROOM, draft, member, message

OTHER = "!other:hub.test"
ROOMS = (ROOM, OTHER)
TYPES = ("m.room.name", "m.room.topic", "x.y")


@dataclass
class RoomCopy:
    """What a client knows of a room: state by type and key, and event IDs without a hole up to now."""

    state: dict[tuple[str, str], str] = field(default_factory=dict)
    timeline: list[str] = field(default_factory=list)
    complete: bool = False


class Client:
    """Applies answers as the specification says, and nothing else."""

    def __init__(self, user: str, filter_: JsonObject, state_after: tuple[str, ...] = ()) -> None:
        self.user, self.filter, self.state_after = user, filter_, state_after
        self.since: str | None = None
        self.rooms: dict[str, RoomCopy] = {}

    async def sync(self, world: World, *, skip: str | None = None) -> None:
        """`skip` names an event the client is made to miss."""
        answer = await world.sync(
            self.user, self.since, device=self.user, filter_=self.filter, state_after=self.state_after
        )
        self.since = answer["next_batch"]
        for gone in ("leave", "invite"):  # an invite may follow a leave in one answer
            for room_id in answer["rooms"].get(gone, {}):
                self.rooms.pop(room_id, None)
        for room_id, section in answer["rooms"].get("join", {}).items():
            self._apply(self.rooms.setdefault(room_id, RoomCopy()), section, skip)

    def _apply(self, copy: RoomCopy, section: JsonObject, skip: str | None) -> None:
        timeline = [e for e in section["timeline"]["events"] if e["event_id"] != skip]
        if section["timeline"]["limited"]:
            copy.timeline = []
        copy.timeline += [e["event_id"] for e in timeline]
        if self.state_after:
            assert "state" not in section
            _set(copy.state, section[self.state_after[0]]["events"])
        else:
            _set(copy.state, section["state"]["events"])
            _set(copy.state, (e for e in timeline if "state_key" in e))


def _set(state: dict[tuple[str, str], str], events: Iterable[Any]) -> None:
    for event in events:
        state[event["type"], event["state_key"]] = event["event_id"]


async def problems(world: World, client: Client) -> list[str]:
    """Where a client's copy differs from the server."""
    found: list[str] = []
    joined = set(await room_state.joined_rooms(world.db, client.user)) & set(ROOMS)
    if joined != set(client.rooms):
        found.append(f"{client.user} is in {joined} and knows {set(client.rooms)}")
    for room_id in joined & set(client.rooms):
        copy = client.rooms[room_id]
        state = await room_state.current_state(world.db, room_id)
        truth = {e.event_id for e in state}
        if set(copy.state.values()) != truth:
            found.append(f"{client.user}: {len(truth ^ set(copy.state.values()))} state events differ")
        access = await world.access(client.user, room_id)
        page = await world.reading.backwards(access, access.room.head_position, 1000, lambda e: True)
        visible = [e.event_id for e in reversed(page.events)]
        if visible[len(visible) - len(copy.timeline) :] != copy.timeline:
            found.append(f"{client.user}: the timeline is not the end of the list")
    return found


async def play(world: World, dice: random.Random) -> None:
    """One thing somebody does; what the rules forbid is not done."""
    room_id, who = dice.choice(ROOMS), dice.choice((ALICE, ALICE, CAROL, DAVE))
    match dice.randrange(8):
        case 0:
            event = member(dice.choice(("join", "leave")), sender=dice.choice((CAROL, DAVE)), room_id=room_id)
        case 1:
            event = member(
                dice.choice(("ban", "leave", "invite")),
                sender=ALICE,
                target=dice.choice((CAROL, DAVE)),
                room_id=room_id,
            )
        case 2 | 3:
            content = {"n": dice.random() > 2, "v": str(dice.randrange(1000))}
            event = draft(dice.choice(TYPES), content, sender=ALICE, state_key="", room_id=room_id)
        case _:
            event = message(str(dice.randrange(1000)), sender=who, room_id=room_id)
    [outcome] = await world.engine.send([event])
    assert isinstance(outcome, Rejected) or outcome


def clients() -> list[Client]:
    few: JsonObject = {"room": {"timeline": {"limit": 3}}}
    some: JsonObject = {"room": {"timeline": {"limit": 100}}}
    return [
        Client(ALICE, few),
        Client(CAROL, few),
        Client(CAROL, some, ("state_after",)),
        Client(DAVE, few, ("org.matrix.msc4222.state_after",)),
        Client(DAVE, some),
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("visibility", ["shared", "joined"])
async def test_a_client_that_applies_every_answer_has_all(world: World, seed: int, visibility: str) -> None:
    dice = random.Random(seed)
    for room_id in ROOMS:
        await world.create(room_id, visibility=visibility)
    everybody = clients()
    for _ in range(40):
        for _ in range(dice.choice((0, 1, 1, 2, 5, 9))):
            await play(world, dice)
        if dice.random() < 0.1:
            world.restart()
        for client in everybody:
            if dice.random() < 0.5:
                await client.sync(world)
    for client in everybody:
        await client.sync(world)
        assert await problems(world, client) == []


async def test_the_model_finds_an_event_that_was_skipped(world: World) -> None:
    """The control: a client that misses one message, or one state event, is not in order."""
    for room_id in ROOMS:
        await world.create(room_id)
    for skipped in (message("lost"), draft("m.room.name", {"name": "lost"}, state_key="")):
        client = Client(ALICE, {"room": {"timeline": {"limit": 100}}})
        await client.sync(world)
        assert await problems(world, client) == []
        lost = await world.send(skipped)
        await world.say("after")
        await client.sync(world, skip=lost)
        assert await problems(world, client) != []


async def test_the_model_with_members_loaded_lazily(world: World) -> None:
    """A lazy client has every sender of its timeline and all state that is no member's."""
    dice = random.Random(7)
    for room_id in ROOMS:
        await world.create(room_id)
    lazy: JsonObject = {"room": {"timeline": {"limit": 3}, "state": {"lazy_load_members": True}}}
    client = Client(ALICE, lazy)
    for _ in range(40):
        for _ in range(dice.choice((0, 1, 1, 2, 5, 9))):
            await play(world, dice)
        if dice.random() < 0.1:
            world.restart()
        await client.sync(world)
        for room_id, copy in client.rooms.items():
            current = {(e.event_id) for e in await room_state.current_state(world.db, room_id)}
            for (type_, key), event_id in copy.state.items():
                assert event_id in current or type_ == "m.room.member", (room_id, type_, key)
            access = await world.access(ALICE, room_id)
            page = await world.reading.backwards(
                access, access.room.head_position, len(copy.timeline), lambda e: True
            )
            senders = {e.sender for e in page.events}
            assert senders <= {key for type_, key in copy.state if type_ == "m.room.member"}
