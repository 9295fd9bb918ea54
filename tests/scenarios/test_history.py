"""Two servers in their own processes: what was said before a server came, read there, with crashes."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import aiohttp

from tests.kit.processes import ServerProcess, lmserver
from tests.kit.users import User, register
from tests.kit.waiting import eventually

Servers = tuple[ServerProcess, ServerProcess]
BEFORE = 110


async def say(user: User, room: str, label: str, count: int) -> list[str]:
    """As a client does: one after the other, waiting when the server asks for it."""
    said: list[str] = []
    while len(said) < count:
        name = f"{label}{len(said)}"
        text = {"msgtype": "m.text", "body": name}
        status, answer = await user.call("PUT", f"{room}/send/m.room.message/{name}", text)
        if status == 429:
            await asyncio.sleep(answer["retry_after_ms"] / 1000)
            continue
        assert status == 200, answer
        said.append(answer["event_id"])
    return said


async def scrolled(user: User, room: str) -> list[str]:
    """Every event a client finds by scrolling up, oldest first."""
    found: list[str] = []
    start = ""
    while True:
        answer = await user.ok("GET", f"{room}/messages?dir=b&limit=40{start}")
        found += [event["event_id"] for event in answer["chunk"]]
        if "end" not in answer:
            return found[::-1]
        start = f"&from={answer['end']}"


async def test_a_client_scrolls_to_the_beginning_through_crashes_and_absence(
    servers: Servers, http: aiohttp.ClientSession
) -> None:
    hub, participant = servers
    alice, bob = await register(http, hub, "alice"), await register(http, participant, "bob")
    room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
    room = f"/rooms/{quote(room_id)}"
    await say(alice, room, "before", BEFORE)
    await bob.ok("POST", f"/join/{quote(room_id)}", {})
    first = await bob.ok("GET", f"{room}/messages?dir=b&limit=40")
    assert len(first["chunk"]) == 40
    participant.kill()
    await participant.start()
    assert await scrolled(bob, room) == await scrolled(alice, room)

    # Away for a while, and back: what was said meanwhile is there too.
    await bob.ok("POST", f"{room}/leave", {})
    await say(alice, room, "meanwhile", 5)
    await bob.ok("POST", f"/join/{quote(room_id)}", {})
    last = (await say(alice, room, "after", 1))[-1]

    async def arrived() -> bool:
        return last in await bob.history(room)

    await eventually(arrived)
    whole = await scrolled(alice, room)
    assert await scrolled(bob, room) == whole
    hub.kill()
    assert await scrolled(bob, room) == whole
    await hub.start()
    for server in servers:
        assert server.stop() == 0
        verified = lmserver("verify", "--config", str(server.config))
        assert verified.returncode == 0, verified.stdout
