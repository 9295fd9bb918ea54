"""Device lists between servers: who is told of a change, and what an update from elsewhere does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lmserver.accounts.device_lists import WAKES, DeviceLists
from lmserver.storage.database import Database
from tests.kit.cross_signing import Identity
from tests.kit.edu_world import Edu, EduWorld
from tests.kit.rooms import ALICE, BOB, EVIL, MALLORY, PARTICIPANT, ROOM, lpdu, member, now
from tests.kit.waiting import HANGS, eventually, polling

LIST = "m.device_list_update"


@pytest.fixture
async def world(db: Database, tmp_path: Path) -> AsyncIterator[EduWorld]:
    async with EduWorld(db, tmp_path) as made:
        yield made


def update(user_id: str = BOB, **changes: Any) -> Edu:
    """The draft's form, in which the user is the sender."""
    return {"type": LIST, "sender": user_id, "content": {"changed": [], "removed": ["X"]}, **changes}


# -- ours -----------------------------------------------------------------------------------------


async def test_new_keys_and_a_logout_are_told_to_every_server_once(world: EduWorld) -> None:
    """D04 §Device Info Publishing: device objects as the device signed them, and IDs of those gone; and
    the same as Matrix says it, with the number of each change and of the one before."""
    alice = await world.device("alice")
    keys = await alice.upload_keys()
    await alice.upload_keys(keys)
    await alice.ok("POST", "/logout")
    for peer in (PARTICIPANT, EVIL):
        await eventually(lambda peer=peer: len(world.received(LIST, peer)) == 2)  # type: ignore[misc]
        both = {"type": LIST, "sender": ALICE, "sender_id": ALICE}
        matrix = {"user_id": ALICE, "device_id": "D"}
        assert world.received(LIST, peer) == [
            {**both, "content": {
                **matrix, "changed": [keys], "removed": [], "deleted": False, "keys": keys,
                "stream_id": 1, "prev_id": [],
            }},
            {**both, "content": {
                **matrix, "changed": [], "removed": ["D"], "deleted": True, "stream_id": 2, "prev_id": [1],
            }},
        ]  # fmt: skip


async def test_only_servers_with_whom_a_room_is_shared_are_told(world: EduWorld) -> None:
    await world.arena.engine.send([member("ban", target=MALLORY)])
    alone, alice = await world.device("loner"), await world.device("alice")
    await alone.upload_keys()
    await alice.upload_keys()
    await eventually(lambda: world.received(LIST) != [])
    assert [edu["sender"] for edu in world.received(LIST)] == [ALICE]
    assert world.received(LIST, EVIL) == []


async def test_a_device_without_keys_concerns_nobody(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.ok("POST", "/logout")
    assert await world.db.fetchval("SELECT count(*) FROM outbound_edus") == 0


@pytest.mark.parametrize("junk", [{"x": 1.5}, {"x": 2**60}, {"x": "y" * 70_000}])
async def test_c9_keys_that_other_servers_would_not_take_are_refused(world: EduWorld, junk: Edu) -> None:
    alice = await world.device("alice")
    keys = {"user_id": ALICE, "device_id": "D", "algorithms": [], "keys": junk, "signatures": {}}
    for body in ({"device_keys": keys}, {"one_time_keys": {"a:b": junk}}):
        status, answer = await alice.call("POST", "/keys/upload", body)
        assert (status, answer["errcode"]) in ((400, "M_BAD_JSON"), (413, "M_TOO_LARGE"))
    assert await world.db.fetchval("SELECT count(*) FROM outbound_edus") == 0


async def test_nothing_is_left_of_a_deactivated_users_keys(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.upload_keys()
    await alice.ok("POST", "/keys/device_signing/upload", Identity(ALICE).body)
    await world.server.accounts.deactivate(ALICE)
    await eventually(lambda: len(world.received(LIST)) == 2)
    assert world.received(LIST)[1]["content"]["removed"] == ["D"]
    wanted = {"device_keys": {ALICE: []}}
    status, answer = await world.arena.ask("POST", "/_matrix/federation/v1/user/keys/query", wanted)
    assert (status, answer["device_keys"], answer["master_keys"]) == (200, {ALICE: {}}, {})


# -- theirs ---------------------------------------------------------------------------------------

MATRIX = {"user_id": BOB, "device_id": "X", "stream_id": 7, "prev_id": [3], "keys": {}}


@pytest.mark.parametrize(
    "edu",
    [
        update(),
        update(sender_id=BOB),
        {"type": LIST, "sender_id": BOB, "content": {"changed": [{"device_id": "X"}]}},
        {"edu_type": LIST, "content": MATRIX},
        {"type": LIST, "sender": BOB, "content": MATRIX},
        {"edu_type": "m.signing_key_update", "content": {"user_id": BOB, "master_key": {}}},
    ],
    ids=["draft", "draft with both", "draft's example", "matrix", "matrix with a sender", "signing keys"],
)
async def test_an_update_reaches_clients_that_share_a_room_and_wakes_them(world: EduWorld, edu: Edu) -> None:
    """An update with a gap before it (prev_id) is no different: clients ask the user's server."""
    alice, loner = await world.device("alice"), await world.device("loner")
    await alice.sync()
    await loner.sync()
    waiting = await polling(world.server.notifier, ALICE, alice.sync(timeout=60_000))
    await world.send(edu)
    async with asyncio.timeout(HANGS):
        answer = await waiting
    assert answer["device_lists"] == {"changed": [BOB], "left": []}
    assert (await loner.sync())["device_lists"]["changed"] == []
    assert (await alice.sync())["device_lists"]["changed"] == []


async def test_b23_an_update_for_another_servers_user_is_dropped(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.sync()
    await world.send(
        update(MALLORY),
        update(ALICE),
        {"edu_type": LIST, "content": {**MATRIX, "user_id": MALLORY}},
        {"type": LIST, "sender": BOB, "content": {**MATRIX, "user_id": f"@eve:{PARTICIPANT}"}},
        update(f"@stranger:{PARTICIPANT}"),
        {"type": LIST, "content": {}},
    )
    assert (await alice.sync())["device_lists"]["changed"] == []
    assert await world.db.fetchval("SELECT count(*) FROM device_list_changes") == 0


async def test_r9_a_flood_of_updates_is_one_row_for_each_member(world: EduWorld) -> None:
    for _ in range(3):
        await world.send(*(update(f"@stranger{n}:{PARTICIPANT}") for n in range(50)), *[update()] * 50)
    assert await world.db.fetchval("SELECT count(*) FROM device_list_changes") == 1


async def test_r9_a_flood_of_updates_wakes_clients_for_a_while_only(world: EduWorld) -> None:
    """What comes after that is in the next answer all the same."""
    alice = await world.device("alice")
    await alice.sync()
    woken: list[str] = []
    lists = DeviceLists("hub.test", woken.extend, woken.extend, lambda queue, number: None, now)
    for _ in range(50):
        await lists.changed_elsewhere(world.db, [BOB])
    assert WAKES.burst <= len(woken) < 30 and set(woken) == {ROOM}
    assert (await alice.sync())["device_lists"]["changed"] == [BOB]


async def test_whoever_leaves_the_last_shared_room_is_left(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.sync()
    leave = lpdu(member("leave", sender=BOB))
    await world.arena.send("leave", [leave.fields], origin=PARTICIPANT)
    assert (await alice.sync())["device_lists"] == {"changed": [], "left": [BOB]}
    await world.send(update())
    assert (await alice.sync())["device_lists"] == {"changed": [], "left": []}
