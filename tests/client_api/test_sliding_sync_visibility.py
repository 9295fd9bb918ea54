"""Sliding sync and who may see what: rooms not joined, left, closed, and a random life of rooms.

Attack C6 for this way of reading: after a ban, a kick or a leave nothing of what follows comes through.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from typing import Any

import orjson
import pytest

from lmserver.storage import outside
from lmserver.storage.database import Database
from lmserver.storage.outside import OutsideMembership
from tests.kit.client_api import Api
from tests.kit.sliding import Follower, Phone, bodies, entries, room, window

SECRET = "the-secret"
EVERYTHING = [("*", "*")]
ALL = {"all": window([0, 99], limit=50, state=EVERYTHING)}
EXTENSIONS = {name: {"enabled": True} for name in ("account_data", "receipts", "typing")}


def visibility(value: str) -> list[dict[str, Any]]:
    return [{"type": "m.room.history_visibility", "content": {"history_visibility": value}}]


async def say_secrets(alice: Phone, room_id: str) -> str:
    """A message, two state events, a receipt and typing."""
    said = await alice.say(room_id, SECRET)
    await alice.set(room_id, "m.room.name", {"name": SECRET})
    await alice.set(room_id, "m.room.topic", {"topic": SECRET})
    await alice.read(room_id, said)
    await alice.type(room_id)
    return said


@pytest.mark.parametrize("ending", ["leave", "kick", "ban"])
async def test_c6_after_the_end(alice: Phone, bob: Phone, ending: str) -> None:
    """Attack C6: told once that it is over, with what was there until then."""
    room_id = await alice.create(name="before")
    await bob.change(room_id, "join")
    wanted = {"lists": ALL, "room_subscriptions": {room_id: room(50, EVERYTHING)}, "extensions": EXTENSIONS}
    pos = (await bob.slide(**wanted))["pos"]
    await alice.say(room_id, "last words")
    if ending == "leave":
        await bob.change(room_id, "leave")
    else:
        await alice.change(room_id, ending, bob)
    secret = await say_secrets(alice, room_id)
    answer = await bob.slide(pos, **wanted)
    said = answer["rooms"][room_id]
    assert SECRET not in json.dumps(answer) and secret not in json.dumps(answer)
    assert alice.id not in json.dumps(answer["extensions"])
    assert bodies(said) == ["last words"] and said["initial"] is False
    assert (
        said["membership"]
        == said["timeline"][-1]["content"]["membership"]
        == ("ban" if ending == "ban" else "leave")
    )
    assert ("m.room.member", bob.id) in entries(said)
    assert not {"joined_count", "notification_count", "name"} & set(said)
    await say_secrets(alice, room_id)
    after = await bob.slide(answer["pos"], **wanted)
    assert after["rooms"] == {}
    assert after["lists"]["all"]["count"] == (0 if ending == "leave" else 1)
    anew = await bob.slide(**wanted)
    assert SECRET not in json.dumps(anew)
    assert list(anew["rooms"]) == ([] if ending == "leave" else [room_id])
    if ending != "leave":
        assert anew["rooms"][room_id]["name"] == "before"


async def test_the_end_is_told_to_who_wants_no_timeline(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create()
    await bob.change(room_id, "join")
    lists = {"all": window(limit=0)}
    first = await bob.slide(lists=lists)
    assert first["rooms"][room_id]["timeline"] == [] and first["rooms"][room_id]["limited"] is True
    await alice.change(room_id, "kick", bob)
    said = (await bob.slide(first["pos"], lists=lists))["rooms"][room_id]
    assert said["timeline"] == [] and entries(said) == {("m.room.member", bob.id)}


async def test_c6_a_ban_of_who_had_left(alice: Phone, bob: Phone) -> None:
    """Attack C6: the ban is shown, and nothing of what was before and after it."""
    room_id = await alice.create()
    await bob.change(room_id, "join")
    await bob.change(room_id, "leave")
    pos = (await bob.slide(lists=ALL))["pos"]
    await say_secrets(alice, room_id)
    await alice.change(room_id, "ban", bob)
    await say_secrets(alice, room_id)
    for answer in (await bob.slide(pos, lists=ALL), await bob.slide(lists=ALL)):
        assert SECRET not in json.dumps(answer)
        said = answer["rooms"][room_id]
        assert [e["content"]["membership"] for e in said["timeline"]] == ["ban"]


async def test_a_stranger_learns_nothing(alice: Phone, bob: Phone) -> None:
    """Attack C6: neither by a subscription nor by a count, whatever the visibility of the room."""
    for value in ("world_readable", "shared"):
        room_id = await alice.create(initial_state=visibility(value))
        await alice.change(room_id, "ban", bob)
        wanted = {
            "lists": ALL,
            "room_subscriptions": {room_id: room(50, EVERYTHING)},
            "extensions": EXTENSIONS,
        }
        answer = await bob.slide(**wanted)
        assert (answer["rooms"], answer["lists"]["all"]["count"]) == ({}, 0)
        await say_secrets(alice, room_id)
        again = await bob.slide(answer["pos"], **wanted)
        assert (again["rooms"], again["lists"]["all"]["count"]) == ({}, 0)
        assert room_id not in json.dumps(again)


@pytest.mark.parametrize(("value", "sees"), [("shared", True), ("invited", False), ("joined", False)])
async def test_before_the_join(alice: Phone, bob: Phone, value: str, sees: bool) -> None:
    room_id = await alice.create(initial_state=visibility(value))
    await alice.say(room_id, SECRET)
    await bob.change(room_id, "join")
    first = await bob.slide(lists={"all": window([0, 9], limit=1)})
    second = await bob.slide(first["pos"], lists={"all": window([0, 9], limit=50)})
    third = await bob.slide(lists={"all": window([0, 9], limit=50)}, conn="2")
    for answer in (second, third):
        said = answer["rooms"].get(room_id, {"timeline": []})
        assert (SECRET in bodies(said)) is sees


async def test_joining_again_leaves_out_what_was_between(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create(initial_state=visibility("joined"))
    await bob.change(room_id, "join")
    await alice.say(room_id, "before")
    pos = (await bob.slide(lists=ALL))["pos"]
    await bob.change(room_id, "leave")
    await alice.say(room_id, SECRET)
    await alice.set(room_id, "m.room.topic", {"topic": "now"})
    await bob.change(room_id, "join")
    await alice.say(room_id, "after")
    said = (await bob.slide(pos, lists=ALL))["rooms"][room_id]
    assert SECRET not in json.dumps(said) and bodies(said)[-1] == "after" and said["limited"] is True
    assert ("m.room.topic", "") in entries(said), "the state of now is the joined user's to see"


async def test_leaving_and_coming_back_begins_anew(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create(name="n")
    await bob.change(room_id, "join")
    pos = (await bob.slide(lists=ALL))["pos"]
    await bob.change(room_id, "leave")
    pos = (await bob.slide(pos, lists=ALL))["pos"]
    assert (await bob.slide(pos, lists=ALL))["rooms"] == {}
    await bob.change(room_id, "join")
    answer = await bob.slide(pos, lists=ALL)
    assert answer["rooms"][room_id]["initial"] is True and answer["rooms"][room_id]["name"] == "n"


async def test_invites_are_stripped(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create(name="Tea", preset="private_chat")
    await alice.say(room_id, SECRET)
    pos = (await bob.slide(lists=ALL))["pos"]
    await alice.change(room_id, "invite", bob)
    await alice.set(room_id, "m.room.topic", {"topic": SECRET})
    answer = await bob.slide(
        pos, lists=ALL, room_subscriptions={room_id: room(50, EVERYTHING)}, extensions=EXTENSIONS
    )
    said = answer["rooms"][room_id]
    assert SECRET not in json.dumps(answer)
    assert said["initial"] is True and said["membership"] == "invite"
    assert set(said) == {"initial", "membership", "lists", "bump_stamp", "invite_state"}
    state = {(e["type"], e["state_key"]): e for e in said["invite_state"]}
    assert state["m.room.name", ""]["content"] == {"name": "Tea"}
    assert state["m.room.member", bob.id]["content"]["membership"] == "invite"
    assert ("m.room.member", alice.id) in state
    assert all(set(e) == {"type", "state_key", "sender", "content"} for e in state.values())
    assert (await bob.slide(answer["pos"], lists=ALL))["rooms"] == {}
    await bob.change(room_id, "join")
    joined = (await bob.slide(answer["pos"], lists=ALL))["rooms"][room_id]
    assert joined["initial"] is True and joined["membership"] == "join" and "invite_state" not in joined


@pytest.mark.parametrize("ending", ["declined", "withdrawn"])
async def test_an_invite_that_ended(alice: Phone, bob: Phone, ending: str) -> None:
    """Who knew of it is told once; others see nothing."""
    room_id = await alice.create(preset="private_chat")
    await alice.change(room_id, "invite", bob)
    pos = (await bob.slide(lists=ALL))["pos"]
    if ending == "declined":
        await bob.change(room_id, "leave")
    else:
        await alice.change(room_id, "kick", bob)
    await say_secrets(alice, room_id)
    answer = await bob.slide(pos, lists=ALL)
    said = answer["rooms"][room_id]
    assert SECRET not in json.dumps(answer) and said["membership"] == "leave"
    assert [e["state_key"] for e in said["timeline"]] == [bob.id] and entries(said) == {
        ("m.room.member", bob.id)
    }
    after = await bob.slide(answer["pos"], lists=ALL)
    assert (after["rooms"], after["lists"]["all"]["count"]) == ({}, 0)
    assert (await bob.slide(lists=ALL, conn="2"))["rooms"] == {}


async def test_knocks(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create(
        name="Tea", initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}]
    )
    pos = (await bob.slide(lists=ALL))["pos"]
    await bob.ok("POST", f"/knock/{room_id}", {})
    answer = await bob.slide(pos, lists=ALL)
    said = answer["rooms"][room_id]
    assert said["membership"] == "knock" and "timeline" not in said
    assert said["invite_state"][-1]["content"]["membership"] == "knock"


async def test_blocked_and_ignored_people(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create()
    await bob.change(room_id, "join")
    await bob.create(invite=[alice.id])
    await alice.put_data("m.ignored_user_list", {"ignored_users": {bob.id: {}}})
    first = await alice.slide(lists=ALL)
    assert list(first["rooms"]) == [room_id] and first["lists"]["all"]["count"] == 1
    await alice.say(room_id, "mine")
    for _ in range(3):
        await bob.say(room_id, SECRET)
    answer = await alice.slide(first["pos"], lists={"all": window([0, 9], limit=1, state=EVERYTHING)})
    assert bodies(answer["rooms"][room_id]) == ["mine"]


async def test_c7_redacted_content_is_gone(alice: Phone) -> None:
    """Attack C7."""
    room_id = await alice.create()
    secrets = [await alice.say(room_id, SECRET), await alice.set(room_id, "m.room.name", {"name": SECRET})]
    for number, event_id in enumerate(secrets):
        await alice.ok("PUT", f"/rooms/{room_id}/redact/{event_id}/r{number}", {})
    answer = await alice.slide(lists=ALL)
    assert SECRET not in json.dumps(answer) and secrets[0] in json.dumps(answer)


async def test_forgotten_rooms_are_gone(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create()
    await bob.change(room_id, "join")
    await alice.change(room_id, "kick", bob)
    assert list((await bob.slide(lists=ALL))["rooms"]) == [room_id]
    await bob.ok("POST", f"/rooms/{room_id}/forget", {})
    answer = await bob.slide(lists=ALL, room_subscriptions={room_id: room()})
    assert (answer["rooms"], answer["lists"]["all"]["count"]) == ({}, 0)


async def test_rooms_of_other_servers(db: Database, alice: Phone) -> None:
    """An invite whose room is nowhere here, then declined; filters know it by its stripped state."""
    member = {"type": "m.room.member", "state_key": alice.id, "sender": "@far:away.test"}
    event = {**member, "origin_server_ts": 2**52, "content": {"membership": "invite"}}
    state = [
        {"type": "m.room.name", "state_key": "", "sender": "@far:away.test", "content": {"name": "Far"}},
        {"type": "m.room.encryption", "state_key": "", "sender": "@far:away.test", "content": {}},
    ]
    invite = OutsideMembership(
        alice.id, "!far:away.test", "invite", "away.test", "@far:away.test", "I.1",
        orjson.dumps(event), "$invite", outside.encode_state(state),
    )  # fmt: skip
    lists = {"all": window(state=EVERYTHING), "open": window(is_encrypted=False)}
    pos = (await alice.slide(lists=lists))["pos"]
    await outside.store(db, invite)
    answer = await alice.slide(pos, lists=lists, extensions=EXTENSIONS)
    said = answer["rooms"]["!far:away.test"]
    assert said["lists"] == ["all"] and said["membership"] == "invite" and said["bump_stamp"] < 2**52
    assert [(e["type"], e["state_key"]) for e in said["invite_state"]] == [
        ("m.room.name", ""), ("m.room.encryption", ""), ("m.room.member", alice.id),
    ]  # fmt: skip
    assert (await alice.slide(answer["pos"], lists=lists))["rooms"] == {}
    left = {**event, "sender": alice.id, "content": {"membership": "leave"}}
    await outside.store(
        db, replace(invite, membership="leave", sender=alice.id, event=orjson.dumps(left), event_id="$leave")
    )
    over = await alice.slide(answer["pos"], lists=lists)
    said = over["rooms"]["!far:away.test"]
    assert said["membership"] == "leave" and [e["event_id"] for e in said["required_state"]] == ["$leave"]
    after = await alice.slide(over["pos"], lists=lists)
    assert (after["rooms"], after["lists"]["all"]["count"]) == ({}, 0)


# -- a random life ------------------------------------------------------------------------------


class Life:
    """Three users who do anything allowed in a few rooms."""

    def __init__(self, people: list[Phone], seed: int) -> None:
        self.people = people
        self.random = random.Random(seed)
        self.rooms: list[str] = []
        self._number = 0

    async def step(self) -> None:
        who, other = self.random.sample(self.people, 2)
        if len(self.rooms) < 4:
            self.rooms.append(await self.people[0].create(name=f"room {len(self.rooms)}"))
            return
        room_id = self.random.choice(self.rooms)
        self._number += 1
        action = self.random.choice(
            ["say"] * 5 + ["topic", "name", "join", "join", "leave", "kick", "invite", "rename"]
        )
        path = f"/rooms/{room_id}"
        calls: dict[str, tuple[str, str, Any]] = {
            "say": ("PUT", f"{path}/send/m.room.message/x{self._number}", {"body": str(self._number)}),
            "topic": ("PUT", f"{path}/state/m.room.topic/", {"topic": str(self._number)}),
            "name": ("PUT", f"{path}/state/m.room.name/", {"name": self.random.choice(["", f"n{self._number}"])}),
            "join": ("POST", f"{path}/join", {}),
            "leave": ("POST", f"{path}/leave", {}),
            "kick": ("POST", f"{path}/kick", {"user_id": other.id}),
            "invite": ("POST", f"{path}/invite", {"user_id": other.id}),
            "rename": ("PUT", f"{path}/state/m.room.member/{who.id}", {"membership": "join", "displayname": str(self._number)}),
        }  # fmt: skip
        method, where, body = calls[action]
        status, _ = await who.api.call(method, "/_matrix/client/v3" + where, body, who.token)
        assert status in (200, 403), action


async def truth(phone: Phone, room_id: str) -> dict[str, Any]:
    """What other endpoints say of a joined room."""
    state = await phone.ok("GET", f"/rooms/{room_id}/state")
    messages = await phone.ok("GET", f"/rooms/{room_id}/messages?dir=b&limit=100")
    name = next((e["content"].get("name") for e in state if e["type"] == "m.room.name"), None)
    members = [e["content"]["membership"] for e in state if e["type"] == "m.room.member"]
    return {
        "state": {(e["type"], e["state_key"]): e["event_id"] for e in state},
        "timeline": [e["event_id"] for e in messages["chunk"]][::-1],
        "name": name or None,
        "counts": (members.count("join"), members.count("invite")),
    }


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_follower_knows_what_is_true(api: Api, seed: int) -> None:
    """Clients with a window of all rooms, and of the newest two, follow a random life; in between some
    answers are lost. What they know of a room they were told of last equals what other endpoints say."""
    people = [await Phone.register(api, name) for name in ("alice", "bob", "carol")]
    life = Life(people, seed)
    wide = [Follower(p, {"lists": {"all": window(limit=4, state=EVERYTHING)}}, "wide") for p in people]
    narrow = [
        Follower(p, {"lists": {"top": window([0, 1], limit=3, state=EVERYTHING)}}, "narrow") for p in people
    ]
    for _ in range(12):
        for _ in range(life.random.randint(1, 7)):
            await life.step()
        for follower in (*wide, *narrow):
            if life.random.random() < 0.3:
                await follower.phone.slide(follower.pos, conn=follower.conn, **follower.request)
        answers = await asyncio.gather(*(follower.follow() for follower in (*wide, *narrow)))
        for follower, answer in zip((*wide, *narrow), answers, strict=True):
            checked = follower.rooms if follower.conn == "wide" else answer["rooms"]
            joined = (await follower.phone.ok("GET", "/joined_rooms"))["joined_rooms"]
            if follower.conn == "wide":
                known = {r for r, said in follower.rooms.items() if said["membership"] == "join"}
                assert known == set(joined)
            for room_id in set(checked) & set(joined):
                known_room, real = follower.rooms[room_id], await truth(follower.phone, room_id)
                assert known_room["state"] == real["state"]
                tail = known_room["timeline"]
                assert tail == real["timeline"][-len(tail) :] and tail
                assert known_room.get("name") == real["name"]
                assert (known_room["joined_count"], known_room["invited_count"]) == real["counts"]
