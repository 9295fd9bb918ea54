"""/sync without HTTP: first answers, increments, gaps, lazy members, filters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from lmserver.storage import account_data, outside
from lmserver.storage.outside import OutsideMembership
from tests.kit.reading_world import CAROL, DAVE, World, texts
from tests.kit.rooms import ALICE, ROOM, draft

OTHER = "!other:hub.test"


def room(answer: dict[str, Any], room_id: str = ROOM, section: str = "join") -> dict[str, Any]:
    found: dict[str, Any] = answer["rooms"][section][room_id]
    return found


def state_types(section: dict[str, Any]) -> set[tuple[str, str]]:
    return {(e["type"], e["state_key"]) for e in section["state"]["events"]}


async def test_first_sync_has_timeline_and_the_state_before_it(world: World) -> None:
    await world.create()
    await world.say(*(f"m{i}" for i in range(15)))
    section = room(await world.sync(ALICE))
    assert texts(section) == [f"m{i}" for i in range(5, 15)]
    assert section["timeline"]["limited"] is True
    assert state_types(section) == {
        ("m.room.create", ""), ("m.room.member", ALICE),
        ("m.room.power_levels", ""), ("m.room.join_rules", ""),
    }  # fmt: skip
    assert section["summary"] == {
        "m.heroes": [], "m.joined_member_count": 1, "m.invited_member_count": 0,
    }  # fmt: skip


async def test_short_room_is_not_limited_and_state_is_before_the_timeline(world: World) -> None:
    await world.create()
    section = room(await world.sync(ALICE))
    assert [e["type"] for e in section["timeline"]["events"]] == [
        "m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules",
    ]  # fmt: skip
    assert section["timeline"]["limited"] is False
    assert section["state"]["events"] == []
    assert all("room_id" not in e for e in section["timeline"]["events"])


async def test_increment_has_only_what_is_new(world: World) -> None:
    await world.create()
    await world.say("old")
    first = await world.sync(ALICE)
    await world.say("new")
    second = await world.sync(ALICE, first["next_batch"])
    assert texts(room(second)) == ["new"]
    assert room(second)["timeline"]["limited"] is False
    assert "summary" not in room(second)
    third = await world.sync(ALICE, second["next_batch"])
    assert third["rooms"] == {}


async def test_encrypted_messages_tell_the_readers_membership_of_then(world: World) -> None:
    """By it clients explain why one cannot be read (CS API §UnsignedData): from the database and from
    memory alike, and of other events nothing."""
    await world.create(visibility="shared")
    await world.say("plain")
    await world.send(draft("m.room.encrypted", {"n": 1}))
    await world.member("invite", CAROL, by=ALICE)
    await world.send(draft("m.room.encrypted", {"n": 2}))
    await world.member("join", CAROL)
    await world.send(draft("m.room.encrypted", {"n": 3}))
    answer = await world.sync(CAROL)
    await world.send(draft("m.room.encrypted", {"n": 4}))
    later = await world.sync(CAROL, answer["next_batch"])
    events = room(answer)["timeline"]["events"] + room(later)["timeline"]["events"]
    told = {e["content"].get("n"): e["unsigned"].get("membership") for e in events}
    assert told == {None: None, 1: "leave", 2: "invite", 3: "join", 4: "join"}
    await world.member("leave", CAROL)
    await world.member("join", CAROL)
    access = await world.access(CAROL)
    page = await world.reading.backwards(access, 2**40, 50, lambda event: event.type == "m.room.encrypted")
    rendered = await world.reading.render(access, world.reader(CAROL), page.events)
    assert [e["unsigned"]["membership"] for e in rendered] == ["join", "join", "invite", "leave"]


async def test_the_same_token_gives_the_same_events(world: World) -> None:
    await world.create()
    first = await world.sync(ALICE)
    await world.say("a", "b")
    once = await world.sync(ALICE, first["next_batch"])
    again = await world.sync(ALICE, first["next_batch"])
    assert texts(room(once)) == texts(room(again)) == ["a", "b"]


async def test_a_gap_brings_the_state_that_changed_in_it(world: World) -> None:
    await world.create()
    first = await world.sync(ALICE)
    await world.state("m.room.name", {"name": "one"})
    await world.state("m.room.name", {"name": "two"})
    await world.state("m.room.topic", {"topic": "t"})
    await world.say(*(f"m{i}" for i in range(10)))
    await world.state("m.room.avatar", {"url": "mxc://hub.test/a"})
    section = room(await world.sync(ALICE, first["next_batch"]))
    assert section["timeline"]["limited"] is True
    assert state_types(section) == {("m.room.name", ""), ("m.room.topic", "")}
    [name] = [e for e in section["state"]["events"] if e["type"] == "m.room.name"]
    assert name["content"] == {"name": "two"}
    assert section["timeline"]["prev_batch"].startswith("p")


async def test_full_state(world: World) -> None:
    await world.create()
    first = await world.sync(ALICE)
    section = room(await world.sync(ALICE, first["next_batch"], full_state=True))
    assert ("m.room.create", "") in state_types(section)


async def test_joining_shows_the_room_as_new(world: World) -> None:
    await world.create()
    await world.say("before")
    first = await world.sync(CAROL)
    assert first["rooms"] == {}
    await world.member("join", CAROL)
    second = await world.sync(CAROL, first["next_batch"])
    assert texts(room(second)) == ["before"]
    assert second["device_lists"]["changed"] == [ALICE]
    seen_by_alice = await world.sync(ALICE, first["next_batch"])
    assert seen_by_alice["device_lists"]["changed"] == [CAROL]
    assert room(seen_by_alice)["summary"]["m.heroes"] == [CAROL]


async def test_history_before_the_join_is_hidden_when_it_is_for_members(world: World) -> None:
    await world.create(visibility="joined")
    await world.say("secret")
    first = await world.sync(CAROL)
    await world.member("join", CAROL)
    await world.say("open")
    section = room(await world.sync(CAROL, first["next_batch"]))
    assert texts(section) == ["open"]
    assert ("m.room.create", "") in state_types(section)


async def test_a_profile_change_is_no_new_room(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    first = await world.sync(CAROL)
    await world.state("m.room.member", {"membership": "join", "displayname": "C"}, key=CAROL, sender=CAROL)
    section = room(await world.sync(CAROL, first["next_batch"]))
    [event] = section["timeline"]["events"]
    assert event["unsigned"]["prev_content"] == {"membership": "join"}
    assert (await world.sync(ALICE, first["next_batch"]))["device_lists"]["changed"] == []


async def test_leaving_ends_in_the_leave_section_and_nothing_later(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    await world.member("join", DAVE)
    first = await world.sync(CAROL)
    await world.say("last")
    await world.member("leave", CAROL)
    await world.say("after")
    second = await world.sync(CAROL, first["next_batch"])
    section = room(second, section="leave")
    assert texts(section) == ["last"]
    assert section["timeline"]["events"][-1]["content"] == {"membership": "leave"}
    assert second["device_lists"]["left"] == sorted([ALICE, DAVE])
    assert (await world.sync(CAROL, second["next_batch"]))["rooms"] == {}
    assert (await world.sync(ALICE, first["next_batch"]))["device_lists"]["left"] == [CAROL]


async def test_sharing_another_room_is_still_sharing(world: World) -> None:
    await world.create()
    await world.create(OTHER)
    for room_id in (ROOM, OTHER):
        await world.member("join", CAROL, room_id=room_id)
    first = await world.sync(ALICE)
    await world.member("leave", CAROL)
    assert (await world.sync(ALICE, first["next_batch"]))["device_lists"] == {"changed": [], "left": []}


async def test_a_ban_is_a_leave_with_the_reason(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    first = await world.sync(CAROL)
    await world.member("ban", CAROL, by=ALICE)
    await world.say("after")
    section = room(await world.sync(CAROL, first["next_batch"]), section="leave")
    assert texts(section) == []
    assert section["timeline"]["events"][-1]["content"]["membership"] == "ban"


async def test_leave_rooms_on_a_first_sync_only_when_asked(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    await world.say("seen")
    await world.member("leave", CAROL)
    await world.say("unseen")
    assert (await world.sync(CAROL))["rooms"] == {}
    answer = await world.sync(CAROL, filter_={"room": {"include_leave": True}})
    assert texts(room(answer, section="leave")) == ["seen"]


async def test_an_invite_shows_stripped_state(world: World) -> None:
    await world.create(join_rule="invite")
    await world.state("m.room.name", {"name": "club"})
    first = await world.sync(CAROL)
    await world.member("invite", CAROL, by=ALICE)
    answer = await world.sync(CAROL, first["next_batch"])
    events = room(answer, section="invite")["invite_state"]["events"]
    assert {"type": "m.room.name", "state_key": "", "sender": ALICE, "content": {"name": "club"}} in events
    assert events[-1]["state_key"] == CAROL
    assert events[-1]["content"]["membership"] == "invite"
    assert all(set(e) == {"type", "state_key", "sender", "content"} for e in events)
    rejected = await world.member("leave", CAROL)
    later = await world.sync(CAROL, answer["next_batch"])
    [event] = room(later, section="leave")["timeline"]["events"]
    assert event["event_id"] == rejected


async def test_lazy_loading_brings_senders_only(world: World) -> None:
    await world.create()
    for user in (CAROL, DAVE):
        await world.member("join", user)
    await world.say(*(f"m{i}" for i in range(12)), sender=CAROL)
    lazy = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 5}}}
    first = await world.sync(ALICE, filter_={"room": {**lazy["room"], "timeline": {"limit": 5}}})
    assert {k for t, k in state_types(room(first)) if t == "m.room.member"} >= {ALICE, CAROL}
    await world.say("d", sender=DAVE)
    redundant = {"room": {"state": {"lazy_load_members": True, "include_redundant_members": True}}}
    for filter_, told in ((redundant, {("m.room.member", DAVE)}), (lazy, set())):
        section = room(await world.sync(ALICE, first["next_batch"], filter_=filter_))
        assert state_types(section) == told, filter_
    world.restart()
    section = room(await world.sync(ALICE, first["next_batch"], filter_=lazy))
    assert state_types(section) == {("m.room.member", DAVE)}


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({"room": {"timeline": {"types": ["m.room.message"]}}}, ["m.room.message"] * 2),
        ({"room": {"timeline": {"not_types": ["m.room.*"]}}}, ["x.y"]),
        ({"room": {"timeline": {"senders": [CAROL]}}}, ["m.room.message"]),
        ({"room": {"timeline": {"limit": 1}}}, ["m.room.message"]),
    ],
)
async def test_timeline_filters(world: World, filter_: dict[str, Any], expected: list[str]) -> None:
    await world.create()
    await world.member("join", CAROL)
    first = await world.sync(ALICE)
    await world.say("a")
    await world.state("x.y", {})
    await world.say("b", sender=CAROL)
    section = room(await world.sync(ALICE, first["next_batch"], filter_=filter_))
    assert [e["type"] for e in section["timeline"]["events"]] == expected


async def test_room_filters(world: World) -> None:
    await world.create()
    await world.create(OTHER)
    assert set((await world.sync(ALICE, filter_={"room": {"rooms": [OTHER]}}))["rooms"]["join"]) == {OTHER}
    assert set((await world.sync(ALICE, filter_={"room": {"not_rooms": [OTHER]}}))["rooms"]["join"]) == {ROOM}


async def test_every_answer_counts_one_time_keys(world: World) -> None:
    first = await world.sync(ALICE)
    assert first["device_one_time_keys_count"] == {"signed_curve25519": 0}
    assert first["device_unused_fallback_key_types"] == []
    world.devices.counts = {"signed_curve25519": 7}
    again = await world.sync(ALICE, first["next_batch"])
    assert again["device_one_time_keys_count"] == {"signed_curve25519": 7}


async def test_redacted_events_are_pruned(world: World) -> None:
    await world.create()
    [said] = await world.say("oops")
    first = await world.sync(ALICE)
    redaction = await world.send(draft("m.room.redaction", {"redacts": said, "reason": "r"}))
    section = room(await world.sync(ALICE, first["next_batch"]))
    assert section["timeline"]["events"][0]["redacts"] == said
    whole = room(await world.sync(ALICE))
    [event] = [e for e in whole["timeline"]["events"] if e["event_id"] == said]
    assert event["content"] == {}
    assert event["unsigned"]["redacted_because"]["event_id"] == redaction


async def test_an_invite_from_elsewhere_and_its_end(world: World) -> None:
    far = "!far:evil.test"
    fields = {"type": "m.room.member", "state_key": CAROL, "sender": "@m:evil.test", "hub_server": "evil.test",
              "content": {"membership": "invite"}, "hashes": {}, "room_id": far}  # fmt: skip
    name = {"type": "m.room.name", "state_key": "", "sender": "@m:evil.test", "content": {"name": "far"}}
    first = await world.sync(CAROL)
    invited = OutsideMembership(
        CAROL, far, "invite", "evil.test", "@m:evil.test", "I.1", orjson.dumps(fields), "$invite",
        outside.encode_state([name]),
    )  # fmt: skip
    await outside.store(world.db, invited)
    second = await world.sync(CAROL, first["next_batch"])
    events = room(second, far, "invite")["invite_state"]["events"]
    assert events[0] == name
    assert events[1] == {key: fields[key] for key in ("type", "state_key", "sender", "content")}
    assert far in (await world.sync(CAROL))["rooms"]["invite"]
    kick = {**fields, "content": {"membership": "leave", "reason": "too late"}, "origin_server_ts": 1}
    await outside.store(
        world.db, replace(invited, membership="leave", event=orjson.dumps(kick), event_id="$kick")
    )
    third = await world.sync(CAROL, second["next_batch"])
    [event] = room(third, far, "leave")["timeline"]["events"]
    assert (event["event_id"], event["content"]["reason"]) == ("$kick", "too late")
    assert (await world.sync(CAROL, third["next_batch"]))["rooms"] == {}
    assert (await world.sync(CAROL))["rooms"] == {}


async def test_account_data_to_device_and_key_changes(world: World) -> None:
    await world.create()
    await world.member("join", CAROL)
    first = await world.sync(ALICE)
    at = int(first["next_batch"][1:].split("_")[0])
    world.account_data.rows = [
        (at, "", {"type": "m.direct", "content": {}}),
        (at, ROOM, {"type": "m.tag", "content": {}}),
    ]
    world.devices.inbox = [(at, {"type": "m.x", "sender": CAROL, "content": {}})]
    world.devices.key_changes = [(at, CAROL), (at, DAVE), (at, ALICE)]
    await world.say("moves the stream")
    world.restart()
    second = await world.sync(ALICE, first["next_batch"])
    assert [e["type"] for e in second["account_data"]["events"]] == ["m.direct"]
    assert [e["type"] for e in room(second)["account_data"]["events"]] == ["m.tag"]
    assert [e["type"] for e in second["to_device"]["events"]] == ["m.x"]
    assert second["device_lists"]["changed"] == sorted([ALICE, CAROL])
    again = await world.sync(ALICE, first["next_batch"])
    assert again["to_device"] == second["to_device"]
    world.restart()
    await world.sync(ALICE, second["next_batch"])
    assert world.devices.inbox == []


@pytest.mark.parametrize("ignoring", [False, True])
async def test_a_timeline_goes_back_to_what_is_shown(world: World, *, ignoring: bool) -> None:
    """Of the newest events fewer are wanted than there may be: it is filled from before them."""
    await world.create()
    await world.member("join", CAROL)
    await world.say(*"abc")
    await world.say(*map(str, range(150)), sender=CAROL)
    filter_: dict[str, Any] = {"limit": 2}
    if ignoring:
        ignored = orjson.dumps({"ignored_users": {CAROL: {}}})
        await account_data.put(world.db, ALICE, "", "m.ignored_user_list", ignored)
    else:
        filter_["not_senders"] = [CAROL]
    section = room(await world.sync(ALICE, filter_={"room": {"timeline": filter_}}))
    assert texts(section) == ["b", "c"] and section["timeline"]["limited"]
