"""Attack C6: every endpoint that reads a room, for those who are not in it, are no more, or were
thrown out, under every history visibility. Nothing said or set after the end may come through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kit.room_clients import RoomServer, User

VISIBILITIES = ["shared", "invited", "joined", "world_readable"]
SECRET = "the-secret"


async def everything(user: User, room_id: str, secrets: list[str]) -> dict[str, Any]:
    """What each reading endpoint says: name to (status, body as text)."""
    paths: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
        "messages b": (("/messages",), {"dir": "b", "limit": "1000"}),
        "messages f": (("/messages",), {"dir": "f", "limit": "1000"}),
        "messages far": (("/messages",), {"dir": "b", "from": "p99999", "limit": "1000"}),
        "state": (("/state",), {}),
        "name": (("/state/m.room.name",), {}),
        "topic": (("/state/m.room.topic/",), {"format": "event"}),
        "members": (("/members",), {}),
        "members at": (("/members",), {"at": "p99999"}),
        "joined_members": (("/joined_members",), {}),
        "aliases": (("/aliases",), {}),
    }
    for index, event_id in enumerate(secrets):
        paths[f"event {index}"] = (("/event", event_id), {})
        paths[f"context {index}"] = (("/context", event_id), {"limit": "100"})
    answers: dict[str, Any] = {}
    for name, (parts, query) in paths.items():
        answer = await user.get("/rooms", room_id, *parts, **query)
        answers[name] = (answer.status, json.dumps(answer.body))
    leaving = '{"room":{"include_leave":true,"timeline":{"limit":100}}}'
    answers["sync"] = (200, json.dumps(await user.sync(filter=leaving)))
    answers["sync full"] = (200, json.dumps(await user.sync(filter=leaving, full_state="true")))
    return answers


async def say_secrets(alice: User, room_id: str) -> list[str]:
    """A message, a state event and a new member, all named SECRET."""
    said = await alice.say(room_id, SECRET)
    named = await alice.put("/rooms", room_id, "/state/m.room.name", body={"name": SECRET})
    topic = await alice.put("/rooms", room_id, "/state/m.room.topic", body={"topic": SECRET})
    invited = await alice.change(room_id, "invite", user_id=f"@{SECRET}:hub.test")
    assert invited.status == 200
    return [said, named.body["event_id"], topic.body["event_id"]]


async def make(server: RoomServer, visibility: str) -> tuple[User, str]:
    alice = server.user("alice")
    setting = {"type": "m.room.history_visibility", "content": {"history_visibility": visibility}}
    return alice, await alice.create(preset="public_chat", initial_state=[setting])


@pytest.mark.parametrize("visibility", VISIBILITIES)
async def test_a_stranger(server: RoomServer, visibility: str) -> None:
    alice, room_id = await make(server, visibility)
    secrets = await say_secrets(alice, room_id)
    await server.world.settle()
    answers = await everything(server.user("eve"), room_id, secrets)
    if visibility == "world_readable":
        assert SECRET in answers["messages b"][1] and answers["joined_members"][0] == 403
        return
    for name, (status, text) in answers.items():
        assert SECRET not in text, name
        assert status == 403 or name.startswith("sync"), name
    unknown = await everything(server.user("eve"), "!none:hub.test", secrets)
    assert {k: v for k, v in unknown.items() if "sync" not in k} == {
        k: v for k, v in answers.items() if "sync" not in k
    }


@pytest.mark.parametrize("ending", ["leave", "kick", "ban", "ban after leave"])
@pytest.mark.parametrize("visibility", VISIBILITIES[:3])
async def test_c6_after_the_end(server: RoomServer, visibility: str, ending: str) -> None:
    alice, room_id = await make(server, visibility)
    bob = server.user("bob")
    await bob.change(room_id, "join")
    seen = await alice.say(room_id, "seen")
    if ending in ("leave", "ban after leave"):
        await bob.change(room_id, "leave")
    else:
        await alice.change(room_id, ending, user_id=bob.id)
    secrets = await say_secrets(alice, room_id)
    if ending == "ban after leave":
        await alice.change(room_id, "ban", user_id=bob.id)
    await server.world.settle()
    answers = await everything(bob, room_id, secrets)
    for name, (_, text) in answers.items():
        assert SECRET not in text, name
    assert seen in answers["messages b"][1] and seen in answers["messages far"][1]
    assert {answers[f"event {i}"][0] for i in range(3)} == {404}
    assert answers["state"][0] == 200 and answers["members"][0] == 200
    assert answers["joined_members"][0] == 403
    around = await bob.get("/rooms", room_id, "/context", seen, limit="100")
    assert around.status == 200 and SECRET not in json.dumps(around.body)


@pytest.mark.parametrize(("visibility", "sees"), [("shared", True), ("invited", False), ("joined", False)])
async def test_before_the_join(server: RoomServer, visibility: str, sees: bool) -> None:
    alice, room_id = await make(server, visibility)
    said = await alice.say(room_id, SECRET)
    bob = server.user("bob")
    await bob.change(room_id, "join")
    await server.world.settle()
    answers = await everything(bob, room_id, [said])
    for name in ("messages b", "messages f", "event 0", "context 0", "sync"):
        assert (SECRET in answers[name][1]) is sees, name


@pytest.mark.parametrize(("visibility", "sees"), [("shared", False), ("invited", True), ("joined", False)])
async def test_while_invited(server: RoomServer, visibility: str, sees: bool) -> None:
    alice, room_id = await make(server, visibility)
    bob = server.user("bob")
    await alice.change(room_id, "invite", user_id=bob.id)
    said = await alice.say(room_id, SECRET)
    await server.world.settle()
    answers = await everything(bob, room_id, [said])
    for name in ("messages b", "event 0", "context 0"):
        assert (SECRET in answers[name][1]) is sees, name
    assert SECRET not in answers["sync"][1] and answers["state"][0] == 403


async def test_c7_redacted_content_is_gone_everywhere(server: RoomServer) -> None:
    """Attack C7."""
    alice, room_id = await make(server, "shared")
    bob = server.user("bob")
    await bob.change(room_id, "join")
    before = (await bob.sync())["next_batch"]
    secrets = [await alice.say(room_id, SECRET)]
    named = await alice.put("/rooms", room_id, "/state/m.room.name", body={"name": SECRET})
    secrets.append(named.body["event_id"])
    await alice.put("/rooms", room_id, "/state/m.room.topic", body={"topic": "t"})
    for index, event_id in enumerate(secrets):
        await alice.put("/rooms", room_id, "/redact", event_id, f"r{index}")
    await server.world.settle()
    for name, (_, text) in (await everything(bob, room_id, secrets)).items():
        assert SECRET not in text, name
    assert SECRET not in json.dumps(await bob.sync(before))
