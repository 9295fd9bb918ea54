"""GET /sync over HTTP: its query and filters; the answer's rules are tested in tests/rooms."""

from __future__ import annotations

import asyncio

import pytest

from tests.kit.room_clients import RoomServer
from tests.kit.waiting import HANGS, polling


async def test_first_answer_at_once_and_complete_in_form(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    await server.world.settle()
    answer = await asyncio.wait_for(
        alice.sync(timeout="60000", set_presence="online", _cacheBuster="1"), HANGS
    )
    assert set(answer) == {
        "next_batch", "rooms", "account_data", "presence", "to_device", "device_lists",
        "device_one_time_keys_count", "device_unused_fallback_key_types",
    }  # fmt: skip
    section = answer["rooms"]["join"][room_id]
    assert set(section) == {
        "timeline", "state", "ephemeral", "account_data", "summary", "unread_notifications",
    }  # fmt: skip


async def test_long_poll_over_http(server: RoomServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    room_id = await alice.create(preset="public_chat")
    await bob.change(room_id, "join")
    await server.world.settle()
    since = (await bob.sync())["next_batch"]
    poll = await polling(server.world.notifier, bob.id, bob.sync(since, timeout="60000"))
    await alice.say(room_id, "news")
    answer = await asyncio.wait_for(poll, HANGS)
    [event] = answer["rooms"]["join"][room_id]["timeline"]["events"]
    assert event["content"]["body"] == "news"


@pytest.mark.parametrize(
    ("query", "errcode"),
    [
        ({"since": "junk"}, "M_INVALID_PARAM"),
        ({"since": "p5"}, "M_INVALID_PARAM"),
        ({"since": "s" + "9" * 30 + "_0"}, "M_INVALID_PARAM"),
        ({"timeout": "x"}, "M_INVALID_PARAM"),
        ({"timeout": "-5"}, "M_INVALID_PARAM"),
        ({"filter": "{"}, "M_BAD_JSON"),
        ({"filter": '{"room":5}'}, "M_BAD_JSON"),
        ({"filter": '{"room":{"timeline":{"limit":"1"}}}'}, "M_BAD_JSON"),
        ({"filter": "unknown"}, "M_INVALID_PARAM"),
        ({"filter": "a\0b"}, "M_INVALID_PARAM"),
    ],
)
async def test_bad_queries(server: RoomServer, query: dict[str, str], errcode: str) -> None:
    answer = await server.user("alice").get("/sync", **query)
    assert (answer.status, answer.errcode) == (400, errcode)


async def test_stored_filters_are_the_users_own(server: RoomServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    server.filters[alice.id, "1"] = {"room": {"timeline": {"limit": 1}}}
    room_id = await alice.create()
    await server.world.settle()
    timeline = (await alice.sync(filter="1"))["rooms"]["join"][room_id]["timeline"]
    assert len(timeline["events"]) == 1 and timeline["limited"]
    assert (await bob.get("/sync", filter="1")).status == 400


async def test_a_token_from_a_lost_database_begins_anew(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    await server.world.settle()
    answer = await asyncio.wait_for(alice.sync("s999999999999_5", timeout="60000"), HANGS)
    assert room_id in answer["rooms"]["join"]


async def test_typing_and_receipts_are_for_those_in_the_room(server: RoomServer) -> None:
    alice, bob, eve = server.user("alice"), server.user("bob"), server.user("eve")
    room_id = await alice.create(preset="public_chat")
    said = await alice.say(room_id, "x")
    await bob.change(room_id, "join")
    await bob.change(room_id, "leave")
    for who in (bob, eve):
        typing = await who.put("/rooms", room_id, "/typing", who.id, body={"typing": True, "timeout": 100})
        receipt = await who.post("/rooms", room_id, "/receipt/m.read", said)
        markers = await who.post("/rooms", room_id, "/read_markers", body={"m.fully_read": said})
        assert [a.status for a in (typing, receipt, markers)] == [403] * 3
    mine = await alice.put("/rooms", room_id, "/typing", bob.id, body={"typing": True})
    assert mine.errcode == "M_FORBIDDEN"
    assert (await alice.put("/rooms", room_id, "/typing", alice.id, body={"typing": 1})).status == 400
    assert server.world.typing.users(room_id) == []
    assert (await alice.put("/rooms", room_id, "/typing", alice.id, body={"typing": True})).status == 200
    assert server.world.typing.users(room_id) == [alice.id]


async def test_receipts_over_http(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    first, second = await alice.say(room_id, "1"), await alice.say(room_id, "2")
    assert (await alice.post("/rooms", room_id, "/receipt/m.read", second)).status == 200
    assert (await alice.call("POST", "/rooms", room_id, "/receipt/m.read.private", first)).status == 200
    assert (await alice.post("/rooms", room_id, "/receipt/m.odd", first)).status == 400
    assert (await alice.post("/rooms", room_id, "/receipt/m.read", "$none")).status == 404
    threaded = await alice.post("/rooms", room_id, "/receipt/m.read", first, body={"thread_id": "main"})
    assert threaded.status == 200
    for thread, status in ((first, 200), ("$" + "a" * 43, 404), ("nonsense", 400), ("", 400)):
        answer = await alice.post("/rooms", room_id, "/receipt/m.read", first, body={"thread_id": thread})
        assert answer.status == status, thread
    assert (
        await alice.post("/rooms", room_id, "/receipt/m.read", first, body={"thread_id": 5})
    ).status == 400
    await alice.post("/rooms", room_id, "/read_markers", body={"m.fully_read": second, "m.read": second})
    await alice.post("/rooms", room_id, "/read_markers", body={"m.fully_read": first})
    assert server.markers.rows[alice.id, room_id, "m.fully_read"] == {"event_id": second}


async def test_r5_answers_are_not_compressed_and_state_after_is_asked_for(server: RoomServer) -> None:
    """Attack R5: what is compressed beside a secret tells its length, and costs the server, not the asker."""
    alice = server.user("alice")
    room_id = await alice.create()
    await server.world.settle()
    headers = {"Accept-Encoding": "gzip, deflate, br", "Authorization": f"Bearer {alice.id}|D"}
    url = "/_matrix/client/v3/sync?org.matrix.msc4222.use_state_after=true"
    async with server.client.get(url, headers=headers) as response:
        assert "Content-Encoding" not in response.headers
        section = (await response.json())["rooms"]["join"][room_id]
    assert "state" not in section
    assert section["org.matrix.msc4222.state_after"]["events"]
