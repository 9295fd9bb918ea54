"""Membership between three servers in their own processes, crashes and outages included."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from tests.kit.processes import ServerProcess, configure, lmserver, running
from tests.kit.users import User, register
from tests.kit.waiting import eventually

Three = tuple[ServerProcess, ServerProcess, ServerProcess]


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    servers = (configure(tmp_path, "hub"), configure(tmp_path, "near"), configure(tmp_path, "far"))
    async with running(*servers):
        yield servers


async def pending(user: User) -> dict[str, list[str]]:
    """Room IDs by section, as a client that has just logged in sees them."""
    answer = await user.ok("GET", "/sync?timeout=0")
    return {name: sorted(rooms) for name, rooms in answer["rooms"].items()}


async def sees(user: User, expected: dict[str, list[str]]) -> None:
    async def as_expected() -> bool:
        return await pending(user) == expected

    await eventually(as_expected)


async def membership(room: str, asked: User, of: User) -> Any:
    status, answer = await asked.call("GET", f"{room}/state/m.room.member/{quote(of.user_id)}")
    return answer.get("membership") if status == 200 else None


async def test_a_life_of_membership_across_three_servers(
    three: Three, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Knock, denial, knock, invite by a participant, join, kick while away, ban, unban, join again."""
    hub, near, far = three
    alice, bob = await register(http, hub, "alice"), await register(http, near, "bob")
    carol, dave = await register(http, far, "carol"), await register(http, far, "dave")
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    levels = {"users": {alice.user_id: 100, bob.user_id: 50}}
    room_id = (
        await alice.ok(
            "POST", "/createRoom",
            {"initial_state": [rule], "power_level_content_override": levels, "room_alias_name": "life"},
        )
    )["room_id"]  # fmt: skip
    room = f"/rooms/{quote(room_id)}"
    alias = quote(f"#life:{hub.name}")

    await alice.ok("POST", f"{room}/invite", {"user_id": bob.user_id})
    await sees(bob, {"invite": [room_id]})
    await bob.ok("POST", f"/join/{alias}", {})
    await carol.ok("POST", f"/knock/{alias}", {"reason": "let me in"})
    await sees(carol, {"knock": [room_id]})

    async def knocked() -> bool:
        return bool(await membership(room, bob, carol) == "knock")

    await eventually(knocked)
    await bob.ok("POST", f"{room}/kick", {"user_id": carol.user_id, "reason": "who are you?"})
    await sees(carol, {})
    await carol.ok("POST", f"/knock/{quote(room_id)}?server_name={near.name}", {"reason": "Carol"})
    await eventually(knocked)
    await bob.ok("POST", f"{room}/invite", {"user_id": carol.user_id})
    await sees(carol, {"invite": [room_id]})

    far.kill()
    await alice.ok("POST", f"{room}/kick", {"user_id": carol.user_id, "reason": "not now"})
    hub.kill()
    await hub.start()
    await far.start()
    await sees(carol, {})
    assert (await carol.call("POST", f"/join/{quote(room_id)}", {}))[0] == 403

    await alice.ok("POST", f"{room}/invite", {"user_id": carol.user_id})
    await sees(carol, {"invite": [room_id]})
    await carol.ok("POST", f"{room}/join", {})
    await dave.ok("POST", f"/knock/{quote(room_id)}", {})
    await alice.ok("POST", f"{room}/invite", {"user_id": dave.user_id})
    await sees(dave, {"invite": [room_id]})
    await dave.ok("POST", f"{room}/leave", {})
    await sees(dave, {})

    await alice.ok("POST", f"{room}/ban", {"user_id": carol.user_id})
    await sees(carol, {})
    await alice.ok("POST", f"{room}/unban", {"user_id": carol.user_id})
    await alice.ok("POST", f"{room}/invite", {"user_id": carol.user_id})
    await sees(carol, {"invite": [room_id]})
    await carol.ok("POST", f"{room}/join", {})

    heard = await alice.ok("PUT", f"{room}/send/m.room.message/1", {"msgtype": "m.text", "body": "all here?"})

    async def everywhere() -> bool:
        return all([heard["event_id"] in await user.history(room) for user in (bob, carol)])

    await eventually(everywhere)
    for server in three:
        assert server.stop() == 0
        verified = lmserver("verify", "--config", str(server.config))
        assert verified.returncode == 0, verified.stdout


async def test_an_invite_is_declined_while_its_hub_is_dead(three: Three, http: aiohttp.ClientSession) -> None:
    """Gone at once for the user, who may even see the server restart; told to the hub when it is back."""
    hub, near, _ = three
    alice, bob = await register(http, hub, "alice"), await register(http, near, "bob")
    room_id = (await alice.ok("POST", "/createRoom", {"preset": "private_chat"}))["room_id"]
    room = f"/rooms/{quote(room_id)}"
    await alice.ok("POST", f"{room}/invite", {"user_id": bob.user_id})
    await sees(bob, {"invite": [room_id]})
    hub.kill()
    await bob.ok("POST", f"{room}/leave", {})
    assert await pending(bob) == {}
    near.kill()
    await hub.start()
    assert await membership(room, alice, bob) == "invite"
    await near.start()

    async def declined() -> bool:
        return bool(await membership(room, alice, bob) == "leave")

    await eventually(declined)
    assert await pending(bob) == {}
