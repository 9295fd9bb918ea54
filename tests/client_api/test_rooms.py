"""createRoom and membership over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lmserver.protocol.room_versions import I_1_ID, LM_02_ID
from tests.kit.room_clients import RoomServer


async def types_of(user: Any, room_id: str) -> list[str]:
    page = (await user.get("/rooms", room_id, "/messages", dir="f", limit="50")).body
    return [e["type"] for e in page["chunk"]]


async def test_a_room_in_the_order_of_the_specification(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create(
        name="n",
        topic="t",
        preset="public_chat",
        room_alias_name="club",
        creation_content={"m.federate": True, "room_version": "9", "creator": "@x:y"},
        initial_state=[{"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "a"}}],
        power_level_content_override={"invite": 77},
    )
    page = (await alice.get("/rooms", room_id, "/messages", dir="f", limit="50")).body["chunk"]
    assert [e["type"] for e in page] == [
        "m.room.create", "m.room.member", "m.room.power_levels", "m.room.canonical_alias",
        "m.room.join_rules", "m.room.history_visibility", "m.room.guest_access",
        "m.room.encryption", "m.room.name", "m.room.topic",
    ]  # fmt: skip
    assert page[0]["content"] == {"m.federate": True, "room_version": LM_02_ID}
    assert page[1]["content"] == {"membership": "join", "displayname": "Alice"}
    assert page[2]["content"]["invite"] == 77
    assert page[2]["content"]["users"] == {alice.id: 100}
    assert page[2]["content"]["events"]["m.call.invite"] == 50
    assert page[4]["content"] == {"join_rule": "public"}
    assert page[9]["content"] == {"topic": "t", "m.topic": {"m.text": [{"body": "t"}]}}
    found = await server.user("bob").get("/directory/room", "#club:hub.test")
    assert found.body["room_id"] == room_id


async def test_versions(server: RoomServer) -> None:
    alice = server.user("alice")
    refused = await alice.post("/createRoom", body={"room_version": "10"})
    assert (refused.status, refused.errcode) == (400, "M_UNSUPPORTED_ROOM_VERSION")
    room_id = await alice.create(room_version=I_1_ID)
    create = await alice.get("/rooms", room_id, "/state/m.room.create")
    assert create.body["room_version"] == I_1_ID


@pytest.mark.parametrize(
    "body",
    [
        {"preset": "secret"},
        {"visibility": "odd"},
        {"invite": ["nobody"]},
        {"invite": "@a:b"},
        {"initial_state": [5]},
        {"initial_state": [{"type": "m.room.member", "state_key": "@x:hub.test", "content": {}}]},
        {"initial_state": [{"type": "a\0b", "content": {}}]},
        {"name": 5},
        {"room_alias_name": "a:b"},
        {"power_level_content_override": {"ban": 1.5}},
        {"power_level_content_override": {"users": {"nobody": 100}}},
        {"creation_content": []},
        {"name": "x" * 70_000},
    ],
)
async def test_bad_rooms_are_refused(server: RoomServer, body: Any) -> None:
    answer = await server.user("alice").post("/createRoom", body=body)
    assert answer.status in (400, 413), answer
    assert answer.errcode
    assert (await server.user("alice").get("/joined_rooms")).body == {"joined_rooms": []}


async def test_trusted_private_chat_gives_guests_the_creators_level(server: RoomServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    room_id = await alice.create(preset="trusted_private_chat", invite=[bob.id])
    levels = (await alice.get("/rooms", room_id, "/state/m.room.power_levels")).body
    assert levels["users"] == {alice.id: 100, bob.id: 100}
    assert (await bob.change(room_id, "join")).status == 200


async def test_a_taken_alias(server: RoomServer) -> None:
    alice = server.user("alice")
    await alice.create(room_alias_name="one")
    answer = await alice.post("/createRoom", body={"room_alias_name": "one"})
    assert (answer.status, answer.errcode) == (400, "M_ROOM_IN_USE")


async def test_of_two_rooms_that_want_one_alias_one_comes_into_being(server: RoomServer) -> None:
    alice = server.user("alice")
    body = {"room_alias_name": "one"}
    answers = await asyncio.gather(*(alice.post("/createRoom", body=body) for _ in range(5)))
    assert sorted(a.status for a in answers) == [200, 400, 400, 400, 400]
    assert {a.errcode for a in answers} == {None, "M_ROOM_IN_USE"}
    assert len((await alice.get("/joined_rooms")).body["joined_rooms"]) == 1
    # A room that the rules refuse leaves its alias free.
    bad = {"room_alias_name": "two", "power_level_content_override": {"users": {"nobody": 100}}}
    assert (await alice.post("/createRoom", body=bad)).status == 400
    assert await alice.create(room_alias_name="two")


async def test_membership_round(server: RoomServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    room_id = await alice.create()
    assert (await bob.change(room_id, "join")).errcode == "M_FORBIDDEN"
    assert (await alice.change(room_id, "invite", user_id=bob.id)).status == 200
    assert (await bob.post("/join", room_id)).body == {"room_id": room_id}
    assert (await bob.get("/joined_rooms")).body == {"joined_rooms": [room_id]}
    assert (await bob.change(room_id, "kick", user_id=alice.id)).errcode == "M_FORBIDDEN"
    assert (await alice.change(room_id, "kick", user_id=bob.id, reason="r")).status == 200
    member = (await alice.get("/rooms", room_id, "/state/m.room.member", bob.id)).body
    assert member == {"membership": "leave", "reason": "r"}
    assert (await alice.change(room_id, "ban", user_id=bob.id)).status == 200
    assert (await alice.change(room_id, "invite", user_id=bob.id)).errcode == "M_FORBIDDEN"
    assert (await alice.change(room_id, "unban", user_id=bob.id)).status == 200
    assert (await alice.change(room_id, "invite", user_id=bob.id)).status == 200
    assert (await bob.change(room_id, "leave")).status == 200
    assert (await bob.change(room_id, "leave")).status == 200


@pytest.mark.parametrize("what", ["invite", "kick", "ban", "unban"])
async def test_strangers_change_nobody(server: RoomServer, what: str) -> None:
    alice, eve = server.user("alice"), server.user("eve")
    room_id = await alice.create(preset="public_chat")
    answer = await eve.change(room_id, what, user_id=alice.id)
    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    unknown = await eve.change("!none:hub.test", what, user_id=alice.id)
    assert (unknown.status, unknown.body) == (answer.status, answer.body)
    assert (await alice.change(room_id, what, user_id="nobody")).status == 400


async def test_forgetting(server: RoomServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    room_id = await alice.create(preset="public_chat")
    assert (await bob.change(room_id, "join")).status == 200
    assert (await bob.change(room_id, "forget")).status == 400
    await bob.change(room_id, "leave")
    assert (await bob.get("/rooms", room_id, "/messages")).status == 200
    assert (await bob.change(room_id, "forget")).status == 200
    assert (await bob.get("/rooms", room_id, "/messages")).status == 403
    assert (await bob.sync(filter='{"room":{"include_leave":true}}'))["rooms"] == {}
    assert (await bob.change(room_id, "join")).status == 200
    assert (await bob.get("/rooms", room_id, "/messages")).status == 200


async def test_aliases_belong_to_their_creator(server: RoomServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    room_id = await alice.create(preset="public_chat")
    alias = "#a/b?c#d:hub.test"
    assert (await bob.put("/directory/room", alias, body={"room_id": room_id})).status == 403
    assert (await alice.put("/directory/room", alias, body={"room_id": room_id})).status == 200
    assert (await alice.put("/directory/room", alias, body={"room_id": room_id})).status == 409
    assert (await alice.put("/directory/room", "#x:other", body={"room_id": room_id})).status == 403
    assert (await alice.get("/rooms", room_id, "/aliases")).body == {"aliases": [alias]}
    assert (await bob.get("/rooms", room_id, "/aliases")).status == 403
    assert (await bob.post("/join", alias)).body == {"room_id": room_id}
    assert (await bob.call("DELETE", "/directory/room", alias)).status == 403
    assert (await alice.call("DELETE", "/directory/room", alias)).status == 200
    assert (await alice.get("/directory/room", alias)).errcode == "M_NOT_FOUND"


async def test_public_rooms(server: RoomServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    room_id = await alice.create(visibility="public", name="Club of 100%")
    await alice.create(name="hidden")
    listed = (await bob.get("/publicRooms")).body
    assert [r["room_id"] for r in listed["chunk"]] == [room_id]
    assert listed["chunk"][0]["num_joined_members"] == 1
    search = {"filter": {"generic_search_term": "100%"}}
    assert len((await bob.post("/publicRooms", body=search)).body["chunk"]) == 1
    none = {"filter": {"generic_search_term": "%"}, "limit": 0, "since": "1"}
    assert (await bob.post("/publicRooms", body=none)).body["chunk"] == []
    assert (await bob.put("/directory/list/room", room_id, body={"visibility": "private"})).status == 403
    assert (await alice.put("/directory/list/room", room_id, body={"visibility": "private"})).status == 200
    assert (await bob.get("/publicRooms")).body["chunk"] == []


async def test_user_directory_knows_those_one_shares_a_room_with(server: RoomServer) -> None:
    alice, bob, eve = server.user("alice"), server.user("bob"), server.user("eve")
    room_id = await alice.create(invite=[bob.id])
    await bob.change(room_id, "join")
    found = (await bob.post("/user_directory/search", body={"search_term": "ali"})).body
    assert found == {"results": [{"user_id": alice.id, "display_name": "Alice"}], "limited": False}
    assert (await eve.post("/user_directory/search", body={"search_term": "ali"})).body["results"] == []
