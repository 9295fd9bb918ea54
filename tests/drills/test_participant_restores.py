"""D16: a participant restored from an older backup has the hub's list again with the next event, nothing
twice; its clients begin anew, and its one-time keys of then are gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.drills.long import rounds
from tests.drills.restorable import World
from tests.kit.federation import Node
from tests.kit.postgres import Cluster
from tests.kit.rooms import BOB, HUB, ROOM, message


@pytest.fixture
async def world(cluster: Cluster, tmp_path: Path) -> AsyncIterator[World]:
    async with World(cluster, tmp_path) as made:
        yield made


async def synced(node: Node, token: str, since: str = "") -> dict[str, Any]:
    """What a client of the node is told; its listener lives for this one request."""
    async with TestClient(TestServer(node.server.client_app)) as http:
        answer = await http.get(
            "/_matrix/client/v3/sync",
            params={"since": since},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.status == 200, await answer.text()
        body: dict[str, Any] = await answer.json()
        return body


async def login(node: Node) -> str:
    async with TestClient(TestServer(node.server.client_app)) as http:
        answer = await http.post(
            "/_matrix/client/v3/login",
            json={
                "type": "m.login.password",
                "identifier": {"type": "m.id.user", "user": BOB},
                "password": "a long password",
            },
        )
        return str((await answer.json())["access_token"])


def shown(answer: dict[str, Any]) -> list[str]:
    return [event["event_id"] for event in answer["rooms"]["join"][ROOM]["timeline"]["events"]]


async def test_d16_a_restored_participant_is_filled_from_its_hub(world: World) -> None:
    hub, one, _ = world.nodes
    await one.join("bob", ROOM, HUB)
    token = await login(one)
    await one.db.execute(
        "INSERT INTO one_time_keys (user_id, device_id, key_id, algorithm, key)"
        " VALUES ($1, 'D', 'signed_curve25519:A', 'signed_curve25519', '{}')", BOB,
    )  # fmt: skip
    backup = await world.back_up(one)
    lost = [await hub.send(message(str(number))) for number in range(rounds(5, 2_000))]
    lost.append(await one.send(message("of the participant", sender=BOB)))
    await one.has(ROOM, lost[-1])
    before = await one.chain(ROOM)
    since = (await synced(one, token))["next_batch"]
    await world.restore(one, backup)
    assert one.restored is not None
    assert await one.db.fetchval("SELECT count(*) FROM one_time_keys") == 0
    new = await hub.send(message("next"))
    await one.has(ROOM, new)
    assert await one.chain(ROOM) == [*before, new]
    assert await one.problems(ROOM) == []
    answer = await synced(one, token, since)
    assert shown(answer)[-3:] == [*before, new][-3:]
    assert len(set(shown(answer))) == len(shown(answer))
    assert await one.send(message("goes on", sender=BOB)) in await hub.chain(ROOM)


async def test_d16_tokens_of_before_a_restore_begin_anew(world: World) -> None:
    """A position of the lost database would hide what the restored one has below it. The control is
    the same position given out after the restore."""
    one = world.nodes[1]
    await one.join("bob", ROOM, HUB)
    token = await login(one)
    backup = await world.back_up(one)
    await world.restore(one, backup)
    since = (await synced(one, token))["next_batch"]
    stream, typing, epoch = since.split("_")
    assert int(epoch) > 0
    anew = await synced(one, token, f"{stream}_{typing}")
    assert anew["rooms"]["join"][ROOM]["timeline"]["events"] != []
    assert (await synced(one, token, since))["rooms"] == {}
