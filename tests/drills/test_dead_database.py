"""D4 with real processes: the embedded PostgreSQL of a running server is killed, and comes back by itself."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from tests.drills.long import rounds
from tests.kit.databases import data_dir
from tests.kit.processes import ServerProcess, configure, lmserver
from tests.kit.users import User, register
from tests.kit.waiting import HANGS


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def postmaster(server: ServerProcess) -> int:
    return int((data_dir(server) / "postgres/postmaster.pid").read_text().splitlines()[0])


async def until_sent(user: User, room: str, txn: str) -> None:
    """Repeat one message until it is acknowledged."""
    async with asyncio.timeout(HANGS):
        while True:
            path = f"{room}/send/m.room.message/{txn}"
            status, _ = await user.call("PUT", path, {"msgtype": "m.text", "body": txn})
            if status == 200:
                return
            assert status == 503
            await asyncio.sleep(0.05)


async def test_d4_a_killed_embedded_database_is_started_again(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    server = configure(tmp_path, "hub")
    try:
        await server.start()
        alice = await register(http, server, "alice")
        room = f"/rooms/{quote((await alice.ok('POST', '/createRoom', {}))['room_id'])}"
        for number in range(rounds(1, 10)):
            await until_sent(alice, room, f"before{number}")
            pid = postmaster(server)
            os.kill(pid, signal.SIGKILL if number % 2 == 0 else signal.SIGQUIT)
            await until_sent(alice, room, f"after{number}")
            assert postmaster(server) != pid
        events = await alice.history(room)
        assert len(events) == len(set(events))
    finally:
        server.stop()
    assert not (data_dir(server) / "postgres/postmaster.pid").exists()
    verified = lmserver("verify", "--config", str(server.config))
    assert verified.returncode == 0, verified.stdout
