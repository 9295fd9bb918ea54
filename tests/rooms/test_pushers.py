"""Pushers: from an event to a push gateway, through crashes, refusals and those who leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lmserver.composition import assemble
from lmserver.config import parse_config
from lmserver.federation_client import push_gateway
from lmserver.rooms.push import delivery, following
from lmserver.storage.database import Database
from tests.evilpeer.network import Network
from tests.kit.client_api import NAME, V3, Api
from tests.kit.clock import Clock
from tests.kit.rooms import key_of
from tests.kit.waiting import eventually

GATEWAY = "gateway.test"


class Gateway:
    """A push gateway that keeps what it is told; `answer` is what it says."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.status, self.answer = 200, {"rejected": []}
        app = web.Application()
        app.router.add_post(push_gateway.PATH, self._notify)
        self.server = TestServer(app)

    async def _notify(self, request: web.Request) -> web.Response:
        self.told.append((await request.json())["notification"])
        return web.json_response(self.answer, status=self.status)

    @property
    def url(self) -> str:
        return f"http://{GATEWAY}:{self.server.port}{push_gateway.PATH}"

    def texts(self) -> list[str]:
        return [n["content"]["body"] for n in self.told]

    def badges(self) -> list[int]:
        """The numbers that came without an event."""
        return [n["counts"]["unread"] for n in self.told if "event_id" not in n]


class World:
    """A server with its pushers running, which can be started again."""

    def __init__(self, db: Database, folder: Path, gateway: Gateway) -> None:
        self.db, self.gateway, self._folder = db, gateway, folder
        self.clock = Clock()
        self._network = Network()
        self._network.ports[GATEWAY] = 1
        self._run: asyncio.Task[None] | None = None

    async def start(self) -> None:
        config = {
            "server_name": NAME,
            "registration": {"mode": "open"},
            "limits": {n: {"per_second": 1000, "burst": 1000} for n in ("login", "registration", "send")},
            "federation": {
                "plain_http_servers": [f"{GATEWAY}:{self.gateway.server.port}"],
                "allowed_networks": ["127.0.0.0/8"],
            },
        }
        server = assemble(
            parse_config(config, self._folder), self.db, key_of(NAME), self.clock, self._network
        )
        self.api = Api(server)
        await self.api.http.start_server()
        self._run = asyncio.create_task(server.push.run())

    async def stop(self) -> None:
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
        await self.api.http.close()
        await self.api.server.close()

    async def ok(self, who: dict[str, str], method: str, path: str, body: Any = None) -> Any:
        status, answer = await self.api.call(method, V3 + path, body, who["access_token"])
        assert status == 200, (path, answer)
        return answer

    async def say(self, who: dict[str, str], room_id: str, text: str, **content: Any) -> str:
        body = {"msgtype": "m.text", "body": text, **content}
        answer = await self.ok(who, "PUT", f"/rooms/{quote(room_id)}/send/m.room.message/{quote(text)}", body)
        event_id: str = answer["event_id"]
        return event_id

    async def read(self, who: dict[str, str], room_id: str, event_id: str, kind: str = "m.read") -> None:
        await self.ok(who, "POST", f"/rooms/{quote(room_id)}/receipt/{kind}/{quote(event_id)}", {})

    async def quiet(self) -> bool:
        """Whether nothing waits any more."""
        return not await self.db.fetchval("SELECT count(*) FROM push_queue")


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway()
    await made.server.start_server()
    yield made
    await made.server.close()


