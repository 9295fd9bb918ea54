"""Sliding sync over time: connections, lost answers, restarts, waiting, and requests nobody should send."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lmserver.composition import assemble
from lmserver.rooms.sliding.connection import MAX_CONNECTIONS
from lmserver.rooms.sliding.service import MAX_POLLS
from lmserver.storage import sliding_sync
from lmserver.storage.database import Database
from tests.kit.client_api import Api
from tests.kit.rooms import key_of
from tests.kit.sliding import Phone, bodies, entries, room, window
from tests.kit.waiting import HANGS, eventually, polling, polls

ALL = {"all": window([0, 99], limit=5, state=[("m.room.name", ""), ("m.room.member", "$LAZY")])}
EVERYTHING = {name: {"enabled": True} for name in ("to_device", "e2ee", "account_data", "receipts", "typing")}


async def unknown(phone: Phone, pos: str, conn: str = "main") -> bool:
    status, answer = await phone.ask({"conn_id": conn, "lists": ALL}, pos)
    return (status, answer.get("errcode")) == (400, "M_UNKNOWN_POS")


# -- positions ----------------------------------------------------------------------------------


async def test_a_lost_answer_comes_again(alice: Phone) -> None:
    room_id = await alice.create(name="n")
    first = await alice.slide(lists=ALL, extensions=EVERYTHING)
    await alice.say(room_id, "x")
    other = await alice.create(name="other")
    await alice.put_data("org.test", {"a": 1})
    lost = await alice.slide(first["pos"], lists=ALL, extensions=EVERYTHING)
    again = await alice.slide(first["pos"], lists=ALL, extensions=EVERYTHING)
    for answer in (lost, again):
        assert list(answer["rooms"]) == [other, room_id]
        assert bodies(answer["rooms"][room_id]) == ["x"] and answer["rooms"][other]["initial"] is True
        assert [e["type"] for e in answer["extensions"]["account_data"]["global"]] == ["org.test"]
    narrower = await alice.slide(first["pos"], lists={"top": window([0, 0])})
    assert list(narrower["rooms"]) == [other]
    nothing = await alice.slide(narrower["pos"], lists={"top": window([0, 0])})
    assert nothing["rooms"] == {}
    assert await unknown(alice, lost["pos"]), "an answer that another took the place of"


async def test_positions_outlive_the_server(api: Api, db: Database, alice: Phone) -> None:
    quiet, busy = await alice.create(name="quiet"), await alice.create(name="busy")
    top = {"top": window([0, 0], limit=2, state=[("m.room.name", ""), ("m.room.topic", "")])}
    first = await alice.slide(lists=top)
    assert list(first["rooms"]) == [busy]
    second = await alice.slide(first["pos"], lists=top, room_subscriptions={quiet: room(1)})
    await api.close()
    restarted = Api(assemble(api.server.config, db, key_of("hub.test")))
    await restarted.http.start_server()
    phone = Phone(restarted, alice.id, alice.token, alice.device)
    await phone.set(busy, "m.room.topic", {"topic": "t"})
    third = await phone.slide(second["pos"], lists=top, room_subscriptions={quiet: room(1)})
    assert list(third["rooms"]) == [busy]
    said = third["rooms"][busy]
    assert said["initial"] is False and entries(said) == {("m.room.topic", "")} and len(said["timeline"]) == 1
    await restarted.close()


async def test_positions_nobody_gave(alice: Phone, bob: Phone) -> None:
    await alice.create()
    pos = (await alice.slide(lists=ALL))["pos"]
    assert await unknown(bob, pos) and await unknown(alice, pos, "another")
    assert await unknown(await alice.log_in(), pos)
    number, stream, typing, epoch = pos.split(".")
    for wrong in (
        "0", "s1_2", "x" * 5000, f"{int(number) + 1}.{stream}.{typing}.{epoch}",
        f"{number}.{10**17}.{typing}.{epoch}", f"{number}.{stream}.{typing}.{int(epoch) + 1}",
        f"{'9' * 19}.{stream}.{typing}.{epoch}", f"-{pos}",
    ):  # fmt: skip
        assert await unknown(alice, wrong), wrong
    assert not await unknown(alice, pos)


async def test_beginning_anew_ends_what_was(alice: Phone) -> None:
    room_id = await alice.create()
    old = await alice.slide(lists=ALL)
    new = await alice.slide(lists=ALL)
    assert new["rooms"][room_id]["initial"] is True
    assert await unknown(alice, old["pos"]) and not await unknown(alice, new["pos"])


async def test_connections_do_not_know_of_each_other(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create()
    lists = await alice.slide(conn="room-list", lists=ALL)
    keys = await alice.slide(conn="encryption", extensions={"to_device": {"enabled": True}})
    assert keys["rooms"] == {} and keys["lists"] == {}
    await alice.say(room_id, "x")
    await bob.send_to_device(alice, {"n": 1})
    second = await alice.slide(lists["pos"], conn="room-list", lists=ALL)
    assert bodies(second["rooms"][room_id]) == ["x"] and second["extensions"] == {}
    inbox = await alice.slide(
        keys["pos"], conn="encryption", extensions={"to_device": {"enabled": True}}, timeout=5000
    )
    assert [e["content"] for e in inbox["extensions"]["to_device"]["events"]] == [{"n": 1}]
    for number in range(MAX_CONNECTIONS):
        await alice.slide(conn=f"more{number}", lists=ALL)
    assert await unknown(alice, second["pos"], "room-list"), "the one used longest ago has given way"
    assert not await unknown(alice, (await alice.slide(conn="more1", lists=ALL))["pos"], "more1")


async def test_old_connections_are_forgotten(api: Api, db: Database, alice: Phone) -> None:
    await alice.create()
    other = await alice.log_in()
    mine, theirs = await alice.slide(lists=ALL), await other.slide(lists=ALL)
    await sliding_sync.purge(db, 0)
    assert not await unknown(alice, mine["pos"])
    await other.ok("POST", "/logout", {})
    await sliding_sync.purge(db, 0)
    assert await db.fetchval("SELECT count(*) FROM sliding_connections") == 1
    await sliding_sync.purge(db, 2**62)
    assert await unknown(alice, mine["pos"]) and theirs
    for table in ("sliding_connections", "sliding_positions", "sliding_rooms"):
        assert await db.fetchval(f"SELECT count(*) FROM {table}") == 0, table


async def test_what_is_stored_does_not_grow(db: Database, alice: Phone) -> None:
    """A client that keeps up costs nothing, one whose windows move two rows a room at most."""
    rooms = [await alice.create() for _ in range(3)]
    pos = (await alice.slide(lists=ALL))["pos"]
    for number in range(3):
        await alice.say(rooms[number], "x")
        pos = (await alice.slide(pos, lists=ALL))["pos"]
    assert await db.fetchval("SELECT count(*) FROM sliding_positions") == 1
    for number in range(12):
        await alice.say(rooms[number % 3], "x")
        pos = (await alice.slide(pos, lists={"top": window([0, 0])}))["pos"]
    assert await db.fetchval("SELECT count(*) FROM sliding_positions") <= 2
    assert (
        await db.fetchval(
            "SELECT max(n) FROM (SELECT count(*) AS n FROM sliding_rooms GROUP BY room_id) AS c"
        )
        <= 2
    )


@pytest.mark.parametrize(("limit", "most"), [("MAX_ROOMS", 2), ("MAX_EVENTS", 11), ("MAX_MEMBER_LISTS", 2)])
async def test_many_rooms_come_in_parts(
    alice: Phone, limit: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"lmserver.rooms.sliding.service.{limit}", most)
    rooms = [await alice.create() for _ in range(5)][::-1]
    seen: list[str] = []
    pos = None
    wanted = {"lists": {"all": window(limit=5, state=[("*", "*")])}, "extensions": EVERYTHING}
    for size in (2, 2, 1, 0):
        answer = await alice.slide(pos, timeout=60_000 if size else 0, **wanted)
        assert len(answer["rooms"]) == size and answer["lists"]["all"]["count"] == 5
        seen += answer["rooms"]
        pos = answer["pos"]
    assert seen == rooms
    # The same with what is new in rooms that the client knows.
    for room_id in rooms[::-1]:
        await alice.say(room_id, "new")
    seen = []
    for _ in range(5):
        answer = await alice.slide(pos, **wanted)
        pos = answer["pos"]
        for room_id, said in answer["rooms"].items():
            assert said["initial"] is False and bodies(said) == ["new"]
            seen.append(room_id)
    assert seen == rooms


# -- waiting ------------------------------------------------------------------------------------


async def polled(phone: Phone, what: Callable[[], Awaitable[Any]], **body: Any) -> Any:
    """The answer of a long poll that something wakes."""
    pos = (await phone.slide(**body))["pos"]
    waiting = await polling(
        phone.api.server.notifier, phone.id, phone.slide(pos, timeout=60_000, settle=False, **body)
    )
    await what()
    return await asyncio.wait_for(waiting, HANGS)


async def test_a_message_wakes(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create()
    await bob.change(room_id, "join")
    answer = await polled(bob, lambda: alice.say(room_id, "news"), lists=ALL)
    assert bodies(answer["rooms"][room_id]) == ["news"]


async def test_a_message_below_the_window_wakes_by_moving_up(alice: Phone) -> None:
    low = await alice.create()
    await alice.create()
    answer = await polled(alice, lambda: alice.say(low, "up"), lists={"top": window([0, 0])})
    assert bodies(answer["rooms"][low]) == ["up"]


async def test_an_invite_wakes(alice: Phone, bob: Phone) -> None:
    answer = await polled(bob, lambda: alice.create(invite=[bob.id]), lists=ALL)
    [said] = answer["rooms"].values()
    assert said["membership"] == "invite"


async def test_receipts_typing_account_data_and_messages_to_the_device_wake(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create()
    await bob.change(room_id, "join")
    said = await alice.say(room_id, "x")
    wanted = {"lists": ALL, "extensions": EVERYTHING}
    answer = await polled(alice, lambda: bob.read(room_id, said), **wanted)
    receipt = answer["extensions"]["receipts"]["rooms"][room_id]
    assert receipt["type"] == "m.receipt" and bob.id in receipt["content"][said]["m.read"]
    answer = await polled(alice, lambda: bob.type(room_id), **wanted)
    assert answer["extensions"]["typing"]["rooms"][room_id]["content"] == {"user_ids": [bob.id]}
    answer = await polled(alice, lambda: alice.put_data("org.test", {"x": 1}, room_id), **wanted)
    assert answer["extensions"]["account_data"]["rooms"] == {
        room_id: [{"type": "org.test", "content": {"x": 1}}]
    }
    answer = await polled(alice, lambda: bob.send_to_device(alice, {"n": 1}), **wanted)
    assert len(answer["extensions"]["to_device"]["events"]) == 1
    assert answer["rooms"] == {}


async def test_asking_for_something_else_is_answered_at_once(alice: Phone) -> None:
    await alice.create()
    pos = (await alice.slide(lists=ALL))["pos"]
    changed = await asyncio.wait_for(
        alice.slide(pos, lists={"top": window([0, 3], limit=5)}, timeout=60_000), 3
    )
    assert changed["rooms"] == {}
    idle = await alice.slide(changed["pos"], lists={"top": window([0, 3], limit=5)}, timeout=150)
    assert idle["rooms"] == {} and idle["pos"].split(".")[0] == changed["pos"].split(".")[0]
    anew = await asyncio.wait_for(alice.slide(lists={"top": window([5, 9])}, timeout=60_000), HANGS)
    assert anew["rooms"] == {} and anew["lists"]["top"]["count"] == 1


async def test_a_newer_request_ends_the_older_and_loses_nothing(alice: Phone) -> None:
    room_id = await alice.create()
    pos = (await alice.slide(lists=ALL))["pos"]
    older = await polling(alice.api.server.notifier, alice.id, alice.slide(pos, lists=ALL, timeout=60_000))
    newer = asyncio.create_task(alice.slide(pos, lists=ALL, timeout=60_000))
    ended = await asyncio.wait_for(older, HANGS)
    assert ended["rooms"] == {} and ended["pos"] == pos
    await eventually(lambda: polls(alice.api.server.notifier, alice.id) == 1)
    await alice.say(room_id, "x")
    assert bodies((await asyncio.wait_for(newer, HANGS))["rooms"][room_id]) == ["x"]


async def test_r6_a_user_with_too_many_polls_lets_the_oldest_go(alice: Phone) -> None:
    """Attack R6."""
    phones = [alice, await alice.log_in()]
    made: list[asyncio.Task[Any]] = []
    for number in range(MAX_POLLS + 1):
        phone, conn = phones[number % 2], f"c{number // 2}"
        pos = (await phone.slide(conn=conn))["pos"]
        made.append(asyncio.create_task(phone.slide(pos, conn=conn, timeout=60_000)))
        expected = min(number + 1, MAX_POLLS)
        await eventually(lambda: polls(alice.api.server.notifier, alice.id) == expected)  # noqa: B023
    done, waiting = await asyncio.wait(made, timeout=HANGS, return_when=asyncio.FIRST_COMPLETED)
    assert done == {made[0]} and len(waiting) == MAX_POLLS
    await alice.put_data("org.test", {})
    for poll in waiting:
        poll.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_client_that_hangs_up_all_the_time_misses_nothing(alice: Phone, bob: Phone) -> None:
    """Requests are given up at any moment and made again with the last `pos` that came, with another
    window sometimes; the client has every message in the end, in order."""
    chance = random.Random(7)
    rooms = [await alice.create() for _ in range(3)]
    for room_id in rooms:
        await bob.change(room_id, "join")
    said: dict[str, list[str]] = {room_id: [] for room_id in rooms}

    async def talk() -> None:
        for number in range(45):
            room_id = chance.choice(rooms)
            said[room_id].append(await alice.say(room_id, str(number)))

    heard: dict[str, list[str]] = {room_id: [] for room_id in rooms}
    pos = (await bob.slide(lists={"all": window(limit=50)}))["pos"]
    talking = asyncio.create_task(talk())
    quiet = 0
    while quiet < 3:
        lists = {"all": window([0, chance.choice([0, 1, 9])] if not talking.done() else [0, 9], limit=50)}
        request = bob.slide(pos, timeout=200, settle=talking.done(), lists=lists)
        try:
            answer = await asyncio.wait_for(request, 5 if talking.done() else chance.uniform(0.001, 0.06))
        except TimeoutError:
            continue
        quiet = quiet + 1 if talking.done() and not answer["rooms"] else 0
        pos = answer["pos"]
        for room_id, told in answer["rooms"].items():
            assert told["initial"] is False and told["limited"] is False
            new = [e["event_id"] for e in told["timeline"]]
            assert not set(new) & set(heard[room_id]), "told twice"
            heard[room_id] += new
    await talking
    assert heard == said


# -- extensions ---------------------------------------------------------------------------------


async def test_messages_to_the_device_are_deleted_when_acknowledged(
    db: Database, alice: Phone, bob: Phone
) -> None:
    await bob.send_to_device(alice, {"n": 1})
    first = await alice.slide(extensions={"to_device": {"enabled": True}})
    box = first["extensions"]["to_device"]
    again = await alice.slide(first["pos"], extensions={"to_device": {"enabled": True}})
    assert again["extensions"]["to_device"]["events"] == box["events"], "not acknowledged yet"
    await bob.send_to_device(alice, {"n": 2})
    acknowledged = {"to_device": {"enabled": True, "since": box["next_batch"], "limit": 100}}
    second = await alice.slide(again["pos"], extensions=acknowledged)
    assert [e["content"]["n"] for e in second["extensions"]["to_device"]["events"]] == [2]
    assert await db.fetchval("SELECT count(*) FROM to_device_messages") == 1
    anew = await alice.slide(extensions=acknowledged)
    assert [e["content"]["n"] for e in anew["extensions"]["to_device"]["events"]] == [2]


async def test_many_messages_to_the_device_come_in_parts(alice: Phone, bob: Phone) -> None:
    pos = (await alice.slide(extensions={"to_device": {"enabled": True}}))["pos"]
    for number in range(5):
        await bob.send_to_device(alice, {"n": number})
    got: list[list[int]] = []
    since = "0"
    for _ in range(4):
        wanted = {"to_device": {"enabled": True, "since": since, "limit": 2}}
        answer = await alice.slide(pos, extensions=wanted, timeout=5000 if len(got) < 3 else 0)
        box = answer["extensions"]["to_device"]
        got.append([e["content"]["n"] for e in box["events"]])
        pos, since = answer["pos"], box["next_batch"]
    assert got == [[0, 1], [2, 3], [4], []]


async def test_keys_and_device_lists(alice: Phone, bob: Phone) -> None:
    shared = await alice.create()
    pos = (await alice.slide(extensions={"e2ee": {"enabled": True}}))["pos"]
    await bob.change(shared, "join")
    carol = await Phone.register(alice.api, "carol")
    theirs = await carol.create()
    await alice.change(theirs, "join")
    second = await alice.slide(pos, extensions={"e2ee": {"enabled": True}}, timeout=5000)
    assert second["rooms"] == {}
    keys = second["extensions"]["e2ee"]
    assert keys["device_lists"] == {"changed": [bob.id, carol.id], "left": []}
    assert keys["device_one_time_keys_count"] == {"signed_curve25519": 0}
    assert keys["device_unused_fallback_key_types"] == []
    await alice.change(theirs, "leave")
    await bob.change(shared, "leave")
    third = await alice.slide(second["pos"], extensions={"e2ee": {"enabled": True}})
    assert third["extensions"]["e2ee"]["device_lists"] == {"changed": [], "left": [bob.id, carol.id]}


async def test_account_data_of_windows_only(alice: Phone) -> None:
    low, high = await alice.create(), await alice.create()
    for room_id in (low, high):
        await alice.put_data("org.test", {"r": room_id}, room_id)
    await alice.put_data("org.test", {"global": True})
    top = {"top": window([0, 0])}
    enabled = {"account_data": {"enabled": True}}
    first = await alice.slide(lists=top, extensions=enabled)
    data = first["extensions"]["account_data"]
    assert {"type": "org.test", "content": {"global": True}} in data["global"] and list(data["rooms"]) == [
        high
    ]
    await alice.put_data("org.test", {"r": "changed"}, low)
    second = await alice.slide(first["pos"], lists=top, extensions=enabled)
    assert second["extensions"]["account_data"] == {"global": [], "rooms": {}}
    await alice.say(low, "x")
    third = await alice.slide(second["pos"], lists=top, extensions=enabled)
    assert third["extensions"]["account_data"]["rooms"][low][0]["content"] == {"r": "changed"}
    await alice.put_data("org.test", {"r": "missed"}, high)
    await alice.say(high, "x")
    fourth = await alice.slide(third["pos"], lists=top, extensions=enabled)
    assert fourth["extensions"]["account_data"]["rooms"] == {
        high: [{"type": "org.test", "content": {"r": "missed"}}]
    }
    # Switched off and on again, nothing is missed.
    off = await alice.slide(fourth["pos"], lists=top)
    await alice.put_data("org.test", {"r": "off"}, high)
    off = await alice.slide(off["pos"], lists=top)
    on = await alice.slide(off["pos"], lists=top, extensions=enabled)
    assert on["extensions"]["account_data"]["rooms"] == {
        high: [{"type": "org.test", "content": {"r": "off"}}]
    }


async def test_extensions_of_named_lists_and_rooms(alice: Phone) -> None:
    low, high = await alice.create(), await alice.create()
    for room_id in (low, high):
        await alice.put_data("org.test", {}, room_id)
    wanted = {"lists": {"top": window([0, 0])}, "room_subscriptions": {low: room()}}

    async def covered(**limits: Any) -> set[str]:
        extensions = {"account_data": {"enabled": True, **limits}}
        answer = await alice.slide(extensions=extensions, **wanted)
        return set(answer["extensions"]["account_data"]["rooms"])

    assert await covered() == await covered(lists=["*"], rooms=["*"]) == {low, high}
    assert await covered(lists=["top"], rooms=[]) == {high}
    assert await covered(lists=[], rooms=[low]) == {low}
    assert await covered(lists=["none"], rooms=["!none:hub.test"]) == set()


async def test_receipts_of_a_new_room_are_those_that_matter(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create()
    await bob.change(room_id, "join")
    carol = await Phone.register(alice.api, "carol")
    await carol.change(room_id, "join")
    old, new = await alice.say(room_id, "old"), await alice.say(room_id, "new")
    await alice.read(room_id, old, "m.read.private")
    await bob.read(room_id, old)
    await carol.read(room_id, new)
    lists = {"all": window([0, 9], limit=1)}
    first = await alice.slide(lists=lists, extensions={"receipts": {"enabled": True}})
    content = first["extensions"]["receipts"]["rooms"][room_id]["content"]
    assert content[old].keys() == {"m.read.private"} and list(content[new]["m.read"]) == [carol.id]
    theirs = await bob.slide(lists=lists, extensions={"receipts": {"enabled": True}})
    assert alice.id not in str(theirs["extensions"])
    await bob.read(room_id, new)
    second = await alice.slide(first["pos"], lists=lists, extensions={"receipts": {"enabled": True}})
    content = second["extensions"]["receipts"]["rooms"][room_id]["content"]
    assert content[new]["m.read"].keys() == {bob.id} and second["rooms"] == {}


async def test_a_room_that_comes_back_tells_what_was_missed_beside_its_events(
    alice: Phone, bob: Phone
) -> None:
    """Unread counts after reading elsewhere, and that nobody types any more."""
    low = await alice.create()
    await bob.change(low, "join")
    said = await alice.say(low, "x")
    enabled = {"typing": {"enabled": True}}
    await alice.type(low)
    first = await bob.slide(lists={"top": window([0, 0])}, extensions=enabled)
    assert first["rooms"][low]["notification_count"] == 1
    assert first["extensions"]["typing"]["rooms"][low]["content"]["user_ids"] == [alice.id]
    high = await bob.create()
    second = await bob.slide(first["pos"], lists={"top": window([0, 0])}, extensions=enabled)
    assert list(second["rooms"]) == [high]
    await bob.read(low, said)
    await alice.type(low, typing=False)
    third = await bob.slide(second["pos"], lists={"top": window([0, 0])}, extensions=enabled)
    assert third["rooms"] == {} and third["extensions"]["typing"]["rooms"] == {}
    back = await bob.slide(third["pos"], lists={"top": window([0, 1])}, extensions=enabled)
    assert back["rooms"][low]["notification_count"] == 0 and back["rooms"][low]["timeline"] == []
    assert back["extensions"]["typing"]["rooms"][low]["content"]["user_ids"] == []
    after = await bob.slide(back["pos"], lists={"top": window([0, 1])}, extensions=enabled)
    assert after["rooms"] == {} and after["extensions"]["typing"]["rooms"] == {}


# -- requests nobody should send ----------------------------------------------------------------

BASE: dict[str, Any] = {"timeline_limit": 1, "required_state": []}
LONG = "x" * 256


BAD_BODIES: list[tuple[Any, str]] = [
    ([], "M_BAD_JSON"),
    ({"lists": []}, "M_BAD_JSON"),
    ({"lists": {"a": 5}}, "M_BAD_JSON"),
    ({"lists": {"a": {}}}, "M_MISSING_PARAM"),
    ({"lists": {"a": {"timeline_limit": 1}}}, "M_MISSING_PARAM"),
    ({"lists": {"a": {**BASE, "timeline_limit": "1"}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "timeline_limit": True}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "timeline_limit": 1.5}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "timeline_limit": -1}}}, "M_INVALID_PARAM"),
    ({"lists": {"a": {**BASE, "required_state": 5}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "required_state": [["m.room.name"]]}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "required_state": [["m.room.name", None]]}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "required_state": [[LONG, ""]]}}}, "M_INVALID_PARAM"),
    ({"lists": {"a": {**BASE, "required_state": [["a\0", ""]]}}}, "M_INVALID_PARAM"),
    ({"lists": {"a": {**BASE, "required_state": [["t", str(n)] for n in range(201)]}}}, "M_INVALID_PARAM"),
    ({"lists": {"a": {**BASE, "required_state": {"include": 5}}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "required_state": {"include": [{"type": 5}]}}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "required_state": {"lazy_members": 1}}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "ranges": 5}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "ranges": [5]}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "ranges": [[0]]}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "ranges": [[0, "9"]]}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "ranges": [[5, 2]]}}}, "M_INVALID_PARAM"),
    ({"lists": {"a": {**BASE, "ranges": [[-1, 2]]}}}, "M_INVALID_PARAM"),
    ({"lists": {"a": {**BASE, "ranges": [[0, 10**12]]}}}, "M_INVALID_PARAM"),
    ({"lists": {"a": {**BASE, "ranges": [[0, 1]] * 21}}}, "M_INVALID_PARAM"),
    ({"lists": {"a": {**BASE, "filters": []}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "filters": {"is_dm": 1}}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "filters": {"spaces": "!a:b"}}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "filters": {"tags": [None]}}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "filters": {"room_types": [5]}}}}, "M_BAD_JSON"),
    ({"lists": {"a": {**BASE, "filters": {"tags": ["x"] * 501}}}}, "M_INVALID_PARAM"),
    ({"lists": {str(n): BASE for n in range(101)}}, "M_INVALID_PARAM"),
    ({"lists": {LONG: BASE}}, "M_INVALID_PARAM"),
    ({"room_subscriptions": {"nonsense": BASE}}, "M_INVALID_PARAM"),
    ({"room_subscriptions": {"!a:b": []}}, "M_BAD_JSON"),
    ({"room_subscriptions": {f"!{n}:b": BASE for n in range(501)}}, "M_INVALID_PARAM"),
    (
        {"room_subscriptions": {f"!{n}:b": {**BASE, "required_state": [[f"{n}-{k}" * 15, "y" * 200] for k in range(20)]} for n in range(20)}},
        "M_INVALID_PARAM",
    ),
    ({"extensions": 5}, "M_BAD_JSON"),
    ({"extensions": {"typing": 5}}, "M_BAD_JSON"),
    ({"extensions": {"typing": {"enabled": 1}}}, "M_BAD_JSON"),
    ({"extensions": {"receipts": {"enabled": True, "rooms": 5}}}, "M_BAD_JSON"),
    ({"extensions": {"to_device": {"enabled": True, "since": 5}}}, "M_BAD_JSON"),
    ({"extensions": {"to_device": {"enabled": True, "since": "x"}}}, "M_INVALID_PARAM"),
    ({"extensions": {"to_device": {"enabled": True, "limit": -1}}}, "M_INVALID_PARAM"),
    ({"conn_id": 5}, "M_BAD_JSON"),
    ({"conn_id": LONG}, "M_INVALID_PARAM"),
    ({"conn_id": "a\0b"}, "M_INVALID_PARAM"),
    ({"conn_id": "\ud800"}, "M_BAD_JSON"),
    ({"pos": 5}, "M_BAD_JSON"),
    ({"timeout": "5"}, "M_BAD_JSON"),
    ({"timeout": -5}, "M_INVALID_PARAM"),
    ({"set_presence": "asleep"}, "M_INVALID_PARAM"),
    ({"extensions": {"unknown": {"x": 10**400}}}, "M_BAD_JSON"),
    ({"lists": {"\udfff": BASE}}, "M_BAD_JSON"),
]  # fmt: skip


async def test_bad_bodies(alice: Phone) -> None:
    for body, errcode in BAD_BODIES:
        status, answer = await alice.ask(body)
        assert (status, answer["errcode"]) == (400, errcode), (body, answer)


async def test_unknown_members_and_extensions_are_left_alone(alice: Phone) -> None:
    status, answer = await alice.ask(
        {
            "unsubscribe_rooms": ["!a:b"], "clientTimeout": 5, "lists": {"a": {**BASE, "sort": ["by_name"]}},
            "extensions": {"presence": {"enabled": True}, "typing": {"enabled": False}, "org.x": {"enabled": True}},
        }
    )  # fmt: skip
    assert status == 200 and answer["extensions"] == {}
    assert (await alice.ask({}))[0] == 200
