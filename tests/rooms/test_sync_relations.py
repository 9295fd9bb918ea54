"""What is told with an event about those that relate to it is the same from memory and from the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.sync.recent import RecentRooms
from tests.kit.reading_world import CAROL, World
from tests.kit.rooms import ALICE, ROOM, draft

RELATIONS: dict[str, JsonObject] = {
    "m.replace": {"m.new_content": {"msgtype": "m.text", "body": "new"}},
    "m.reference": {},
    "m.thread": {},
    "m.annotation": {},
    "x.other": {},
}


async def relate(world: World, kind: str, parent: str, sender: str = ALICE) -> str:
    relates: JsonObject = {"rel_type": kind, "event_id": parent}
    if kind == "m.annotation":
        relates["key"] = "+"
    content = {"msgtype": "m.text", "body": f"* {kind}", "m.relates_to": relates, **RELATIONS[kind]}
    return await world.send(draft("m.room.message", content, sender=sender))


async def told(world: World, since: str, user: str = ALICE) -> list[JsonObject]:
    """The room's timeline as this user has it, without what depends on the moment."""
    answer = await world.sync(user, since)
    section = answer["rooms"]["join"][ROOM]["timeline"]
    for event in section["events"]:
        relations = event["unsigned"].get("m.relations", {})
        latest = relations.get("m.thread", {}).get("latest_event")
        for inner in (event, event["unsigned"].get("redacted_because"), relations.get("m.replace"), latest):
            if inner is not None:
                del inner["unsigned"]["age"]
    events: list[JsonObject] = section["events"]
    return events


@pytest.fixture
def from_memory(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The rooms of each answer that were told from memory."""
    found: list[set[str]] = []
    sections = RecentRooms.sections

    async def watched(self: RecentRooms, reader: Any, windows: Mapping[str, Any], *rest: Any) -> Any:
        made = await sections(self, reader, windows, *rest)
        found.append(set(made))
        return made

    monkeypatch.setattr(RecentRooms, "sections", watched)
    return found


@pytest.mark.parametrize("kind", RELATIONS)
async def test_both_ways_tell_the_same(world: World, kind: str, from_memory: list[set[str]]) -> None:
    await world.create()
    await world.member("join", CAROL)
    since = (await world.sync(ALICE))["next_batch"]
    parent, other = await world.say("parent", "other")
    child = await relate(world, kind, parent)
    live = await told(world, since)
    world.restart()
    assert await told(world, since) == live
    by_id = {event["event_id"]: event["unsigned"].get("m.relations", {}) for event in live}
    bundled = kind in ("m.replace", "m.reference", "m.thread")
    assert list(by_id) == [parent, other, child]
    assert (set(by_id[parent]), by_id[other]) == ({kind} if bundled else set(), {})
    # What is bundled with nothing is told from memory, with the same bytes for everybody.
    assert from_memory == ([] if bundled else [{ROOM}])


async def test_who_keeps_up_is_told_relations_from_memory(world: World, from_memory: list[set[str]]) -> None:
    """The event they are about is not in the answer: clients that have it put them together."""
    await world.create()
    await world.sync(ALICE)
    for kind in RELATIONS:
        [parent] = await world.say("parent")
        since = (await world.sync(ALICE))["next_batch"]
        await relate(world, kind, parent)
        assert len(await told(world, since)) == 1
    assert from_memory == [{ROOM}] * len(from_memory) and len(from_memory) >= len(RELATIONS)


async def test_relations_that_are_redacted_are_told_no_more(world: World) -> None:
    await world.create()
    since = (await world.sync(ALICE))["next_batch"]
    [parent] = await world.say("parent")
    edits = [await relate(world, "m.replace", parent) for _ in range(2)]
    live = await told(world, since)
    assert live[0]["unsigned"]["m.relations"]["m.replace"]["event_id"] == edits[1]
    await world.send(draft("m.room.redaction", {"redacts": edits[1]}))
    live = await told(world, since)
    assert live[0]["unsigned"]["m.relations"]["m.replace"]["event_id"] == edits[0]
    world.restart()
    assert await told(world, since) == live