@pytest.fixture
async def world(db: Database, tmp_path: Path, gateway: Gateway, monkeypatch: Any) -> AsyncIterator[World]:
    monkeypatch.setattr(delivery, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(delivery, "BADGE_SECONDS", 0.05)
    made = World(db, tmp_path, gateway)
    await made.start()
    yield made
    await made.stop()


def pusher(world: World, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "http", "app_id": "org.example.app", "pushkey": "key", "app_display_name": "App",
        "device_display_name": "Phone", "lang": "en", "data": {"url": world.gateway.url, "brand": "x"}, **changes,
    }  # fmt: skip


async def room_of_two(world: World) -> tuple[dict[str, str], dict[str, str], str]:
    """Alice, Bob with a pusher, and their room."""
    alice, bob = await world.api.register("alice"), await world.api.register("bob")
    room_id = (await world.ok(alice, "POST", "/createRoom", {"preset": "public_chat", "name": "Tea"}))[
        "room_id"
    ]
    await world.ok(bob, "POST", f"/rooms/{quote(room_id)}/join", {})
    await world.ok(bob, "POST", "/pushers/set", pusher(world))
    return alice, bob, room_id


def told(gateway: Gateway, number: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return len(gateway.told) >= number

    return check


async def _has_told(gateway: Gateway, text: str) -> bool:
    return any(note.get("content", {}).get("body") == text for note in gateway.told)


async def test_a_message_is_told_to_the_gateway(world: World, gateway: Gateway) -> None:
    alice, bob, room_id = await room_of_two(world)
    event_id = await world.say(alice, room_id, "hello")
    await world.say(bob, room_id, "own words")
    await eventually(told(gateway, 1))
    await eventually(world.quiet)
    [note] = gateway.told
    [device] = note.pop("devices")
    assert device.pop("pushkey_ts") > 0
    assert device == {
        "app_id": "org.example.app", "pushkey": "key", "data": {"brand": "x"}, "tweaks": {"sound": "default"},
    }  # fmt: skip
    assert note.pop("counts")["unread"] in (0, 1)  # Bob's own words may have come before
    assert note == {
        "event_id": event_id, "room_id": room_id, "type": "m.room.message", "sender": alice["user_id"],
        "content": {"msgtype": "m.text", "body": "hello"}, "prio": "high", "room_name": "Tea",
        "sender_display_name": "alice",
    }  # fmt: skip


async def test_a_gateway_may_be_told_the_event_id_only(world: World, gateway: Gateway) -> None:
    alice, bob, room_id = await room_of_two(world)
    data = {"url": gateway.url, "format": "event_id_only"}
    await world.ok(bob, "POST", "/pushers/set", pusher(world, data=data))
    event_id = await world.say(alice, room_id, "secret")
    await eventually(told(gateway, 1))
    [note] = gateway.told
    assert set(note) == {"event_id", "room_id", "counts", "prio", "devices"}
    assert note["event_id"] == event_id and "tweaks" not in note["devices"][0]


async def test_invites_are_told_and_rooms_joined_later_followed(world: World, gateway: Gateway) -> None:
    alice, bob, _ = await room_of_two(world)
    invited = (await world.ok(alice, "POST", "/createRoom", {"invite": [bob["user_id"]]}))["room_id"]
    await eventually(told(gateway, 1))
    assert (gateway.told[0]["room_id"], gateway.told[0]["user_is_target"]) == (invited, True)
    await world.say(alice, invited, "before the join")
    await world.ok(bob, "POST", f"/rooms/{quote(invited)}/join", {})
    await world.say(alice, invited, "after")
    await eventually(told(gateway, 2))
    await eventually(world.quiet)
    assert [n["content"].get("body") for n in gateway.told] == [None, "after"]


@pytest.mark.parametrize("kind", ["m.read", "m.read.private"])
async def test_what_is_read_elsewhere_is_told_as_a_number_alone(
    world: World, gateway: Gateway, kind: str
) -> None:
    alice, bob, room_id = await room_of_two(world)
    event_id = await world.say(alice, room_id, "one")
    await eventually(told(gateway, 1))
    await world.read(alice, room_id, event_id)
    await world.read(bob, room_id, event_id, kind)
    await eventually(told(gateway, 2))
    [device] = gateway.told[1].pop("devices")
    assert device.pop("pushkey_ts") > 0
    assert device == {"app_id": "org.example.app", "pushkey": "key", "data": {"brand": "x"}}
    assert gateway.told[1] == {"counts": {"unread": 0}, "prio": "low"}
    # What leaves the number as it was is not told: Bob reads on, and there was nothing.
    await world.read(bob, room_id, await world.say(bob, room_id, "own words"), kind)
    await world.say(alice, room_id, "two")
    await eventually(lambda: _has_told(gateway, "two"))
    numbers = [note["counts"]["unread"] for note in gateway.told]
    assert all(
        n != before
        for n, before, note in zip(numbers[2:], numbers[1:], gateway.told[2:], strict=False)
        if "event_id" not in note
    )


async def test_a_burst_of_receipts_is_one_badge(
    world: World, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, room_id = await room_of_two(world)
    rooms = [room_id]
    for _ in range(2):
        rooms.append((await world.ok(alice, "POST", "/createRoom", {"preset": "public_chat"}))["room_id"])
        await world.ok(bob, "POST", f"/rooms/{quote(rooms[-1])}/join", {})
    sent = [await world.say(alice, r, f"text{n}") for n, r in enumerate(rooms)]
    await eventually(told(gateway, 3))
    of_badges = world.api.server.push.delivery
    gate, catch_up = asyncio.Event(), of_badges._catch_up

    async def late() -> None:
        await gate.wait()
        await catch_up()

    monkeypatch.setattr(of_badges, "_catch_up", late)
    for r, event_id in zip(rooms, sent, strict=True):
        await world.read(bob, r, event_id)
    gate.set()
    await eventually(told(gateway, 4))
    assert gateway.badges()[0] == 0


async def test_a_badge_that_the_gateway_does_not_take_is_told_later(world: World, gateway: Gateway) -> None:
    alice, bob, room_id = await room_of_two(world)
    event_id = await world.say(alice, room_id, "one")
    await eventually(told(gateway, 1))
    await eventually(world.quiet)
    gateway.status = 502
    await world.read(bob, room_id, event_id)
    row: Any = None
    while row is None or not row["failures"]:
        row = await world.db.fetchrow("SELECT failures FROM pushers")
        await asyncio.sleep(0.01)
    of_badges = world.api.server.push.delivery

    async def kept() -> bool:
        return bool(of_badges._badges)

    await eventually(kept)
    assert await of_badges._due_badges() == set()  # nobody looks at a pusher whose gateway has a pause
    gateway.status = 200
    world.clock.pass_(delivery.MAX_PAUSE_MS)
    await eventually(told(gateway, 3))
    assert gateway.badges() == [0, 0]

    async def forgiven() -> bool:
        return bool(await world.db.fetchval("SELECT failures = 0 FROM pushers"))

    await eventually(forgiven)


async def test_the_badge_of_a_pusher_that_is_gone_is_forgotten(world: World, gateway: Gateway) -> None:
    alice, bob, room_id = await room_of_two(world)
    event_id = await world.say(alice, room_id, "one")
    await eventually(told(gateway, 1))
    await eventually(world.quiet)
    gateway.status = 502
    await world.read(bob, room_id, event_id)
    of_badges = world.api.server.push.delivery

    async def kept() -> bool:
        return bool(of_badges._badges) and len(gateway.told) > 1

    async def forgotten() -> bool:
        return not of_badges._badges

    await eventually(kept)
    await world.ok(bob, "POST", "/pushers/set", {"kind": None, "app_id": "org.example.app", "pushkey": "key"})
    await eventually(forgotten)


async def test_nothing_is_lost_or_doubled_over_a_restart(world: World, gateway: Gateway) -> None:
    alice, _, room_id = await room_of_two(world)
    await world.say(alice, room_id, "one")
    await eventually(told(gateway, 1))
    await eventually(world.quiet)
    server = world.api.server
    world._run.cancel()  # type: ignore[union-attr]
    await asyncio.gather(world._run, return_exceptions=True)  # type: ignore[arg-type]
    await world.say(alice, room_id, "two")
    await world.api.http.close()
    await server.close()
    await world.start()
    await eventually(told(gateway, 2))
    await eventually(world.quiet)
    assert gateway.texts() == ["one", "two"]


async def test_a_gateway_that_fails_is_asked_again_after_ever_longer_pauses(
    world: World, gateway: Gateway
) -> None:
    alice, _, room_id = await room_of_two(world)
    gateway.status = 502
    await world.say(alice, room_id, "one")
    await eventually(told(gateway, 1))
    for failures in (1, 2):
        row: Any = None
        while row is None or row["failures"] < failures:
            row = await world.db.fetchrow("SELECT failures, retry_at FROM pushers")
            await asyncio.sleep(0.01)
        left = row["retry_at"] - world.clock()
        assert 0 < delivery.FIRST_PAUSE_MS * 2 ** (failures - 1) - left < delivery.FIRST_PAUSE_MS
        await asyncio.sleep(0.2)
        assert len(gateway.told) == failures  # not before its time
        if failures == 1:
            world.clock.pass_(delivery.FIRST_PAUSE_MS)
    gateway.status = 200
    world.clock.pass_(delivery.MAX_PAUSE_MS)
    await eventually(world.quiet)
    assert gateway.texts() == ["one"] * 3
    assert await world.db.fetchval("SELECT failures FROM pushers") == 0


async def test_a_rejected_key_ends_its_pusher(world: World, gateway: Gateway) -> None:
    alice, bob, room_id = await room_of_two(world)
    gateway.answer = {"rejected": ["key"]}
    await world.say(alice, room_id, "one")
    await eventually(told(gateway, 1))
    await eventually(world.quiet)
    assert (await world.ok(bob, "GET", "/pushers"))["pushers"] == []


async def test_c7_what_was_redacted_meanwhile_or_left_behind_is_not_told(
    world: World, gateway: Gateway
) -> None:
    alice, bob, room_id = await room_of_two(world)
    gateway.status = 500
    event_id = await world.say(alice, room_id, "regretted")
    await eventually(told(gateway, 1))
    await world.ok(alice, "PUT", f"/rooms/{quote(room_id)}/redact/{quote(event_id)}/r", {})
    gateway.status = 200
    world.clock.pass_(delivery.MAX_PAUSE_MS)
    await eventually(world.quiet)
    assert len(gateway.told) == 1
    await world.ok(bob, "POST", f"/rooms/{quote(room_id)}/leave", {})
    await world.say(alice, room_id, "gone")
    await world.api.server.push.following.look_at(room_id)
    assert await world.quiet() and len(gateway.told) == 1


async def test_a_pusher_goes_with_its_device_and_with_the_phone(world: World, gateway: Gateway) -> None:
    alice, bob, _ = await room_of_two(world)
    await world.ok(alice, "POST", "/pushers/set", pusher(world, append=True))
    assert len((await world.ok(bob, "GET", "/pushers"))["pushers"]) == 1
    await world.ok(alice, "POST", "/pushers/set", pusher(world))
    assert (await world.ok(bob, "GET", "/pushers"))["pushers"] == []  # the phone is Alice's now
    await world.ok(alice, "POST", "/logout", {})
    assert await world.db.fetchval("SELECT count(*) FROM pushers") == 0
    await world.ok(bob, "POST", "/pushers/set", pusher(world))
    await world.ok(bob, "POST", "/pushers/set", {"kind": None, "app_id": "org.example.app", "pushkey": "key"})
    assert (await world.ok(bob, "GET", "/pushers"))["pushers"] == []


async def test_rooms_without_pushers_cost_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, _, room_id = await room_of_two(world)
    other = (await world.ok(alice, "POST", "/createRoom", {}))["room_id"]
    looked: list[str] = []
    look_at = following.Following.look_at

    async def counted(self: following.Following, looked_at: str) -> None:
        looked.append(looked_at)
        await look_at(self, looked_at)

    monkeypatch.setattr(following.Following, "look_at", counted)
    await world.say(alice, other, "alone")
    await world.say(alice, room_id, "together")
    await eventually(told(world.gateway, 1))
    assert set(looked) == {room_id}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"kind": "email"}, "M_INVALID_PARAM"),
    ({"pushkey": None}, "M_MISSING_PARAM"),
    ({"pushkey": "x" * 513}, "M_INVALID_PARAM"),
    ({"app_id": "x" * 65}, "M_INVALID_PARAM"),
    ({"app_id": "a\0b"}, "M_INVALID_PARAM"),
    ({"lang": None}, "M_MISSING_PARAM"),
    ({"append": "yes"}, "M_BAD_JSON"),
    ({"data": None}, "M_MISSING_PARAM"),
    ({"data": {}}, "M_MISSING_PARAM"),
    ({"data": {"url": "https://x.test/_matrix/push/v1/notify", "format": "other"}}, "M_INVALID_PARAM"),
    ({"data": {"url": "https://x.test/_matrix/push/v1/notify", "n": 10**30}}, "M_BAD_JSON"),
    *(
        ({"data": {"url": url}}, "M_INVALID_PARAM")
        for url in (
            "http://other.test/_matrix/push/v1/notify", "https://x.test/elsewhere", "https://x.test:99999" + push_gateway.PATH,
            "https://u@x.test/_matrix/push/v1/notify", "https://127.0.0.1/_matrix/push/v1/notify", 5,
            "https://[::1]/_matrix/push/v1/notify", "https://x.test:22/_matrix/push/v1/notify",
            "https://x.test/_matrix/push/v1/notify?a=b", "file:///_matrix/push/v1/notify", "https://0x7f.1" + push_gateway.PATH,
        )
    ),
]  # fmt: skip


