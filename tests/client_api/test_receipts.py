"""Receipts over HTTP: whom they are for, what they may name, and who may send them."""

from __future__ import annotations

import pytest

from tests.kit.room_clients import RoomServer, User


async def thread_reply(user: User, room_id: str, root: str, txn: str) -> str:
    content = {"msgtype": "m.text", "body": "x", "m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    answer = await user.put("/rooms", room_id, "/send/m.room.message", txn, body=content)
    event_id: str = answer.body["event_id"]
    return event_id


@pytest.mark.parametrize("action", ["receipt/m.read", "receipt/m.read.private", "typing", "read_markers"])
@pytest.mark.parametrize("membership", ["stranger", "invited", "left", "banned"])
async def test_c8_who_is_not_joined_neither_types_nor_reads(
    server: RoomServer, action: str, membership: str
) -> None:
    alice, mallory = server.user("alice"), server.user("mallory")
    room_id = await alice.create(preset="public_chat")
    event_id = await alice.say(room_id, "hello")
    if membership == "invited":
        await alice.change(room_id, "invite", user_id=mallory.id)
    elif membership != "stranger":
        await mallory.change(room_id, "join")
        await (mallory.change(room_id, "leave") if membership == "left" else
               alice.change(room_id, "ban", user_id=mallory.id))  # fmt: skip
    if action == "typing":
        answer = await mallory.put("/rooms", room_id, "/typing", mallory.id, body={"typing": True})
    elif action == "read_markers":
        answer = await mallory.post("/rooms", room_id, "/read_markers", body={"m.read": event_id})
    else:
        answer = await mallory.post("/rooms", room_id, "/" + action, event_id)
    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")


async def test_receipts_in_threads(server: RoomServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    room_id = await alice.create(preset="public_chat")
    await bob.change(room_id, "join")
    root = await alice.say(room_id, "root")
    inside = await thread_reply(alice, room_id, root, "t1")

    async def read(event_id: str, thread: object) -> tuple[int, str | None]:
        body = {"thread_id": thread}
        answer = await bob.post("/rooms", room_id, "/receipt/m.read", event_id, body=body)
        return answer.status, answer.errcode

    assert await read(root, "main") == (200, None)
    assert await read(root, root) == (200, None)
    assert await read(inside, root) == (200, None)
    assert await read(inside, "main") == (400, "M_INVALID_PARAM")
    assert await read(root, inside) == (400, "M_INVALID_PARAM")
    assert await read(root, "") == (400, "M_INVALID_PARAM")
    assert await read(root, 5) == (400, "M_BAD_JSON")
    assert await read("$nope", "main") == (404, "M_NOT_FOUND")
    [told] = (await alice.sync())["rooms"]["join"][room_id]["ephemeral"]["events"]
    data = {event_id: kinds["m.read"][bob.id]["thread_id"] for event_id, kinds in told["content"].items()}
    assert data == {root: "main", inside: root}


async def test_private_receipts_are_seen_by_their_owner_only(server: RoomServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    room_id = await alice.create(preset="public_chat")
    await bob.change(room_id, "join")
    event_id = await alice.say(room_id, "hello")
    await bob.post("/rooms", room_id, "/receipt/m.read.private", event_id)
    own = server.user("bob", "OTHER")
    [told] = (await own.sync())["rooms"]["join"][room_id]["ephemeral"]["events"]
    assert list(told["content"][event_id]) == ["m.read.private"]
    assert (await alice.sync())["rooms"]["join"][room_id]["ephemeral"]["events"] == []
