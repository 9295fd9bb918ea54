"""D15 with real processes: the files of a hub's embedded cluster are replaced by older ones."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from tests.drills.long import rounds
from tests.kit.databases import data_dir
from tests.kit.processes import ServerProcess, configure, lmserver
from tests.kit.users import User, register
from tests.kit.waiting import HANGS, eventually


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_d15_the_files_of_an_embedded_database_are_put_back(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    servers = [configure(tmp_path, label) for label in ("hub", "one", "two")[: rounds(2, 3)]]
    hub_ = servers[0]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        users = [await register(http, server, "user") for server in servers]
        room_id = (await users[0].ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
        room = f"/rooms/{quote(room_id)}"
        for user in users[1:]:
            await user.ok("POST", f"/join/{quote(room_id)}", {})
        for number in range(rounds(1, 3)):
            hub_.stop()
            cluster, backup = data_dir(hub_) / "postgres", tmp_path / f"backup{number}"
            shutil.copytree(cluster, backup)
            await hub_.start()
            for n in range(6):
                path = f"{room}/send/m.room.message/{number}-{n}"
                last = await users[n % len(users)].ok("PUT", path, {"msgtype": "m.text", "body": str(n)})
            chain = await users[0].history(room)
            assert chain[-1] == last["event_id"]
            for user in users[1:]:
                await eventually(partial(_has, user, room, last["event_id"]))
            hub_.stop()
            shutil.rmtree(cluster)
            shutil.copytree(backup, cluster)
            await hub_.start()
            await eventually(lambda: _released(hub_), 4 * HANGS)
            assert await users[0].history(room) == chain
            await users[0].ok(
                "PUT", f"{room}/send/m.room.message/on{number}", {"msgtype": "m.text", "body": "on"}
            )
    finally:
        for server in servers:
            server.stop()
    for server in servers:
        verified = lmserver("verify", "--config", str(server.config))
        assert verified.returncode == 0, verified.stdout


async def _has(user: User, room: str, event_id: str) -> bool:
    return event_id in await user.history(room)


async def _released(server: ServerProcess) -> bool:
    held = await asyncio.to_thread(lmserver, "held-rooms", "--config", str(server.config))
    return held.returncode == 0