async def test_f1_pushers_that_are_none_are_refused(world: World) -> None:
    alice = await world.api.register("alice")
    for changes, errcode in BAD:
        body = {k: v for k, v in pusher(world, **changes).items() if v is not None}
        answer = await world.api.call("POST", f"{V3}/pushers/set", body, alice["access_token"])
        assert (answer[0], answer[1]["errcode"]) == (400, errcode), (changes, answer)
    status, answer = await world.api.call("POST", f"{V3}/pushers/set", {}, alice["access_token"])
    assert (status, answer["errcode"]) == (400, "M_MISSING_PARAM")


async def test_unread_notifications_are_listed_newest_first_until_they_are_read(world: World) -> None:
    alice, bob, room_id = await room_of_two(world)
    other = (await world.ok(alice, "POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    await world.ok(bob, "POST", f"/rooms/{quote(other)}/join", {})
    sent = [await world.say(alice, room_id if n % 2 else other, f"text{n}") for n in range(4)]
    loud = await world.say(alice, other, "bob!")

    async def listed(query: str = "") -> Any:
        return await world.ok(bob, "GET", f"/notifications{query}")

    def ids(page: Any) -> list[str]:
        return [n["event"]["event_id"] for n in page["notifications"]]

    assert ids(await listed()) == [loud, *sent[::-1]]
    first = await listed("?limit=2")
    rest = await listed(f"?from={first['next_token']}")
    assert (ids(first), ids(rest), "next_token" in rest) == ([loud, sent[3]], sent[2::-1], False)
    [note] = (await listed("?only=highlight"))["notifications"]
    assert (note["event"]["event_id"], note["read"], note["room_id"]) == (loud, False, other)
    assert {"set_tweak": "highlight"} in note["actions"] and note["ts"] > 0
    await world.ok(bob, "POST", f"/rooms/{quote(other)}/receipt/m.read/{quote(loud)}", {})
    assert ids(await listed()) == [sent[3], sent[1]]
    for query in ("?from=x", "?limit=x"):
        status, answer = await world.api.call("GET", f"{V3}/notifications{query}", None, bob["access_token"])
        assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")
