"""Sending, state and redaction over HTTP, with the bodies clients should not send."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.kit.room_clients import RoomServer

NUL_KEY = "a%00b"


async def test_a_transaction_id_is_one_event_per_device(server: RoomServer) -> None:
    alice, phone = server.user("alice"), server.user("alice", device="PHONE")
    room_id = await alice.create()
    path = ("/rooms", room_id, "/send/m.room.message", "m1796395666971.1/x")
    body = {"msgtype": "m.text", "body": "once"}
    first, again = await alice.put(*path, body=body), await alice.put(*path, body=body)
    assert first.status == 200 and first.body == again.body
    other = await phone.put(*path, body=body)
    assert other.body != first.body
    together = await asyncio.gather(
        *(alice.put("/rooms", room_id, "/send/m.x", "t", body={}) for _ in range(5))
    )
    assert len({a.body["event_id"] for a in together}) == 1


async def test_transaction_id_is_shown_to_the_sending_device_only(server: RoomServer) -> None:
    alice, phone, bob = server.user("alice"), server.user("alice", device="PHONE"), server.user("bob")
    room_id = await alice.create(preset="public_chat")
    await bob.change(room_id, "join")
    sent = await alice.put("/rooms", room_id, "/send/m.x", "T1", body={})
    event_id = sent.body["event_id"]
    shown = [
        (await u.get("/rooms", room_id, "/event", event_id)).body["unsigned"] for u in (alice, phone, bob)
    ]
    assert [u.get("transaction_id") for u in shown] == ["T1", None, None]


@pytest.mark.parametrize(
    ("raw", "errcode"),
    [
        (b"{", "M_NOT_JSON"),
        (b"", "M_NOT_JSON"),
        (b"[]", "M_BAD_JSON"),
        (b'{"a": 1.5}', "M_BAD_JSON"),
        (b'{"a": 1e2}', "M_BAD_JSON"),
        (b'{"a": 9007199254740992}', "M_BAD_JSON"),
        (b'{"a": NaN}', "M_NOT_JSON"),
        (b'{"a": 1, "a": 2}', "M_NOT_JSON"),
        (b'{"a": "\\ud800"}', "M_BAD_JSON"),
        (b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}", "M_NOT_JSON"),
        (b'{"a":' + b"[" * 80 + b"]" * 80 + b"}", "M_BAD_JSON"),
    ],
)
async def test_bodies_no_event_can_have(server: RoomServer, raw: bytes, errcode: str) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    answer = await alice.call("PUT", "/rooms", room_id, "/send/m.x", "t1", raw=raw)
    assert (answer.status, answer.errcode) == (400, errcode)


async def test_nul_in_content_is_kept_and_in_names_refused(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    event_id = await alice.say(room_id, "a\0b")
    assert (await alice.get("/rooms", room_id, "/event", event_id)).body["content"]["body"] == "a\0b"
    for parts in (
        ("/send/", NUL_KEY, "/t1"),
        ("/send/m.x/", NUL_KEY, ""),
        ("/state/", NUL_KEY, ""),
        ("/state/m.x/", NUL_KEY, ""),
    ):
        path = "".join(parts)
        answer = await alice.call("PUT", f"/rooms/{room_id}{path}", body={})
        assert answer.status == 400, path
    assert (await alice.get(f"/rooms/{room_id}/state/{NUL_KEY}")).status == 404
    assert (await alice.get(f"/rooms/{room_id}/event/{NUL_KEY}")).status == 404
    assert (await alice.get("/rooms/%00/messages")).status == 403


async def test_too_large(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    answer = await alice.put("/rooms", room_id, "/send/m.x", "t", body={"a": "x" * 65_000})
    assert (answer.status, answer.errcode) == (413, "M_TOO_LARGE")


async def test_state_with_and_without_trailing_slash(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    for path in ("/state/m.room.topic", "/state/m.room.topic/"):
        sent = await alice.put("/rooms", room_id, path, body={"topic": path})
        assert sent.status == 200
        assert (await alice.get("/rooms", room_id, path)).body == {"topic": path}
    whole = (await alice.get("/rooms", room_id, "/state/m.room.topic", format="event")).body
    assert whole["state_key"] == "" and whole["room_id"] == room_id and "hashes" not in whole
    assert (await alice.put("/rooms", room_id, "/state/x.y", "a/b c", body={"k": 1})).status == 200
    assert (await alice.get("/rooms", room_id, "/state/x.y", "a/b c")).body == {"k": 1}
    assert (await alice.get("/rooms", room_id, "/state/x.y", "other")).errcode == "M_NOT_FOUND"
    all_state = (await alice.get("/rooms", room_id, "/state")).body
    assert ("x.y", "a/b c") in {(e["type"], e["state_key"]) for e in all_state}
    assert all(set(e) <= {
        "event_id", "type", "sender", "origin_server_ts", "content", "state_key", "room_id", "unsigned",
    } for e in all_state)  # fmt: skip


async def test_setting_the_same_state_twice_is_one_event(server: RoomServer) -> None:
    alice = server.user("alice")
    room_id = await alice.create()
    answers = [await alice.put("/rooms", room_id, "/state/x.y", body={"a": 1}) for _ in range(2)]
    assert answers[0].body == answers[1].body


@pytest.mark.parametrize(
    ("event_type", "key"), [("m.room.create", ""), ("x.y", "@alice:hub.test"), ("m.room.power_levels", "")]
)
async def test_what_the_rules_forbid_is_forbidden(server: RoomServer, event_type: str, key: str) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    room_id = await alice.create(preset="public_chat")
    await bob.change(room_id, "join")
    answer = await bob.put("/rooms", room_id, "/state", event_type, key, body={"users": {bob.id: 100}})
    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")


async def test_strangers_send_nothing_and_learn_nothing(server: RoomServer) -> None:
    alice, eve = server.user("alice"), server.user("eve")
    room_id = await alice.create(preset="public_chat")
    for path in ("/send/m.x/t", "/state/m.x/k", "/redact/$x/t"):
        answer = await eve.put("/rooms", room_id, path)
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN"), path


async def test_redaction(server: RoomServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    room_id = await alice.create(preset="public_chat")
    await bob.change(room_id, "join")
    of_alice, of_bob = await alice.say(room_id, "a"), await bob.say(room_id, "b")
    create = (await alice.get("/rooms", room_id, "/state/m.room.create", format="event")).body["event_id"]

    async def redact(user: Any, event_id: str, txn: str) -> Any:
        return await user.put("/rooms", room_id, "/redact", event_id, txn, body={"reason": "r"})

    assert (await redact(bob, of_alice, "1")).errcode == "M_FORBIDDEN"
    assert (await redact(alice, create, "2")).errcode == "M_FORBIDDEN"
    assert (await redact(alice, "$unknown", "3")).errcode == "M_NOT_FOUND"
    own = await redact(bob, of_bob, "4")
    moderated = await redact(alice, of_alice, "5")
    assert own.status == 200 and moderated.status == 200
    for event_id in (of_alice, of_bob):
        event = (await bob.get("/rooms", room_id, "/event", event_id)).body
        assert event["content"] == {} and event["unsigned"]["redacted_because"]["content"]["reason"] == "r"
    event = (await bob.get("/rooms", room_id, "/event", own.body["event_id"])).body
    assert event["redacts"] == event["content"]["redacts"] == of_bob


async def test_a_transaction_id_that_was_used_for_a_message_still_redacts(server: RoomServer) -> None:
    """The same ID at another endpoint, and for another event, is another transaction; again, it is the same."""
    alice = server.user("alice")
    room_id = await alice.create()
    path = ("/rooms", room_id, "/send/m.room.message", "1")
    first = (await alice.put(*path, body={"body": "a"})).body["event_id"]
    second = await alice.say(room_id, "b")
    done = [await alice.put("/rooms", room_id, "/redact", e, "1") for e in (first, second, first)]
    redactions = [answer.body["event_id"] for answer in done]
    assert len({first, *redactions}) == 3 and redactions[0] == redactions[2]
    assert (await alice.put(*path, body={"body": "a"})).body["event_id"] == first
    for event_id in (first, second):
        assert (await alice.get("/rooms", room_id, "/event", event_id)).body["content"] == {}
    shown = (await alice.get("/rooms", room_id, "/event", redactions[0])).body
    assert shown["unsigned"]["transaction_id"] == "1"


async def test_a_redaction_by_plain_send_of_others_events_has_no_effect(server: RoomServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    room_id = await alice.create(preset="public_chat")
    await bob.change(room_id, "join")
    said = await alice.say(room_id, "stays")
    await bob.put("/rooms", room_id, "/send/m.room.redaction", "t", body={"redacts": said})
    assert (await bob.get("/rooms", room_id, "/event", said)).body["content"]["body"] == "stays"
