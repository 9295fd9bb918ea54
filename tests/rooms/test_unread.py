"""Unread notifications: what counts, what ends them, and what counting costs."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from lmserver.rooms import unread
from lmserver.rooms.receipts import MAIN_THREAD, PRIVATE, PUBLIC
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.unread import RoomCounts, Unread
from lmserver.storage import account_data
from tests.kit.reading_world import CAROL, DAVE, World
from tests.kit.rooms import ALICE, BOB, ROOM, draft, member

THREADS = {"room": {"timeline": {"unread_thread_notifications": True}}}


async def counts(world: World, user: str = CAROL, room_id: str = ROOM) -> RoomCounts:
    """As one who keeps its tally in memory and one who begins anew see them, which is the same."""
    found = (await world.unread.of(user, [room_id]))[room_id]
    anew = Unread(world.db, Journal(world.db), world.engine, world.push_rules.compiled)
    assert (await anew.of(user, [room_id]))[room_id] == found
    return found


async def number(world: World, user: str = CAROL) -> tuple[int, int]:
    whole = (await counts(world, user)).whole
    return whole.notifications, whole.highlights


async def read(world: World, event_id: str, kind: str = PUBLIC, thread: str | None = None) -> None:
    await world.receipts(NoMarkers()).record(CAROL, await world.access(CAROL), kind, event_id, thread)


class NoMarkers:
    async def get(self, user_id: str, room_id: str, type_: str) -> None:
        return None

    async def put(self, user_id: str, room_id: str, type_: str, content: Any) -> None:
        raise AssertionError


async def reply(world: World, root: str, text: str = "x", sender: str = ALICE, rel: str = "m.thread") -> str:
    content = {"msgtype": "m.text", "body": text, "m.relates_to": {"rel_type": rel, "event_id": root}}
    return await world.send(draft("m.room.message", content, sender=sender))


@pytest.fixture
async def room(world: World) -> World:
    """A room of Alice, who talks, Carol, who reads, and Dave."""
    await world.create()
    await world.say("before carol came")
    await world.member("join", CAROL)
    await world.member("join", DAVE)
    return world


async def test_messages_of_others_count_and_mentions_stand_out(room: World) -> None:
    await room.say("hello", "hey carol!")
    await room.send(draft("m.reaction", {}))
    await room.say("own", sender=DAVE)
    assert await number(room) == (3, 1)
    assert await number(room, DAVE) == (0, 0)  # who says something has read what was before


async def test_receipts_of_either_kind_end_them_and_never_come_back(room: World) -> None:
    first, second, third = await room.say("one", "two", "three")
    assert await number(room) == (3, 0)
    await read(room, second, PRIVATE)
    assert await number(room) == (1, 0)
    await read(room, first)
    assert await number(room) == (1, 0)
    await read(room, third)
    assert await number(room) == (0, 0)


async def test_threads_are_counted_and_read_by_themselves(room: World) -> None:
    [root] = await room.say("root")
    inside = await reply(room, root, "carol?")
    await room.say("main")
    edit = await reply(room, inside, "ends", rel="m.reference")
    found = await counts(room)
    assert found.whole.notifications == 4
    assert found.main.notifications == 2
    assert found.threads[root].as_json() == {"notification_count": 2, "highlight_count": 1}
    await read(room, root, thread=MAIN_THREAD)
    await read(room, inside, thread=root)
    found = await counts(room)
    assert (found.main.notifications, found.threads[root].as_json()) == (
        1, {"notification_count": 1, "highlight_count": 0},
    )  # fmt: skip
    await read(room, edit)  # without thread: all of them
    assert await counts(room) == RoomCounts()


async def test_saying_something_in_a_thread_reads_that_thread(room: World) -> None:
    [root] = await room.say("root")
    await reply(room, root)
    await reply(room, root, sender=CAROL)
    found = await counts(room)
    assert (found.main.notifications, found.threads) == (1, {})


async def test_sync_tells_threads_to_those_who_ask(room: World) -> None:
    [root] = await room.say("root")
    await reply(room, root)
    plain = (await room.sync(CAROL))["rooms"]["join"][ROOM]
    assert plain["unread_notifications"] == {"notification_count": 2, "highlight_count": 0}
    assert "unread_thread_notifications" not in plain
    asked = (await room.sync(CAROL, filter_=THREADS))["rooms"]["join"][ROOM]
    assert asked["unread_notifications"]["notification_count"] == 1
    assert asked["unread_thread_notifications"] == {root: {"notification_count": 1, "highlight_count": 0}}


async def test_what_is_redacted_no_longer_counts(room: World) -> None:
    first, _ = await room.say("one", "carol")
    assert await number(room) == (2, 1)
    await room.send(draft("m.room.redaction", {"redacts": first}))
    assert await number(room) == (1, 1)


async def test_a_change_of_ones_profile_reads_nothing_and_a_new_stay_begins_anew(room: World) -> None:
    await room.say("one")
    await room.member("join", CAROL)
    assert await number(room) == (1, 0)
    await room.say("two")
    await room.send(member("leave", target=CAROL))
    await room.member("join", CAROL)
    assert await number(room) == (0, 0)
    await room.say("three")
    assert await number(room) == (1, 0)


async def test_the_ignored_do_not_count(room: World) -> None:
    content = {"ignored_users": {DAVE: {}}}
    await account_data.put(room.db, CAROL, "", "m.ignored_user_list", orjson.dumps(content))
    await room.say("carol", sender=DAVE)
    await room.say("hello")
    assert await number(room) == (1, 0)


async def test_rules_decide(room: World) -> None:
    await room.push_rules.put(CAROL, "room", ROOM, {"actions": []}, None, None)
    await room.say("one", "carol")
    assert await number(room) == (1, 1)


async def test_remote_users_count_like_local_ones(room: World) -> None:
    await room.member("join", BOB)
    await room.say("hi", sender=BOB)
    assert await number(room) == (1, 0)


async def test_only_what_is_new_is_looked_at_again(room: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tally is kept in the database once counting it was work, and is taken up where it ended."""
    looked: list[int] = []
    heard = unread.unread.heard

    async def counted(*args: Any) -> Any:
        found = await heard(*args)
        looked.append(sum(map(len, found)))
        return found

    monkeypatch.setattr(unread, "WORTH_SAVING", 5)
    monkeypatch.setattr(unread.unread, "heard", counted)
    monkeypatch.setattr(unread, "CHUNK", 3)
    await room.say(*"abcdefgh")
    first = Unread(room.db, Journal(room.db), room.engine, room.push_rules.compiled)
    assert (await first.of(CAROL, [ROOM]))[ROOM].whole.notifications == 8
    assert sum(looked) == 9  # and a member event
    looked.clear()
    await first.of(CAROL, [ROOM])
    assert looked == []
    await room.say("i")
    second = Unread(room.db, Journal(room.db), room.engine, room.push_rules.compiled)
    assert (await second.of(CAROL, [ROOM]))[ROOM].whole.notifications == 9
    assert sum(looked) == 1


async def test_a_count_looks_at_so_many_events_only(room: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "WINDOW", 3)
    await room.say(*"abcdefgh")
    assert await number(room) == (3, 0)


async def test_rooms_that_are_not_here_have_no_counts(room: World) -> None:
    assert await room.unread.of(CAROL, ["!nowhere:hub.test"]) == {}
    assert await room.unread.of(CAROL, []) == {}
