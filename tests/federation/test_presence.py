"""Presence: off unless wanted; then for those who share a room, here and on other servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lmserver.rooms import presence as presences
from lmserver.storage.database import Database
from tests.kit.edu_world import Device, Edu, EduWorld
from tests.kit.rooms import ALICE, BOB, EVIL, MALLORY, PARTICIPANT, ROOM
from tests.kit.waiting import HANGS, eventually, polling

ON = {"presence": {"enabled": True}}


@pytest.fixture
def config() -> dict[str, Any]:
    return ON


@pytest.fixture
async def world(db: Database, tmp_path: Path, config: dict[str, Any]) -> AsyncIterator[EduWorld]:
    async with EduWorld(db, tmp_path, **config) as made:
        await made.send()
        await made.send(origin=EVIL)
        yield made


def status(user_id: str) -> str:
    return f"/presence/{quote(user_id)}/status"


async def seen(device: Device, **query: Any) -> dict[str, Any]:
    """Sender to content of the next answer's presence."""
    answer = await device.sync(**query)
    return {event["sender"]: event["content"] for event in answer["presence"]["events"]}


def push(user_id: str = BOB, state: Any = "online", **more: Any) -> Edu:
    entry = {"user_id": user_id, "presence": state, **more}
    return {"type": "m.presence", "sender": user_id, "content": {"push": [entry]}}


# -- off ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}], ids=["off"])
async def test_switched_off_everybody_is_offline_and_nothing_is_an_error(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.ok("PUT", status(ALICE), {"presence": "online", "status_msg": "here"})
    await world.send(push())
    assert await seen(alice) == {}
    for user_id in (ALICE, BOB):
        assert await alice.ok("GET", status(user_id)) == {"presence": "offline"}
    assert world.received("m.presence") == []


# -- on -------------------------------------------------------------------------------------------


async def test_a_users_word_reaches_those_who_share_a_room_here_and_elsewhere(world: EduWorld) -> None:
    alice, carol, loner = [await world.device(name) for name in ("alice", "carol", "loner")]
    await carol.ok("POST", f"/join/{quote(ROOM)}", {})
    for device in (carol, loner):
        await device.sync()
    waiting = await polling(world.server.notifier, carol.user_id, seen(carol, timeout=60_000))
    await alice.ok("PUT", status(ALICE), {"presence": "unavailable", "status_msg": "at lunch"})
    async with asyncio.timeout(HANGS):
        found = await waiting
    assert found[ALICE]["presence"] == "unavailable" and found[ALICE]["status_msg"] == "at lunch"
    assert (await carol.ok("GET", status(ALICE)))["presence"] == "unavailable"
    assert ALICE not in await seen(loner)
    assert (await loner.call("GET", status(ALICE)))[0] == 403

    def told() -> list[Edu]:
        return [edu for edu in world.received("m.presence") if edu["sender"] == ALICE]

    await eventually(lambda: told() != [])
    edu = told()[-1]
    assert edu["sender_id"] == ALICE and edu["content"]["push"][0]["user_id"] == ALICE
    assert edu["content"]["push"][0]["presence"] == "unavailable"
    await eventually(lambda: world.received("m.presence", EVIL) != [])


async def test_syncing_is_being_online_until_a_while_after(
    world: EduWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, carol = await world.device("alice"), await world.device("carol")
    await carol.ok("POST", f"/join/{quote(ROOM)}", {})
    await carol.sync()
    await alice.ok("GET", "/sync?timeout=0&set_presence=offline")
    assert (await carol.ok("GET", status(ALICE)))["presence"] == "offline"
    await alice.ok("GET", "/sync?timeout=0")
    found = (await seen(carol))[ALICE]
    assert found["presence"] == "online" and found["currently_active"] is True
    monkeypatch.setattr(presences, "GONE_SECONDS", 0.2)
    await alice.ok("GET", "/sync?timeout=0")
    assert (await seen(carol, timeout=60_000))[ALICE]["presence"] == "offline"


async def test_remote_users_are_seen(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.sync()
    await world.send(
        {"edu_type": "m.presence", "content": push(last_active_ago=7, status_msg="hi")["content"]}
    )
    found = (await seen(alice))[BOB]
    assert found["presence"] == "online" and found["status_msg"] == "hi" and found["last_active_ago"] >= 7
    await world.send(push(state="offline"))
    assert (await seen(alice))[BOB]["presence"] == "offline"


async def test_b23_a_server_speaks_of_its_own_members_only(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.sync()
    inside = push()["content"]
    await world.send(
        push(MALLORY), push(ALICE), push(f"@stranger:{PARTICIPANT}"), push(state="invisible"), push(state=5),
        {"type": "m.presence", "sender": f"@eve:{PARTICIPANT}", "content": inside},
        {"edu_type": "m.presence", "content": push(MALLORY)["content"]},
        {"edu_type": "m.presence", "content": {"push": [5, {}, {"user_id": [BOB]}]}},
        {"edu_type": "m.presence", "content": {"push": {}}},
    )  # fmt: skip
    assert set(await seen(alice)) <= {ALICE}
    assert (await alice.ok("GET", status(BOB)))["presence"] == "offline"


async def test_r9_what_is_kept_is_bounded(world: EduWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presences, "MAX_USERS", 1)
    alice = await world.device("alice")
    await world.send(push())
    await world.send(push(MALLORY), origin=EVIL)
    assert (await alice.ok("GET", status(BOB)))["presence"] == "offline"
    assert (await alice.ok("GET", status(MALLORY)))["presence"] == "online"


@pytest.mark.parametrize(
    ("body", "expected"),
    [({}, 400), ({"presence": "here"}, 400), ({"presence": ["online"]}, 400),
     ({"presence": "online", "status_msg": "x" * 2000}, 400), ({"presence": "online", "status_msg": 5}, 400)],
)  # fmt: skip
async def test_mistakes_of_clients(world: EduWorld, body: Any, expected: int) -> None:
    alice = await world.device("alice")
    assert (await alice.call("PUT", status(ALICE), body))[0] == expected
    assert (await alice.call("PUT", status(BOB), {"presence": "online"}))[0] == 403
    assert (await alice.call("GET", status("nonsense")))[0] == 400
