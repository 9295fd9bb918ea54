"""/sync as a long poll: early answers, no lost events under concurrent writers, one poll a device."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from lmserver.rooms.receipts import PRIVATE, PUBLIC
from lmserver.rooms.sync.filters import parse_sync_filter
from lmserver.rooms.sync.interval import SyncRequest
from lmserver.rooms.sync.recent import versions_of
from lmserver.rooms.sync.tokens import parse_sync
from lmserver.storage import room_batches, room_reads
from tests.kit.reading_world import CAROL, World, texts
from tests.kit.rooms import ALICE, ROOM, message
from tests.kit.waiting import HANGS, eventually, polling, polls

OTHER = "!other:hub.test"


class NoMarkers:
    async def get(self, user_id: str, room_id: str, type_: str) -> None:
        return None

    async def put(self, user_id: str, room_id: str, type_: str, content: Any) -> None:
        raise AssertionError("not asked for")


async def test_a_message_ends_the_wait(world: World) -> None:
    await world.create()
    since = (await world.sync(ALICE))["next_batch"]
    poll = await polling(world.notifier, ALICE, world.sync(ALICE, since, timeout=60))
    await world.say("hello")
    answer = await asyncio.wait_for(poll, HANGS)
    assert texts(answer["rooms"]["join"][ROOM]) == ["hello"]


async def test_the_wait_ends_in_time_with_an_empty_answer(world: World) -> None:
    await world.create()
    since = (await world.sync(ALICE))["next_batch"]
    began = time.monotonic()
    answer = await world.sync(ALICE, since, timeout=0.2)
    assert time.monotonic() - began > 0.15
    assert answer["rooms"] == {}


async def test_who_is_woken_together_asks_once_what_room_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [f"@p{number}:hub.test" for number in range(20)]
    await world.create()
    for person in people:
        await world.member("join", person)
    world.restart()
    asked = []
    rooms = room_batches.rooms

    async def counted(db: Any, room_ids: Any) -> Any:
        asked.append(list(room_ids))
        return await rooms(db, room_ids)

    since = {person: (await world.sync(person))["next_batch"] for person in people}
    monkeypatch.setattr(room_batches, "rooms", counted)
    waiting = [await polling(world.notifier, p, world.sync(p, since[p], timeout=60)) for p in people]
    await world.say("hello")
    answers = await asyncio.wait_for(asyncio.gather(*waiting), HANGS)
    assert all(texts(answer["rooms"]["join"][ROOM]) == ["hello"] for answer in answers)
    assert asked == [[ROOM]]


async def test_a_room_that_is_gone_takes_no_other_with_it(world: World) -> None:
    await world.create()
    gone = "!purged:hub.test"
    found = await versions_of(world.db, [ROOM, gone, ROOM])
    assert found[0] is not None and found == [found[0], None, found[0]]


async def test_a_room_joined_while_waiting_is_followed(world: World) -> None:
    await world.create()
    since = (await world.sync(CAROL))["next_batch"]
    poll = await polling(world.notifier, CAROL, world.sync(CAROL, since, timeout=60))
    await world.member("join", CAROL)
    answer = await asyncio.wait_for(poll, HANGS)
    assert ROOM in answer["rooms"]["join"]


async def test_an_invite_ends_the_wait(world: World) -> None:
    await world.create(join_rule="invite")
    since = (await world.sync(CAROL))["next_batch"]
    poll = await polling(world.notifier, CAROL, world.sync(CAROL, since, timeout=60))
    await world.member("invite", CAROL, by=ALICE)
    assert ROOM in (await asyncio.wait_for(poll, HANGS))["rooms"]["invite"]


async def test_other_rooms_do_not_end_the_wait(world: World) -> None:
    await world.create()
    await world.create(OTHER)
    await world.member("join", CAROL)
    since = (await world.sync(CAROL))["next_batch"]
    poll = await polling(world.notifier, CAROL, world.sync(CAROL, since, timeout=60))
    await world.say("elsewhere", room_id=OTHER)
    await world.settle()
    await world.say("here")
    assert texts((await poll)["rooms"]["join"][ROOM]) == ["here"]


async def test_r6_a_newer_request_of_the_device_ends_the_older(world: World) -> None:
    await world.create()
    since = (await world.sync(ALICE))["next_batch"]
    older = await polling(world.notifier, ALICE, world.sync(ALICE, since, timeout=60))
    another = asyncio.create_task(world.sync(ALICE, since, timeout=60, device="E"))
    await eventually(lambda: polls(world.notifier, ALICE) == 2)
    newer = asyncio.create_task(world.sync(ALICE, since, timeout=60))
    assert (await asyncio.wait_for(older, HANGS))["rooms"] == {}
    await eventually(lambda: polls(world.notifier, ALICE) == 2)
    assert not another.done() and not newer.done()
    await world.say("x")
    assert texts((await asyncio.wait_for(newer, HANGS))["rooms"]["join"][ROOM]) == ["x"]
    assert texts((await asyncio.wait_for(another, HANGS))["rooms"]["join"][ROOM]) == ["x"]
    assert not len(world.service._polls)


async def test_the_end_of_the_process_ends_every_wait(world: World) -> None:
    await world.create()
    since = (await world.sync(ALICE))["next_batch"]
    poll = await polling(world.notifier, ALICE, world.sync(ALICE, since, timeout=60))
    await world.notifier.close()
    assert (await asyncio.wait_for(poll, HANGS))["rooms"] == {}


async def test_typing_ends_the_wait_and_is_told_once(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    since = (await world.sync(ALICE))["next_batch"]
    poll = await polling(world.notifier, ALICE, world.sync(ALICE, since, timeout=60))
    world.typing.start(ROOM, CAROL, 5)
    answer = await asyncio.wait_for(poll, HANGS)
    [event] = answer["rooms"]["join"][ROOM]["ephemeral"]["events"]
    assert event == {"type": "m.typing", "content": {"user_ids": [CAROL]}}
    assert (await world.sync(ALICE, answer["next_batch"]))["rooms"] == {}
    world.typing.stop(ROOM, CAROL)
    later = await world.sync(ALICE, answer["next_batch"])
    assert later["rooms"]["join"][ROOM]["ephemeral"]["events"][0]["content"] == {"user_ids": []}


async def test_typing_ends_by_itself(world: World) -> None:
    await world.create()
    since = (await world.sync(ALICE))["next_batch"]
    world.typing.start(ROOM, ALICE, 0.05)
    assert world.typing.users(ROOM) == [ALICE]
    await eventually(lambda: world.typing.users(ROOM) == [])
    # A token of a process that ran longer must not hide changes of this one.
    stream, _, _ = since[1:].partition("_")
    assert (await world.sync(ALICE, f"s{stream}_999"))["rooms"]["join"][ROOM]["ephemeral"]["events"]


async def test_private_receipts_are_the_users_own(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    first, second = await world.say("one", "two")
    receipts = world.receipts(NoMarkers())
    since = (await world.sync(ALICE))["next_batch"]
    access = await world.access(CAROL)
    await receipts.record(CAROL, access, PRIVATE, second, None)
    await receipts.record(CAROL, access, PUBLIC, first, None)

    def told(answer: dict[str, Any]) -> Any:
        [event] = answer["rooms"]["join"][ROOM]["ephemeral"]["events"]
        return {event_id: set(kinds) for event_id, kinds in event["content"].items()}

    assert told(await world.sync(ALICE, since)) == {first: {PUBLIC}}
    assert told(await world.sync(CAROL, since)) == {first: {PUBLIC}, second: {PRIVATE}}


async def test_receipts_move_forward_and_count_unread(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    first, second, _ = await world.say("one", "two", "three")
    receipts = world.receipts(NoMarkers())

    async def unread() -> int:
        section = (await world.sync(CAROL))["rooms"]["join"][ROOM]
        count: int = section["unread_notifications"]["notification_count"]
        return count

    assert await unread() == 3
    access = await world.access(CAROL)
    await receipts.record(CAROL, access, PUBLIC, second, None)
    assert await unread() == 1
    await receipts.record(CAROL, access, PUBLIC, first, None)
    assert await unread() == 1


async def test_nothing_is_skipped_while_another_transaction_is_open(world: World) -> None:
    """A commit whose number is above an open transaction's is told late, never lost."""
    await world.create()
    await world.create(OTHER)
    since = (await world.sync(ALICE))["next_batch"]
    hold, held = asyncio.Event(), asyncio.Event()

    async def slow(db: Any) -> None:
        await db.execute("INSERT INTO forgotten_rooms (user_id, room_id) VALUES ('@x:y', '!x:y')")
        held.set()
        await hold.wait()

    older = asyncio.create_task(world.db.run(slow))
    await held.wait()
    await world.say("during")
    settled, upcoming = await room_reads.stream_positions(world.db)
    assert settled < upcoming
    poll = await polling(world.notifier, ALICE, world.sync_now(_request(since, timeout=60)))
    hold.set()
    await older
    assert texts((await asyncio.wait_for(poll, HANGS))["rooms"]["join"][ROOM]) == ["during"]


