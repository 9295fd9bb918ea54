"""Typing and receipts between servers: the newest word, to whom it concerns, of whom it may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lmserver.federation_client.latest_edus import MAX_AGE_MS, MAX_PER_DESTINATION, LatestEdus
from lmserver.rooms.remote_ephemeral import (
    MAX_EARLY_PER_ROOM,
    WAKES,
    RemoteEphemeral,
    RemoteReceipt,
    RemoteTyping,
)
from lmserver.rooms.typing import Typing
from lmserver.storage import destinations
from lmserver.storage.database import Database
from tests.kit.edu_world import Device, Edu, EduWorld
from tests.kit.engines import adopt_join, engine_kit
from tests.kit.rooms import (
    ALICE,
    BOB,
    EVIL,
    HUB,
    MALLORY,
    PARTICIPANT,
    ROOM,
    RoomBuilder,
    member,
    message,
    now,
)
from tests.kit.waiting import HANGS, eventually

EVE = f"@eve:{PARTICIPANT}"
PATH = f"/rooms/{quote(ROOM)}"


@pytest.fixture
async def world(db: Database, tmp_path: Path) -> AsyncIterator[EduWorld]:
    """Both peers have introduced themselves: their keys are known, and what they are."""
    async with EduWorld(db, tmp_path) as made:
        await made.send()
        await made.send(origin=EVIL)
        yield made


async def ephemeral(device: Device, type_: str, **query: Any) -> list[Any]:
    """Contents of a type in the room's part of the next answer."""
    answer = await device.sync(**query)
    events = answer["rooms"].get("join", {}).get(ROOM, {}).get("ephemeral", {}).get("events", [])
    return [event["content"] for event in events if event["type"] == type_]


# -- ours -----------------------------------------------------------------------------------------


