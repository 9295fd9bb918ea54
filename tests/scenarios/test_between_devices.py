"""Two servers in their own processes: keys, messages between devices, typing and receipts, end to end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.kit.processes import ServerProcess, configure
from tests.kit.users import User, register
from tests.kit.waiting import eventually

Servers = tuple[ServerProcess, ServerProcess]


class Client:
    """A user who syncs."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.since = ""

    async def sync(self) -> Any:
        answer = await self.user.ok("GET", f"/sync?timeout=1000{self.since}")
        self.since = f"&since={answer['next_batch']}"
        return answer

    async def until(self, look: Any) -> Any:
        """Sync until `look` finds something in an answer."""
        deadline = asyncio.get_running_loop().time() + 20
        while not (found := look(await self.sync())):
            assert asyncio.get_running_loop().time() < deadline
        return found

    async def publish_keys(self, number: int = 3) -> tuple[str, dict[str, Any]]:
        device_id = (await self.user.ok("GET", "/account/whoami"))["device_id"]
        keys = {
            "user_id": self.user.user_id, "device_id": device_id, "algorithms": ["m.olm"],
            "keys": {f"ed25519:{device_id}": "key"}, "signatures": {self.user.user_id: {}},
        }  # fmt: skip
        one_time = {f"signed_curve25519:{n}": {"key": f"k{n}"} for n in range(number)}
        await self.user.ok("POST", "/keys/upload", {"device_keys": keys, "one_time_keys": one_time})
        return device_id, keys


def changed(user_id: str) -> Any:
    return lambda answer: user_id in answer["device_lists"]["changed"]


def messages(answer: Any) -> Any:
    return [(e["sender"], e["type"], e["content"]) for e in answer["to_device"]["events"]]


def ephemeral(room_id: str, type_: str) -> Any:
    def look(answer: Any) -> Any:
        events = answer["rooms"].get("join", {}).get(room_id, {}).get("ephemeral", {}).get("events", [])
        return [event["content"] for event in events if event["type"] == type_]

    return look


async def test_two_devices_find_each_other_and_talk(servers: Servers, http: aiohttp.ClientSession) -> None:
    hub, participant = servers
    a, b = await register(http, hub, "alice"), await register(http, participant, "bob")
    alice, bob = Client(a), Client(b)
    room_id = (await a.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    await alice.sync()
    await b.ok("POST", f"/join/{quote(room_id)}", {})
    await bob.sync()
    await alice.until(changed(b.user_id))

    device, keys = await alice.publish_keys()
    await bob.until(changed(a.user_id))
    found = await b.ok("POST", "/keys/query", {"device_keys": {a.user_id: []}})
    assert found["device_keys"] == {a.user_id: {device: keys}} and found["failures"] == {}

    wanted = {"one_time_keys": {a.user_id: {device: "signed_curve25519"}}}
    given = [await b.ok("POST", "/keys/claim", wanted) for _ in range(4)]
    ids = [key_id for g in given for key_id in g["one_time_keys"].get(a.user_id, {}).get(device, {})]
    assert ids == [f"signed_curve25519:{n}" for n in range(3)]

    await b.ok("PUT", "/sendToDevice/m.x/1", {"messages": {a.user_id: {device: {"hello": 1}}}})
    assert await alice.until(messages) == [(b.user_id, "m.x", {"hello": 1})]

    room = f"/rooms/{quote(room_id)}"
    await b.ok("PUT", f"{room}/typing/{quote(b.user_id)}", {"typing": True, "timeout": 20_000})
    assert await alice.until(ephemeral(room_id, "m.typing")) == [{"user_ids": [b.user_id]}]
    sent = await a.ok("PUT", f"{room}/send/m.room.message/1", {"msgtype": "m.text", "body": "hi"})

    async def arrived() -> bool:
        return sent["event_id"] in await b.history(room)

    await eventually(arrived)
    await b.ok("POST", f"{room}/receipt/m.read/{quote(sent['event_id'])}", {})
    [read] = await alice.until(ephemeral(room_id, "m.receipt"))
    assert list(read[sent["event_id"]]["m.read"]) == [b.user_id]

    await a.ok("POST", "/logout")
    await bob.until(changed(a.user_id))
    found = await b.ok("POST", "/keys/query", {"device_keys": {a.user_id: []}})
    assert found["device_keys"] == {a.user_id: {}}


async def test_participants_tell_each_other_without_the_hub(
    servers: Servers, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """EDUs do not go by way of the hub (D04 §EDUs): two participants that never spoke before."""
    hub, participant = servers
    third = configure(tmp_path, "third")
    await third.start()
    try:
        a, b = await register(http, hub, "alice"), await register(http, participant, "bob")
        c = await register(http, third, "carol")
        room_id = (await a.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
        for user in (b, c):
            await user.ok("POST", f"/join/{quote(room_id)}", {})
        room, bob = f"/rooms/{quote(room_id)}", Client(b)
        await bob.until(lambda answer: c.user_id in str(answer["rooms"]))
        await c.ok("PUT", f"{room}/typing/{quote(c.user_id)}", {"typing": True, "timeout": 30_000})
        assert await bob.until(ephemeral(room_id, "m.typing")) == [{"user_ids": [c.user_id]}]
        sent = await c.ok("PUT", f"{room}/send/m.room.message/1", {"msgtype": "m.text", "body": "hi"})
        client = Client(c)
        await client.until(lambda answer: sent["event_id"] in str(answer["rooms"]))
        await c.ok("POST", f"{room}/receipt/m.read/{quote(sent['event_id'])}", {})
        [read] = await bob.until(ephemeral(room_id, "m.receipt"))
        assert list(read[sent["event_id"]]["m.read"]) == [c.user_id]
        device_id, _ = await client.publish_keys()
        await bob.until(changed(c.user_id))
        await b.ok("PUT", "/sendToDevice/m.x/1", {"messages": {c.user_id: {device_id: {"hello": 1}}}})
        assert await client.until(messages) == [(b.user_id, "m.x", {"hello": 1})]
    finally:
        third.stop()


async def test_a_server_that_is_away_is_a_failure_now_and_gets_its_messages_later(
    servers: Servers, http: aiohttp.ClientSession
) -> None:
    hub, participant = servers
    a, b = await register(http, hub, "alice"), await register(http, participant, "bob")
    alice = Client(a)
    hub.kill()
    found = await b.ok("POST", "/keys/query", {"device_keys": {a.user_id: []}, "timeout": 3000})
    assert found["failures"] == {hub.name: {}}
    for n in range(3):
        await b.ok("PUT", f"/sendToDevice/m.x/{n}", {"messages": {a.user_id: {"*": {"n": n}}}})
    participant.kill()
    await participant.start()
    await hub.start()
    got: list[Any] = []
    while len(got) < 3:
        got += await alice.until(messages)
    assert [content["n"] for _, _, content in got] == [0, 1, 2]
