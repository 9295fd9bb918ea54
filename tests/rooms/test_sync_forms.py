"""/sync's parameters and filters one by one, and what hostile use of it costs (attacks R5, R6)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from lmserver.accounts.client_data import ClientData
from lmserver.rooms.sync.filters import BadFilter, SyncFilter, parse_sync_filter
from lmserver.rooms.sync.interval import SyncRequest
from lmserver.rooms.sync.polls import MAX_POLLS
from lmserver.rooms.sync.sync import WHOLE_AT_ONCE
from lmserver.rooms.sync.tokens import parse_sync
from lmserver.storage import room_reads
from tests.kit.reading_world import CAROL, DAVE, World, texts
from tests.kit.rooms import ALICE, ROOM, draft
from tests.kit.waiting import HANGS, eventually, polling

OTHER = "!other:hub.test"
STATE_AFTER = "org.matrix.msc4222.state_after"


def room(answer: dict[str, Any], room_id: str = ROOM, section: str = "join") -> dict[str, Any]:
    found: dict[str, Any] = answer["rooms"][section][room_id]
    return found


def names(section: dict[str, Any], part: str = "state") -> list[str]:
    return [e["content"].get("name") for e in section[part]["events"] if e["type"] == "m.room.name"]


async def name(world: World, text: str) -> None:
    await world.state("m.room.name", {"name": text})


# -- state after the timeline -----------------------------------------------------------------------


async def test_state_after_is_the_state_at_the_end(world: World) -> None:
    """MSC4222: all that changed since the token, in the timeline or not; no `state` beside it."""
    await world.create()
    first = await world.sync(ALICE, state_after=(STATE_AFTER,))
    assert "state" not in room(first)
    assert {e["type"] for e in room(first)[STATE_AFTER]["events"]} >= {"m.room.create", "m.room.join_rules"}
    await name(world, "one")
    await name(world, "two")
    section = room(await world.sync(ALICE, first["next_batch"], state_after=(STATE_AFTER,)))
    assert names(section, "timeline") == ["one", "two"]
    assert names(section, STATE_AFTER) == ["two"]
    world.restart()
    again = room(await world.sync(ALICE, first["next_batch"], state_after=("state_after",)))
    assert names(again, "state_after") == ["two"]


async def test_state_after_is_there_when_only_messages_came_or_the_room_was_left(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    first = await world.sync(CAROL)
    await world.say("hi")
    second = await world.sync(CAROL, first["next_batch"], state_after=(STATE_AFTER,))
    assert room(second)[STATE_AFTER] == {"events": []}
    await world.member("ban", CAROL, by=ALICE)
    left = room(await world.sync(CAROL, second["next_batch"], state_after=(STATE_AFTER,)), section="leave")
    assert "state" not in left
    assert [e["content"] for e in left[STATE_AFTER]["events"]] == [{"membership": "ban"}]


# -- filters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
async def test_state_that_the_timeline_filter_hides_is_told_as_state(world: World, restart: bool) -> None:
    await world.create()
    first = await world.sync(ALICE)
    await world.say("before")
    await name(world, "new")
    await world.say("after")
    if restart:
        world.restart()
    filter_ = {"room": {"timeline": {"types": ["m.room.message"]}}}
    section = room(await world.sync(ALICE, first["next_batch"], filter_=filter_))
    assert texts(section) == ["before", "after"]
    assert names(section) == ["new"]


async def test_event_fields_and_format(world: World) -> None:
    await world.create()
    await world.say("hello")
    last = {"timeline": {"limit": 1}}
    filter_ = {"room": last, "event_fields": ["type", "content.body", r"content.a\.b", "unsigned.age.x"]}
    [event] = room(await world.sync(ALICE, filter_=filter_))["timeline"]["events"]
    assert event == {"type": "m.room.message", "content": {"body": "hello"}}
    [raw] = room(await world.sync(ALICE, filter_={"room": last, "event_format": "federation"}))["timeline"][
        "events"
    ]
    assert {"hashes", "signatures", "prev_events"} <= set(raw)
    for bad in (
        {"event_format": "xml"},
        {"event_fields": "type"},
        {"room": {"state": {"lazy_load_members": 1}}},
    ):
        with pytest.raises(BadFilter):
            parse_sync_filter(bad)


@pytest.mark.parametrize("restart", [False, True])
async def test_no_field_of_the_protocol_reaches_clients(world: World, restart: bool) -> None:
    await world.create()
    first = await world.sync(ALICE)
    await world.say("a", sender=ALICE)
    await name(world, "b")
    if restart:
        world.restart()
    fields = {"event_id", "type", "sender", "origin_server_ts", "content", "state_key", "unsigned", "redacts"}
    for answer in (first, await world.sync(ALICE, first["next_batch"]), await world.sync(ALICE)):
        section = room(answer)
        for event in section["timeline"]["events"] + section["state"]["events"]:
            assert set(event) <= fields


@pytest.mark.parametrize(
    ("part", "filter_"),
    [
        ("ephemeral", {"ephemeral": {"not_types": ["m.*"]}}),
        ("ephemeral", {"ephemeral": {"not_rooms": [ROOM]}}),
        ("account_data", {"account_data": {"rooms": [OTHER]}}),
        ("state", {"state": {"not_rooms": [ROOM]}}),
        ("state", {"state": {"senders": [DAVE]}}),
        ("timeline", {"timeline": {"rooms": [OTHER]}}),
        ("timeline", {"timeline": {"contains_url": True}}),
    ],
)
async def test_filters_of_parts(world: World, part: str, filter_: dict[str, Any]) -> None:
    await world.create()
    await world.say(*(str(n) for n in range(12)))
    first = await world.sync(ALICE)
    world.typing.start(ROOM, CAROL, 5)
    world.account_data.rows = [(0, ROOM, {"type": "m.tag", "content": {}})]
    whole = room(await world.sync(ALICE))
    assert whole[part]["events"]
    assert room(await world.sync(ALICE, filter_={"room": filter_}))[part]["events"] == []
    assert first["next_batch"]


async def test_matching_many_stars_takes_no_time(world: World) -> None:
    """A glob is matched from left to right, never tried again (attack R5)."""
    hostile = "*" + "a*" * 2_000 + "b"
    matcher = parse_sync_filter({"room": {"timeline": {"types": [hostile]}}}).timeline
    started = time.process_time()
    assert not matcher.type_passes("a" * 60_000)
    assert time.process_time() - started < 1.0


# -- rooms entered and left -------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
async def test_leaving_and_coming_back_between_two_answers_is_a_new_room(world: World, restart: bool) -> None:
    """State changed unseen while the user was out: the client gets all of it, and a gap."""
    await world.create(visibility="joined")
    await world.member("join", CAROL)
    first = await world.sync(CAROL)
    await world.member("leave", CAROL)
    await name(world, "unseen")
    await world.member("join", CAROL)
    await world.say("here again")
    if restart:
        world.restart()
    answer = await world.sync(CAROL, first["next_batch"])
    section = room(answer)
    assert section["timeline"]["limited"]
    assert names(section) == ["unseen"]
    assert texts(section) == ["here again"]
    assert ALICE in answer["device_lists"]["changed"]


@pytest.mark.parametrize("restart", [False, True])
async def test_joining_and_leaving_between_two_answers(world: World, restart: bool) -> None:
    await world.create()
    first = await world.sync(CAROL)
    await world.member("join", CAROL)
    await world.member("leave", CAROL)
    if restart:
        world.restart()
    answer = await world.sync(CAROL, first["next_batch"])
    section = room(answer, section="leave")
    assert section["timeline"]["events"][-1]["content"] == {"membership": "leave"}
    assert answer["device_lists"]["left"] == []


async def test_a_summary_only_when_it_changed(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    first = await world.sync(ALICE)
    await world.state("m.room.member", {"membership": "join", "displayname": "C"}, key=CAROL, sender=CAROL)
    second = await world.sync(ALICE, first["next_batch"])
    assert "summary" not in room(second)
    await world.member("leave", CAROL)
    third = room(await world.sync(ALICE, second["next_batch"]))
    assert third["summary"] == {
        "m.heroes": [CAROL], "m.joined_member_count": 1, "m.invited_member_count": 0,
    }  # fmt: skip


async def test_members_a_room_is_named_after_come_with_the_summary(world: World) -> None:
    await world.create()
    for user in (CAROL, DAVE):
        await world.member("join", user)
    await world.say(*(str(n) for n in range(12)))
    lazy = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 2}}}
    section = room(await world.sync(ALICE, filter_=lazy))
    members = {e["state_key"] for e in section["state"]["events"] if e["type"] == "m.room.member"}
    assert members == {ALICE, CAROL, DAVE}


async def test_members_are_told_once_unless_the_answer_was_lost(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    await world.state("x.y", {})
    lazy = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 1}}}
    since = (await world.sync(ALICE, device="other", filter_={}))["next_batch"]

    async def told(token: str) -> tuple[set[str], str]:
        answer = await world.sync(ALICE, token, filter_=lazy)
        return {e["state_key"] for e in room(answer)["state"]["events"]}, answer["next_batch"]

    await world.say("1", sender=CAROL)
    assert (await told(since))[0] == {CAROL}
    members, next_batch = await told(since)  # the same token again: the answer was lost
    assert members == {CAROL}
    await world.say("2", sender=CAROL)
    assert (await told(next_batch))[0] == set()


# -- what else wakes a client -----------------------------------------------------------------------


async def test_account_data_wakes_a_client_and_is_read_where_it_changed(world: World) -> None:
    """With the tables themselves: the journal tells of them."""
    data = ClientData(world.db, world.notifier.publish)
    world.feeds._account_data = data
    await world.create()
    first = await world.sync(ALICE)
    poll = await polling(world.notifier, ALICE, world.sync(ALICE, first["next_batch"], timeout=60))
    await data.put(ALICE, "", "m.direct", {"a": 1})
    answer = await asyncio.wait_for(poll, HANGS)
    assert [e["type"] for e in answer["account_data"]["events"]] == ["m.direct"]
    await data.put(ALICE, ROOM, "m.tag", {"tags": {}})
    answer = await world.sync(ALICE, answer["next_batch"])
    assert [e["type"] for e in room(answer)["account_data"]["events"]] == ["m.tag"]
    assert (await world.sync(ALICE, answer["next_batch"]))["rooms"] == {}


async def test_a_redaction_reaches_those_who_keep_up(world: World) -> None:
    """Attack C7: an event kept in memory goes out pruned once it is redacted."""
    await world.create()
    await world.member("join", CAROL)
    first = await world.sync(ALICE)
    [said] = await world.say("secret", sender=CAROL)
    second = await world.sync(ALICE, first["next_batch"])
    assert texts(room(second)) == ["secret"]
    await world.send(draft("m.room.redaction", {"redacts": said}, sender=CAROL))
    late = room(await world.sync(ALICE, first["next_batch"]))
    assert texts(late) == []
    assert late["timeline"]["events"][0]["unsigned"]["redacted_because"]["content"] == {"redacts": said}


# -- hostile use ------------------------------------------------------------------------------------


def request(user: str, device: str, since: str | None, timeout: float = 60) -> SyncRequest:
    return SyncRequest(user, device, None if since is None else parse_sync(since), SyncFilter(), timeout)


async def test_r6_one_user_has_so_many_polls_and_no_more(world: World) -> None:
    """Attack R6: the poll that waits longest is ended, with the answer there is; others are not."""
    await world.create()
    await world.member("join", CAROL)
    since = (await world.sync(ALICE))["next_batch"]
    carol = asyncio.create_task(world.service.sync(request(CAROL, "C", since)))
    polls = []
    for number in range(MAX_POLLS + 3):
        polls.append(asyncio.create_task(world.service.sync(request(ALICE, f"D{number}", since))))
        await asyncio.sleep(0)
    await asyncio.wait(polls[:3], timeout=HANGS)
    waiting = polls[3:]
    assert [poll.done() for poll in polls] == [True] * 3 + [False] * len(waiting)
    assert not carol.done()
    await world.say("everybody")
    for poll in [*waiting, carol]:
        assert ROOM in (await asyncio.wait_for(poll, HANGS))["rooms"]["join"]
    assert len(world.service._polls) == 0
    assert not world.notifier._listeners


async def test_r5_whole_answers_are_made_a_few_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack R5: a client that asks for everything again and again holds up the others of its kind, and
    not the server's memory."""
    await world.create()
    at_once, most = 0, 0
    positions = room_reads.memberships_at

    async def slowly(*args: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await eventually(lambda: most >= WHOLE_AT_ONCE)
        await asyncio.sleep(0.02)
        at_once -= 1
        return await positions(*args)

    monkeypatch.setattr(room_reads, "memberships_at", slowly)
    await asyncio.gather(*(world.service.sync(request(f"@u{n}:hub.test", "D", None)) for n in range(20)))
    assert most == WHOLE_AT_ONCE


async def test_r5_limits_are_clamped(world: World) -> None:
    """Attack R5: however much is asked for, a timeline has a hundred events."""
    await world.create()
    await world.say(*(str(n) for n in range(105)))
    answer = await world.sync(ALICE, filter_={"room": {"timeline": {"limit": 10**9}}})
    assert len(room(answer)["timeline"]["events"]) == 100
    assert (
        len(
            room(await world.sync(ALICE, filter_={"room": {"timeline": {"limit": -1}}}))["timeline"]["events"]
        )
        == 1
    )
