"""Invites to rooms that a server has no list of reach the push gateways of who is invited."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from lmserver.federation_client import push_gateway
from lmserver.federation_client.room_api import RoomApi
from tests.federation.sites import Person, Site, sites
from tests.kit.postgres import Cluster
from tests.kit.rooms import HUB, PARTICIPANT
from tests.kit.waiting import eventually
from tests.rooms.test_pushers import GATEWAY, Gateway, told


@dataclass
class Town:
    """Alice at the hub; Bob, who has a pusher, at a server that is in no room."""

    hub: Site
    participant: Site
    alice: Person
    bob: Person
    gateway: Gateway

    async def quiet(self) -> bool:
        return not await self.participant.db.fetchval("SELECT count(*) FROM push_queue")

    async def rule(self, name: str, **body: Any) -> None:
        await self.bob.ok("PUT", f"/pushrules/global/override/{name}", body)


@pytest.fixture
async def town(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Town]:
    gateway = Gateway()
    await gateway.server.start_server()
    where = f"{GATEWAY}:{gateway.server.port}"
    federation = {"plain_http_servers": [HUB, PARTICIPANT, where], "allowed_networks": ["127.0.0.0/8"]}
    async with sites(cluster, tmp_path, HUB, PARTICIPANT, federation=federation) as [hub, participant]:
        participant.victim.network.ports[GATEWAY] = 1
        running = asyncio.create_task(participant.server.push.run())
        made = Town(hub, participant, await hub.user("alice"), await participant.user("bob"), gateway)
        await made.bob.ok("POST", "/pushers/set", {
            "kind": "http", "app_id": "org.example.app", "pushkey": "key", "app_display_name": "App",
            "device_display_name": "Phone", "lang": "en",
            "data": {"url": f"http://{where}{push_gateway.PATH}"},
        })  # fmt: skip
        yield made
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    await gateway.server.close()


async def test_an_invite_to_a_room_unknown_here_is_told(town: Town) -> None:
    room = await town.alice.create(name="Tea", invite=[town.bob.user_id], is_direct=True)
    await eventually(told(town.gateway, 1))
    [note] = town.gateway.told
    [device] = note.pop("devices")
    assert device["tweaks"] == {"sound": "default"}
    assert note.pop("event_id").startswith("$")
    assert note.pop("content")["membership"] == "invite"
    assert note == {
        "room_id": room, "type": "m.room.member", "sender": town.alice.user_id, "user_is_target": True,
        "counts": {"unread": 0}, "prio": "high", "room_name": "Tea", "sender_display_name": "alice",
    }  # fmt: skip
    # Declined and invited again it is another invite; so it is in a room Bob was in.
    await town.bob.act("leave", room)
    await town.alice.act("invite", room, town.bob)
    await eventually(told(town.gateway, 2))
    await town.bob.act("join", room)
    await town.alice.say(room, "hello", "t1")
    await eventually(told(town.gateway, 3))
    await town.bob.act("leave", room)
    await eventually(lambda: _is(town.hub, room, town.bob, "leave"))
    await town.alice.act("invite", room, town.bob)
    await eventually(told(town.gateway, 4))
    await eventually(town.quiet)
    contents = [n["content"] for n in town.gateway.told[1:]]
    assert [c.get("membership", c.get("body")) for c in contents] == ["invite", "hello", "invite"]


async def _is(site: Site, room: str, person: Person, membership: str) -> bool:
    return await site.membership(room, person.user_id) == membership


async def test_an_invite_that_was_answered_or_is_not_wanted_is_not_told(town: Town) -> None:
    town.gateway.status = 502
    room = await town.alice.create(invite=[town.bob.user_id])
    await eventually(told(town.gateway, 1))
    await town.bob.act("leave", room)
    town.gateway.status = 200
    await town.participant.db.execute("UPDATE pushers SET retry_at = 0")
    await eventually(town.quiet)
    assert len(town.gateway.told) == 1
    await town.rule(
        "quiet", actions=[], conditions=[{"kind": "event_match", "key": "content.reason", "pattern": "q"}]
    )
    await town.alice.act("invite", room, town.bob, reason="q")
    assert await town.participant.db.fetchval("SELECT count(*) FROM push_queue") == 0
    other = await town.alice.create(invite=[town.bob.user_id])
    await eventually(told(town.gateway, 2))
    assert town.gateway.told[1]["room_id"] == other


async def test_the_same_invite_asked_for_twice_is_told_once(town: Town) -> None:
    room = await town.alice.create(invite=[town.bob.user_id])
    await eventually(told(town.gateway, 1))
    await eventually(town.quiet)
    view = await town.hub.engine.view(room)
    assert view is not None
    event = view.get("m.room.member", town.bob.user_id)
    assert event is not None
    stored = await town.hub.db.fetchval("SELECT pdu FROM events WHERE event_id = $1", event.event_id)
    pdu = orjson.loads(stored)
    api = RoomApi(town.hub.server.client)
    for _ in range(2):
        await api.invite(PARTICIPANT, view.version.id, event.event_id, pdu, [])
    assert await town.quiet() and len(town.gateway.told) == 1
