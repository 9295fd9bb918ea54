"""The event closest to a moment: among honest clocks, lying ones, hidden events, and across servers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession

from lmserver.rooms.timestamps import Moment, Timestamps
from lmserver.storage.database import Database
from tests.attacks.conftest import arena, config
from tests.evilpeer.arena import Arena
from tests.federation.sites import Person, sites
from tests.kit.postgres import Cluster
from tests.kit.reading_world import CAROL, World
from tests.kit.rooms import ALICE, HUB, PARTICIPANT, ROOM, message

__all__ = ["arena", "config"]

NOBODY: Any = None
START = 1_800_000_000_000


@pytest.fixture
async def world(db: Database) -> AsyncIterator[World]:
    made = World(db)
    yield made
    await made.close()


async def say_at(world: World, *times: int) -> list[str]:
    outcomes = await world.engine.send([replace(message(str(t)), origin_server_ts=t) for t in times])
    return [outcome.event_id for outcome in outcomes]  # type: ignore[union-attr]


async def find(world: World, ts: int, *, forwards: bool, user: str = ALICE) -> Moment | None:
    timestamps = Timestamps(world.db, world.reading, NOBODY, HUB)
    return await timestamps.for_user(await world.access(user), ts, forwards=forwards)


async def test_any_moment_of_a_list_in_order(world: World) -> None:
    await world.create()
    random.seed(7)
    times = sorted(START + random.randrange(100_000) for _ in range(300))
    ids = await say_at(world, *times)
    for ts in [START - 1, *random.sample(times, 15), *(START + n * 9_973 for n in range(11))]:
        later = [(t, i) for t, i in zip(times, ids, strict=True) if t >= ts]
        earlier = [(t, i) for t, i in zip(times, ids, strict=True) if t <= ts]
        found = await find(world, ts, forwards=True)
        assert (None if found is None else found.ts) == (later[0][0] if later else None), ts
        back = await find(world, ts, forwards=False)
        assert back is not None
        assert not earlier or back.ts == earlier[-1][0], ts
    assert await find(world, times[-1] + 1, forwards=True) is None
    assert await find(world, 0, forwards=False) is None
    last = await find(world, 2**53 - 1, forwards=False)
    assert last == Moment(ids[-1], times[-1])


async def test_b25_a_clock_that_lies_leads_nowhere_else(world: World) -> None:
    await world.create()
    times = [START + n * 1000 for n in range(200)]
    for n in range(0, 200, 5):
        await say_at(world, *times[n : n + 5], random.choice([0, 2**53 - 1]))
    for n in (3, 50, 101, 198):
        for forwards in (True, False):
            found = await find(world, times[n], forwards=forwards)
            assert found is not None
            assert found.ts == times[n], (n, forwards)


async def test_c6_what_is_hidden_is_passed_over(world: World) -> None:
    await world.create()
    await world.set_visibility("joined")
    await say_at(world, *(START + n for n in range(100)))
    await world.member("join", CAROL)
    seen = await say_at(world, *(START + 1_000_000 + n for n in range(20)))
    await world.member("leave", CAROL)
    await say_at(world, *(START + 2_000_000 + n for n in range(100)))
    assert await find(world, START, forwards=True, user=CAROL) == Moment(seen[0], START + 1_000_000)
    found = await find(world, START + 3_000_000, forwards=False, user=CAROL)
    assert found is not None
    assert found.ts == START + 1_000_019
    assert await find(world, START + 2_000_000, forwards=True, user=CAROL) is None


async def ask(person: Person, room_id: str, query: str) -> tuple[int, Any]:
    path = f"/_matrix/client/v1/rooms/{quote(room_id)}/timestamp_to_event"
    url = person.site.http.make_url(path).with_query(query)
    who = {"Authorization": f"Bearer {person.token}"}
    async with ClientSession() as session, session.get(url, headers=who) as response:
        return response.status, await response.json()


async def test_history_from_before_a_servers_join_is_the_hubs_to_tell(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice, bob, eve = (
            await hub.user("alice"),
            await participant.user("bob"),
            await participant.user("eve"),
        )
        room_id = await alice.create(preset="public_chat")
        first = await alice.say(room_id, "first", "1")
        await bob.act("join", room_id)
        _, event = await alice.call("GET", f"/rooms/{quote(room_id)}/event/{first}")
        told = {"event_id": first, "origin_server_ts": event["origin_server_ts"]}
        for direction in "fb":
            assert await ask(bob, room_id, f"ts={told['origin_server_ts']}&dir={direction}") == (200, told)
        for who, query, status in ((bob, "ts=0&dir=b", 404), (eve, "ts=0", 403), (bob, "", 400), (bob, "ts=x", 400),
            (bob, "ts=1&dir=x", 400), (bob, "ts=-1", 400), (bob, f"ts={'9' * 30}", 400), (bob, "ts=9999999999999999&dir=b", 200)):  # fmt: skip
            assert (await ask(who, room_id, query))[0] == status, query


async def test_b16_a_server_is_told_of_events_it_may_see(arena: Arena) -> None:
    path = f"/_matrix/federation/v1/timestamp_to_event/{ROOM}"
    status, answer = await arena.ask("GET", f"{path}?ts=0&dir=f")
    assert (status, set(answer)) == (200, {"event_id", "origin_server_ts"})
    for query, expected in (("ts=0&dir=b", 404), ("ts=x&dir=f", 400), ("ts=0", 400), ("dir=f", 400)):
        assert (await arena.ask("GET", f"{path}?{query}"))[0] == expected, query
    other = "/_matrix/federation/v1/timestamp_to_event/!none:hub.test?ts=0&dir=f"
    assert (await arena.ask("GET", other))[0] == 404
