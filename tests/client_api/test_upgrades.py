"""POST /rooms/{roomId}/upgrade over the assembled client API, and from a participant."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lmserver.protocol.room_versions import I_1_ID, LM_02_ID
from tests.client_api.test_ignoring import Club, club
from tests.federation.sites import Person, Site, sites
from tests.kit.client_api import NAME
from tests.kit.postgres import Cluster
from tests.kit.rooms import HUB, PARTICIPANT
from tests.kit.waiting import HANGS

__all__ = ["club"]

ALICE, BOB, CAROL = (f"@{name}:{NAME}" for name in ("alice", "bob", "carol"))


def room(room_id: str) -> str:
    return f"/rooms/{quote(room_id, safe='')}"


async def state(club: Club, room_id: str, type_: str, key: str = "") -> Any:
    return (await club.call("alice", "GET", f"{room(room_id)}/state/{type_}/{quote(key, safe='')}"))[1]


async def test_everything_that_makes_the_room_moves(club: Club) -> None:
    old = club.room_id
    for type_, content in (
        ("m.room.name", {"name": "n"}), ("m.room.topic", {"topic": "t"}), ("m.room.avatar", {"url": "mxc://a/b"}),
        ("m.room.join_rules", {"join_rule": "knock"}), ("m.room.encryption", {"algorithm": "a"}),
        ("m.room.history_visibility", {"history_visibility": "joined"}), ("org.test.other", {"a": 1}),
        ("m.room.guest_access", {"guest_access": "forbidden"}),
    ):  # fmt: skip
        await club.ok("alice", "PUT", f"{room(old)}/state/{type_}", content)
    alias = f"#club:{NAME}"
    await club.ok("alice", "PUT", f"/directory/room/{quote(alias, safe='')}", {"room_id": old})
    await club.ok("alice", "PUT", f"{room(old)}/state/m.room.canonical_alias", {"alias": alias})
    await club.ok(
        "alice", "PUT", f"/directory/list{room(old).replace('rooms', 'room')}", {"visibility": "public"}
    )
    await club.ok("alice", "POST", f"{room(old)}/ban", {"user_id": CAROL, "reason": "r"})
    levels = {**(await state(club, old, "m.room.power_levels")), "users": {ALICE: 100, BOB: 50}, "kick": 40}
    await club.ok("alice", "PUT", f"{room(old)}/state/m.room.power_levels", levels)
    user = f"/user/{quote(BOB, safe='')}"
    await club.ok("bob", "PUT", f"{user}{room(old)}/tags/u.work", {"order": 0.5})
    await club.ok("bob", "PUT", f"{user}/account_data/m.direct", {ALICE: [old], CAROL: ["!x:y"]})
    rule = f"/pushrules/global/room/{quote(old, safe='')}"
    await club.ok("bob", "PUT", rule, {"actions": []})

    new = (await club.ok("alice", "POST", f"{room(old)}/upgrade", {"new_version": I_1_ID}))[
        "replacement_room"
    ]
    create = await state(club, new, "m.room.create")
    assert create["room_version"] == I_1_ID
    assert create["predecessor"]["room_id"] == old
    assert (await state(club, old, "m.room.tombstone"))["replacement_room"] == new
    for type_ in (
        "name",
        "topic",
        "avatar",
        "join_rules",
        "encryption",
        "history_visibility",
        "guest_access",
    ):
        same = await state(club, new, f"m.room.{type_}")
        assert same == await state(club, old, f"m.room.{type_}"), type_
    assert "errcode" in await state(club, new, "org.test.other")
    assert await state(club, new, "m.room.power_levels") == levels
    assert await state(club, new, "m.room.member", CAROL) == {"membership": "ban", "reason": "r"}
    assert await state(club, new, "m.room.canonical_alias") == {"alias": alias}
    assert await state(club, old, "m.room.canonical_alias") == {}
    silenced = await state(club, old, "m.room.power_levels")
    assert (silenced["events_default"], silenced["invite"], silenced["kick"]) == (50, 50, 40)
    found = await club.ok("bob", "GET", f"/directory/room/{quote(alias, safe='')}")
    assert found["room_id"] == new
    listed = (await club.ok("bob", "GET", "/publicRooms"))["chunk"]
    assert [r["room_id"] for r in listed] == [new]

    await club.ok("alice", "POST", f"{room(new)}/invite", {"user_id": BOB})
    await club.ok("bob", "POST", f"{room(new)}/join", {})
    assert (await club.ok("bob", "GET", f"{user}{room(new)}/tags"))["tags"] == {"u.work": {"order": 0.5}}
    direct = await club.ok("bob", "GET", f"{user}/account_data/m.direct")
    assert direct == {ALICE: [old, new], CAROL: ["!x:y"]}
    rules = (await club.ok("bob", "GET", "/pushrules/"))["global"]["room"]
    assert {r["rule_id"] for r in rules} == {old, new}
    # Asked again, and by two at once, it is the same replacement.
    again = await asyncio.gather(
        *(club.ok("alice", "POST", f"{room(old)}/upgrade", {"new_version": I_1_ID}) for _ in range(3))
    )
    assert {answer["replacement_room"] for answer in again} == {new}


async def test_who_may_not_and_to_what(club: Club) -> None:
    refusals: list[tuple[str, Any, int, str]] = [
        ("alice", {}, 400, "M_MISSING_PARAM"),
        ("alice", {"new_version": "no such"}, 400, "M_UNSUPPORTED_ROOM_VERSION"),
        ("alice", {"new_version": 5}, 400, "M_UNSUPPORTED_ROOM_VERSION"),
        ("alice", {"new_version": ["7"]}, 400, "M_UNSUPPORTED_ROOM_VERSION"),
        ("bob", {"new_version": "9"}, 403, "M_FORBIDDEN"),
        ("carol", {"new_version": "9"}, 403, "M_FORBIDDEN"),
    ]
    for who, body, status, errcode in refusals:
        answer = await club.call(who, "POST", f"{club.room}/upgrade", body)
        assert (answer[0], answer[1]["errcode"]) == (status, errcode), (who, body)
    assert (await club.call("alice", "POST", "/rooms/nope/upgrade", {"new_version": "9"}))[0] == 403
    assert "errcode" in await state(club, club.room_id, "m.room.tombstone")
    for who in ("alice", "bob"):
        assert (await club.ok(who, "GET", "/joined_rooms"))["joined_rooms"] == [club.room_id]


async def test_a_room_that_only_claims_to_replace_another_inherits_nothing(club: Club) -> None:
    tag = f"/user/{quote(BOB, safe='')}{room(club.room_id)}/tags/u.work"
    await club.ok("bob", "PUT", tag, {})
    body = {
        "preset": "public_chat",
        "creation_content": {"predecessor": {"room_id": club.room_id, "event_id": "$x"}},
    }
    false = (await club.ok("carol", "POST", "/createRoom", body))["room_id"]
    await club.ok("bob", "POST", f"{room(false)}/join", {})
    assert (await club.ok("bob", "GET", f"/user/{quote(BOB, safe='')}{room(false)}/tags"))["tags"] == {}


async def test_a_room_of_another_hub_is_replaced_by_one_of_ours(cluster: Cluster, tmp_path: Path) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        levels = {"users": {alice.user_id: 100, bob.user_id: 100}}
        old = await alice.create(preset="public_chat", power_level_content_override=levels, name="n")
        await bob.act("join", old)
        status, answer = await bob.room("upgrade", old, {"new_version": LM_02_ID})
        assert status == 200, answer
        new = answer["replacement_room"]
        assert new.endswith(":" + PARTICIPANT)
        tombstone = await alice.ok("GET", f"{room(old)}/state/m.room.tombstone")
        assert tombstone["replacement_room"] == new
        status, answer = await alice.call("POST", f"/join/{quote(new)}?via={PARTICIPANT}")
        assert status == 200, answer
        assert (await alice.ok("GET", f"{room(new)}/state/m.room.name")) == {"name": "n"}
        assert await participant.victim.problems(new) == []


async def test_while_the_hub_is_silent_asking_again_makes_no_second_room(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        levels = {"users": {alice.user_id: 100, bob.user_id: 100}}
        old = await alice.create(preset="public_chat", power_level_content_override=levels)
        await bob.act("join", old)
        participant.victim.server.engine._own_lpdus._answer_seconds = 0.1
        await hub.victim.unlisten()
        for _ in range(2):
            status, answer = await bob.room("upgrade", old, {"new_version": LM_02_ID})
            assert (status, answer["errcode"]) == (504, "M_UNKNOWN")
        assert len((await bob.ok("GET", "/joined_rooms"))["joined_rooms"]) == 2
        await hub.victim.listen()
        await alice.say(old, "back again", "t1")  # whom we hear from is tried at once
        participant.victim.server.engine._own_lpdus._answer_seconds = HANGS
        new = (await bob.ok("POST", f"{room(old)}/upgrade", {"new_version": LM_02_ID}))["replacement_room"]
        assert set((await bob.ok("GET", "/joined_rooms"))["joined_rooms"]) == {old, new}


async def lower(alice: Person, room_id: str) -> None:
    """Bob may not replace the room any more."""
    levels = {"users": {alice.user_id: 100}, "events": {"m.room.tombstone": 50}}
    await alice.ok("PUT", f"{room(room_id)}/state/m.room.power_levels", levels)


async def is_gone(site: Site, room_id: str) -> None:
    async with asyncio.timeout(20):
        while await site.engine.view(room_id) is not None:
            await site.server.purges.check()
            await asyncio.sleep(0.05)


async def test_a_replacement_that_the_hub_refuses_is_not_left_behind(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        levels = {"users": {alice.user_id: 100, bob.user_id: 90}, "events": {"m.room.tombstone": 50}}
        old = await alice.create(preset="public_chat", power_level_content_override=levels)
        await bob.act("join", old)
        await bob.sync()
        await participant.victim.unlisten()  # so that it does not hear that bob may not any more
        await lower(alice, old)
        status, answer = await bob.room("upgrade", old, {"new_version": LM_02_ID})
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
        assert answer["error"].startswith("the room cannot be replaced: ")
        [new] = [r for r in (await bob.sync())["join"] if r != old]
        await is_gone(participant, new)
        assert (await bob.ok("GET", "/joined_rooms"))["joined_rooms"] == [old]
        assert await participant.db.fetchval("SELECT count(*) FROM rooms") == 1
        assert await alice.ok("GET", "/joined_rooms") == {"joined_rooms": [old]}


@pytest.mark.parametrize("used", [False, True])
async def test_a_replacement_that_is_refused_later_goes_unless_somebody_has_come(
    cluster: Cluster, tmp_path: Path, used: bool
) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        levels = {"users": {alice.user_id: 100, bob.user_id: 90}, "events": {"m.room.tombstone": 50}}
        old = await alice.create(preset="public_chat", power_level_content_override=levels)
        await bob.act("join", old)
        participant.victim.server.engine._own_lpdus._answer_seconds = 0.1
        await hub.victim.unlisten()
        assert (await bob.room("upgrade", old, {"new_version": LM_02_ID}))[0] == 504
        rooms = (await bob.ok("GET", "/joined_rooms"))["joined_rooms"]
        [new] = [room_id for room_id in rooms if room_id != old]
        await participant.server.upgrades.tidy()
        assert await participant.db.fetchval("SELECT count(*) FROM room_purges") == 0
        if used:
            assert (await alice.call("POST", f"/join/{quote(new)}?via={PARTICIPANT}"))[0] == 200
        await hub.victim.listen()
        await lower(alice, old)  # whom we hear from is tried at once
        async with asyncio.timeout(30):
            while not await participant.db.fetchval(
                "SELECT EXISTS (SELECT FROM outbound_lpdus WHERE status = 'rejected')"
            ):
                await asyncio.sleep(0.05)
        await participant.server.upgrades.tidy()
        if used:
            assert await participant.db.fetchval("SELECT count(*) FROM room_purges") == 0
        else:
            await is_gone(participant, new)
            await participant.server.upgrades.tidy()
            assert await participant.db.fetchval("SELECT count(*) FROM room_purges") == 1
        expected = {old, new} if used else {old}
        assert set((await bob.ok("GET", "/joined_rooms"))["joined_rooms"]) == expected