async def test_typing_is_told_to_every_server_in_the_room(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.ok("PUT", f"{PATH}/typing/{ALICE}", {"typing": True, "timeout": 30_000})
    for peer in (PARTICIPANT, EVIL):
        await eventually(lambda peer=peer: world.received("m.typing", peer) != [])  # type: ignore[misc]
    await alice.ok("PUT", f"{PATH}/typing/{ALICE}", {"typing": False})
    await eventually(lambda: len(world.received("m.typing")) == 2)
    assert world.received("m.typing") == [
        {"type": "m.typing", "sender": ALICE, "sender_id": ALICE,
         "content": {"room_id": ROOM, "user_id": ALICE, "typing": typing}} for typing in (True, False)
    ]  # fmt: skip
    assert await world.db.fetchval("SELECT count(*) FROM outbound_edus") == 0


async def test_a_servers_word_that_it_is_linearized_decides(world: EduWorld) -> None:
    """A peer that fails transactions over EDUs it does not know is not sent any."""
    await world.db.execute("UPDATE key_servers SET linearized = false WHERE server = $1", EVIL)
    alice = await world.device("alice")
    await alice.ok("PUT", f"{PATH}/typing/{ALICE}", {"typing": True})
    event_id = (await alice.ok("PUT", f"{PATH}/send/m.room.message/1", {"body": "x"}))["event_id"]
    await alice.ok("POST", f"{PATH}/receipt/m.read/{quote(event_id)}", {})
    await eventually(lambda: world.received("m.receipt") != [])
    await eventually(lambda: world.arena.evil.requests("send") != [])
    assert world.received("m.typing", EVIL) == world.received("m.receipt", EVIL) == []


async def test_only_public_receipts_leave_and_only_the_newest_of_each(world: EduWorld) -> None:
    """A server that is away gets one receipt of a user, however much they read meanwhile."""
    alice = await world.device("alice")
    events = []
    for n in range(4):
        sent = await alice.ok("PUT", f"{PATH}/send/m.room.message/{n}", {"body": "x"})
        events.append(sent["event_id"])
    await eventually(lambda: len(world.arena.evil.requests("send")) > 0)
    await world.server.sender.stop()
    await alice.ok("POST", f"{PATH}/receipt/m.read.private/{quote(events[3])}", {})
    for event_id in events[:3]:
        await alice.ok("POST", f"{PATH}/receipt/m.read/{quote(event_id)}", {})
    await alice.ok("POST", f"{PATH}/receipt/m.read/{quote(events[0])}", {"thread_id": "main"})
    assert await world.db.fetchval("SELECT count(*) FROM outbound_edus") == 4
    await world.server.sender.start()
    await eventually(lambda: len(world.received("m.receipt")) == 2)
    whole, thread = world.received("m.receipt")
    assert whole["sender"] == whole["sender_id"] == ALICE
    read = whole["content"][ROOM]["m.read"][ALICE]
    assert read["event_ids"] == [events[2]] and list(read["data"]) == ["ts"]
    read = thread["content"][ROOM]["m.read"][ALICE]
    assert read["event_ids"] == [events[0]] and read["data"]["thread_id"] == "main"


def test_what_counts_only_now_is_bounded_and_soon_forgotten() -> None:
    now = 0
    latest = LatestEdus(lambda: now)
    assert all(latest.put("a", str(n), b"x" * 10) for n in range(MAX_PER_DESTINATION))
    assert not latest.put("a", "one more", b"x")
    assert latest.put("a", "0", b"newer") and latest.put("b", "0", b"other")
    assert latest.take("a", 2, 100) == [b"newer", b"x" * 10]
    assert latest.take("a", 100, 25) == [b"x" * 10, b"x" * 10]
    now = MAX_AGE_MS
    assert latest.put("a", "fresh", b"fresh")
    assert latest.take("a", 100, 1000) == [b"fresh"]
    latest.drop("b")
    assert latest.take("b", 1, 100) == []


async def test_typing_for_a_server_that_is_away_is_dropped(world: EduWorld) -> None:
    await world.arena.evil.stop()
    alice = await world.device("alice")
    await alice.ok("PUT", f"{PATH}/send/m.room.message/1", {"body": "x"})
    async with asyncio.timeout(HANGS):
        while EVIL not in await destinations.backing_off(world.db, now(), 10):
            await asyncio.sleep(0.01)
    await alice.ok("PUT", f"{PATH}/typing/{ALICE}", {"typing": True})
    await eventually(lambda: world.received("m.typing") != [])
    await world.arena.evil.start()
    await world.send(origin=EVIL)
    await eventually(lambda: world.arena.evil.requests("send") != [])
    assert world.received("m.typing", EVIL) == []


# -- theirs ---------------------------------------------------------------------------------------


def typing(user_id: str = BOB, is_typing: Any = True, room_id: str = ROOM, **changes: Any) -> Edu:
    content = {"room_id": room_id, "user_id": user_id, "typing": is_typing}
    return {"type": "m.typing", "sender": user_id, "content": content, **changes}


def receipt(event_id: str, user_id: str = BOB, data: Any = None, **changes: Any) -> Edu:
    value = {"event_ids": [event_id], "data": {"ts": 7} if data is None else data}
    return {
        "type": "m.receipt",
        "sender": user_id,
        "content": {ROOM: {"m.read": {user_id: value}}},
        **changes,
    }


def old(edu: Edu) -> Edu:
    """Matrix's older form, which names no sender."""
    return {"edu_type": edu["type"], "content": edu["content"]}


@pytest.mark.parametrize("form", [lambda edu: edu, old, lambda edu: {**edu, "sender_id": BOB}])
async def test_remote_users_are_seen_typing(world: EduWorld, form: Any) -> None:
    alice = await world.device("alice")
    await alice.sync()
    await world.send(form(typing()))
    assert await ephemeral(alice, "m.typing") == [{"user_ids": [BOB]}]
    await world.send(form(typing(is_typing=False)))
    assert await ephemeral(alice, "m.typing") == [{"user_ids": []}]


async def test_b23_only_joined_users_of_the_origin_type_or_read(world: EduWorld) -> None:
    alice = await world.device("alice")
    event_id = (await alice.ok("PUT", f"{PATH}/send/m.room.message/1", {"body": "x"}))["event_id"]
    await alice.sync()
    ours: list[Edu] = []
    for make in (typing, lambda user_id, **more: receipt(event_id, user_id, **more)):
        ours += [
            make(MALLORY), make(ALICE), make(EVE), old(make(MALLORY)), old(make(ALICE)), old(make(EVE)),
            make(MALLORY, sender=BOB), make(BOB, sender=EVE), make(BOB, sender_id=EVE),
            {**make(BOB), "content": {}}, {**make(BOB), "content": {ROOM: 1, "x": {"m.read": []}}},
        ]  # fmt: skip
    ours += [typing(is_typing="yes"), typing(room_id="!other:hub.test"), typing(room_id="nonsense")]
    ours += [receipt(event_id, data={"thread_id": thread}) for thread in (5, "x" * 300, "$" + "a" * 43)]
    ours += [receipt("$" + "b" * 43), receipt("nonsense")]
    private = receipt(event_id)
    private["content"] = {ROOM: {"m.read.private": private["content"][ROOM]["m.read"]}}
    await world.send(*ours, private)
    assert await ephemeral(alice, "m.typing") == []
    assert await world.db.fetchval("SELECT count(*) FROM receipts") == 0


async def test_remote_receipts_move_forward_only(world: EduWorld) -> None:
    alice = await world.device("alice")
    first, second = [
        (await alice.ok("PUT", f"{PATH}/send/m.room.message/{n}", {"body": "x"}))["event_id"] for n in (1, 2)
    ]
    await alice.sync()
    await world.send(old(receipt(second)))
    assert await ephemeral(alice, "m.receipt") == [{second: {"m.read": {BOB: {"ts": 7}}}}]
    await world.send(receipt(first))
    assert await ephemeral(alice, "m.receipt") == []
    threads = [
        receipt(first, data={"ts": 2**53 - 1, "thread_id": "main"}),
        receipt(second, data={"thread_id": first}),
    ]
    await world.send(*threads, threads[0])
    [found] = await ephemeral(alice, "m.receipt")
    assert found[first]["m.read"][BOB]["thread_id"] == "main"
    assert found[first]["m.read"][BOB]["ts"] < 2**52, "nobody has read anything in the future"
    assert found[second]["m.read"][BOB]["thread_id"] == first


async def test_a_receipt_that_overtakes_its_event_counts_when_that_comes(db: Database) -> None:
    """Receipts come straight from their server, events by way of the hub."""
    room = RoomBuilder()
    room.add(member("join", sender=BOB))
    kit = engine_kit(db, PARTICIPANT)
    await adopt_join(kit, room.pdus, HUB)
    published: list[str] = []
    ephemeral = RemoteEphemeral(db, Typing(lambda keys: None), published.extend)
    event = room.add(message())
    early = RemoteReceipt(ROOM, ALICE, event.event_id, "", 7)
    await ephemeral.receive_receipts([early, RemoteReceipt(ROOM, MALLORY, event.event_id, "", 7)])
    await kit.engine.accept_pdus(ROOM, [event])
    assert await db.fetchval("SELECT count(*) FROM receipts") == 0
    ephemeral.rooms_changed(["!other:hub.test", ROOM])
    async with asyncio.timeout(HANGS):
        while not published:
            await asyncio.sleep(0.01)
    assert await db.fetchval("SELECT user_id FROM receipts") == ALICE
    many = [RemoteReceipt(ROOM, ALICE, "$" + "c" * 43, f"${n:043}", 7) for n in range(1000)]
    await ephemeral.receive_receipts(many)
    assert ephemeral.waiting == MAX_EARLY_PER_ROOM
    await ephemeral.close()
    await kit.engine.close()


async def test_r9_a_flood_wakes_clients_for_a_while_only(world: EduWorld) -> None:
    alice = await world.device("alice")
    events = []
    for n in range(40):
        events.append((await alice.ok("PUT", f"{PATH}/send/m.room.message/{n}", {"body": "x"}))["event_id"])
    woken: list[str] = []
    typing_changes = Typing(woken.extend)
    ephemeral = RemoteEphemeral(world.db, typing_changes, woken.extend)
    for n in range(60):
        await ephemeral.receive_typing([RemoteTyping(ROOM, BOB, n % 2 == 0)])
    assert WAKES["typing"].burst <= len(woken) < 40
    woken.clear()
    for event_id in events:
        await ephemeral.receive_receipts([RemoteReceipt(ROOM, BOB, event_id, "", 7)])
    assert WAKES["receipt"].burst <= len(woken) < 40
    assert await world.db.fetchval("SELECT event_id FROM receipts WHERE user_id = $1", BOB) == events[-1]
    typing_changes.close()


async def test_b16_whoever_has_left_neither_types_nor_reads(world: EduWorld) -> None:
    alice = await world.device("alice")
    event_id = (await alice.ok("PUT", f"{PATH}/send/m.room.message/1", {"body": "x"}))["event_id"]
    await world.arena.engine.send([member("ban", target=BOB)])
    await alice.sync()
    await world.send(typing(), receipt(event_id))
    assert await ephemeral(alice, "m.typing") == await ephemeral(alice, "m.receipt") == []
    await alice.ok("PUT", f"{PATH}/typing/{ALICE}", {"typing": True})
    await eventually(lambda: world.received("m.typing", EVIL) != [])
    assert world.received("m.typing") == []