def _request(since: str, timeout: float) -> Any:
    wide = parse_sync_filter({"room": {"timeline": {"limit": 100}}})
    return SyncRequest(ALICE, "D", parse_sync(since), wide, timeout)


async def test_a_reader_sees_every_event_of_many_writers_once(world: World) -> None:
    rooms = [f"!r{i}:hub.test" for i in range(4)]
    for room_id in rooms:
        await world.create(room_id)
    since = (await world.sync(ALICE))["next_batch"]
    expected = {f"{room_id}{i}" for room_id in rooms for i in range(15)}

    async def write(room_id: str) -> None:
        for i in range(15):
            await world.send(message(f"{room_id}{i}", room_id=room_id))

    writers = [asyncio.create_task(write(room_id)) for room_id in rooms]
    seen: list[str] = []
    deadline = time.monotonic() + HANGS
    while len(seen) < len(expected) and time.monotonic() < deadline:
        answer = await world.sync_now(_request(since, timeout=2))
        since = answer["next_batch"]
        for section in answer["rooms"].get("join", {}).values():
            assert not section["timeline"]["limited"]
            seen += texts(section)
    await asyncio.gather(*writers)
    assert sorted(seen) == sorted(expected)


async def test_key_counts_are_asked_for_before_an_event_can_be_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They and the journal are not waited for one after the other."""
    await world.create()
    since = (await world.sync(ALICE))["next_batch"]
    poll = await polling(world.notifier, ALICE, world.sync(ALICE, since, timeout=60))
    asked, positions, readable = world.devices.asked, world.journal.positions, asyncio.Event()

    async def late() -> tuple[int, int]:
        await readable.wait()
        return await positions()

    monkeypatch.setattr(world.journal, "positions", late)
    await world.say("hello")
    await eventually(lambda: world.devices.asked == asked + 1)
    assert not poll.done()
    readable.set()
    assert texts((await asyncio.wait_for(poll, HANGS))["rooms"]["join"][ROOM]) == ["hello"]
    assert world.devices.asked == asked + 1


async def test_key_counts_asked_for_before_nothing_was_found_are_not_told(world: World) -> None:
    await world.create()
    since = (await world.sync(ALICE))["next_batch"]
    poll = await polling(world.notifier, ALICE, world.sync(ALICE, since, timeout=60))
    asked = world.devices.asked
    world.notifier.publish([ALICE])
    await eventually(lambda: world.devices.asked == asked + 1 and polls(world.notifier, ALICE) == 1)
    world.devices.counts = {"signed_curve25519": 7}
    await world.say("hello")
    answer = await asyncio.wait_for(poll, HANGS)
    assert answer["device_one_time_keys_count"] == {"signed_curve25519": 7}
