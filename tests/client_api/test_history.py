"""Reading over HTTP: pages, tokens, context, members."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kit.room_clients import RoomServer


def bodies(chunk: list[Any]) -> list[str]:
    return [e["content"]["body"] for e in chunk if "body" in e["content"]]


async def test_pages_backwards_to_the_start(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    for i in range(12):
        await alice.say(room_id, str(i))
    found: list[Any] = []
    query: dict[str, str] = {"dir": "b", "limit": "5"}
    while True:
        page = (await alice.get("/rooms", room_id, "/messages", **query)).body
        found += page["chunk"]
        if "end" not in page:
            break
        query["from"] = page["end"]
    assert bodies(found) == [str(i) for i in reversed(range(12))]
    assert found[-1]["type"] == "m.room.create"
    assert len({e["event_id"] for e in found}) == len(found)


async def test_from_sync_tokens_and_to(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    await alice.say(room_id, "old")
    await server.world.settle()
    token = (await alice.sync())["next_batch"]
    await alice.say(room_id, "new")
    back = (await alice.get("/rooms", room_id, "/messages", dir="b", **{"from": token})).body
    assert bodies(back["chunk"]) == ["old"]
    forward = (await alice.get("/rooms", room_id, "/messages", dir="f", **{"from": token})).body
    assert bodies(forward["chunk"]) == ["new"]
    between = (await alice.get("/rooms", room_id, "/messages", dir="b", to=token)).body
    assert bodies(between["chunk"]) == ["new"]


async def test_prev_batch_continues_the_timeline(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    for i in range(15):
        await alice.say(room_id, str(i))
    await server.world.settle()
    timeline = (await alice.sync())["rooms"]["join"][room_id]["timeline"]
    page = (await alice.get("/rooms", room_id, "/messages", dir="b", **{"from": timeline["prev_batch"]})).body
    assert bodies(page["chunk"][:1]) == ["4"] and bodies(timeline["events"][:1]) == ["5"]


@pytest.mark.parametrize(
    ("query", "errcode"),
    [
        ({"dir": "x"}, "M_INVALID_PARAM"),
        ({"from": "junk"}, "M_INVALID_PARAM"),
        ({"from": "p" + "9" * 30}, "M_INVALID_PARAM"),
        ({"to": "s1"}, "M_INVALID_PARAM"),
        ({"limit": "-1"}, "M_INVALID_PARAM"),
        ({"limit": "x"}, "M_INVALID_PARAM"),
        ({"filter": "{"}, "M_BAD_JSON"),
        ({"filter": '{"types": 5}'}, "M_BAD_JSON"),
        ({"filter": "[]"}, "M_BAD_JSON"),
    ],
)
async def test_bad_queries(server: RoomServer, query: dict[str, str], errcode: str) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    answer = await alice.get("/rooms", room_id, "/messages", **query)
    assert (answer.status, answer.errcode) == (400, errcode)


@pytest.mark.parametrize("token", ["p999999999999999", "p-999999999999999", "p0", "s999999999999_0", "s0_0"])
async def test_tokens_from_nowhere_do_no_harm(server: RoomServer, token: str) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    for direction in ("b", "f"):
        answer = await alice.get("/rooms", room_id, "/messages", dir=direction, **{"from": token})
        assert answer.status == 200, answer


async def test_filters(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    await alice.say(room_id, "text")
    await alice.put("/rooms", room_id, "/send/m.room.message", "u1", body={"body": "img", "url": "mxc://a/b"})
    for given, expected in (
        ({"contains_url": True}, ["img"]),
        ({"types": ["m.room.mess*"], "contains_url": False}, ["text"]),
        ({"not_senders": [alice.id]}, []),
        ({"types": ["m.room.message"], "limit": 1}, ["img"]),
    ):
        answer = await alice.get("/rooms", room_id, "/messages", filter=json.dumps(given))
        assert bodies(answer.body["chunk"]) == expected, given
    lazy = await alice.get("/rooms", room_id, "/messages", filter='{"lazy_load_members":true}')
    assert [e["state_key"] for e in lazy.body["state"]] == [alice.id]


async def test_context(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    ids = [await alice.say(room_id, str(i)) for i in range(9)]
    answer = (await alice.get("/rooms", room_id, "/context", ids[4], limit="4")).body
    assert answer["event"]["event_id"] == ids[4]
    assert bodies(answer["events_before"]) == ["3", "2"]
    assert bodies(answer["events_after"]) == ["5", "6"]
    older = await alice.get("/rooms", room_id, "/messages", dir="b", **{"from": answer["start"]}, limit="1")
    newer = await alice.get("/rooms", room_id, "/messages", dir="f", **{"from": answer["end"]}, limit="1")
    assert bodies(older.body["chunk"]) == ["1"] and bodies(newer.body["chunk"]) == ["7"]
    alone = (await alice.get("/rooms", room_id, "/context", ids[4], limit="0")).body
    assert alone["events_before"] == alone["events_after"] == []
    one = (await alice.get("/rooms", room_id, "/context", ids[4], limit="1")).body
    assert one["events_before"] == [] and bodies(one["events_after"]) == ["5"]
    names = json.dumps({"types": ["m.room.create"]})
    filtered = (await alice.get("/rooms", room_id, "/context", ids[4], filter=names)).body
    assert [e["type"] for e in filtered["state"]] == ["m.room.create"]
    assert all(e["type"] == "m.room.create" for e in filtered["events_before"] + filtered["events_after"])
    assert (await alice.get("/rooms", room_id, "/context", "$none")).errcode == "M_NOT_FOUND"


async def test_an_event_of_another_room_is_not_in_this_one(server: RoomServer) -> None:
    alice = server.user("alice")
    one, two = await alice.create(), await alice.create()
    said = await alice.say(one, "x")
    assert (await alice.get("/rooms", two, "/event", said)).errcode == "M_NOT_FOUND"


async def test_members(server: RoomServer) -> None:
    alice, bob, eve = server.user("alice"), server.user("bob"), server.user("eve")
    room_id = await alice.create(preset="public_chat")
    await server.world.settle()
    before = (await alice.sync())["next_batch"]
    await bob.change(room_id, "join")
    await eve.change(room_id, "join")
    await eve.change(room_id, "leave")

    async def keys(**query: str) -> list[str]:
        chunk = (await alice.get("/rooms", room_id, "/members", **query)).body["chunk"]
        return sorted(e["state_key"] for e in chunk)

    assert await keys() == [alice.id, bob.id, eve.id]
    assert await keys(not_membership="leave") == [alice.id, bob.id]
    assert await keys(membership="leave") == [eve.id]
    assert await keys(at=before) == [alice.id]
    assert (await alice.get("/rooms", room_id, "/members", membership="odd")).status == 400
    joined = (await bob.get("/rooms", room_id, "/joined_members")).body["joined"]
    assert joined[alice.id] == {"display_name": "Alice"} and set(joined) == {alice.id, bob.id}
    assert (await eve.get("/rooms", room_id, "/joined_members")).status == 403
