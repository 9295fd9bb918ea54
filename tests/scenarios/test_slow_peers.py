"""A server under half requests and half handshakes, in its own process: its users notice nothing (R1)."""

from __future__ import annotations

import asyncio
import os
import ssl
import statistics
import time
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from lmserver.server import CONNECTIONS_PER_ADDRESS
from tests.kit.processes import ServerProcess, configure, running
from tests.kit.users import User, register

ATTACKER = ("127.0.0.2", 0)
HALF_REQUEST = (
    b"PUT /_matrix/federation/v2/send/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nAuthorization: "
)
_numbers = count()


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[tuple[ServerProcess, ServerProcess]]:
    made = configure(tmp_path, "hub"), configure(tmp_path, "participant")
    async with running(*made):
        yield made


async def send_time(user: User, room: str) -> float:
    """The seconds until the hub has taken a message of a participant's user."""
    started = time.perf_counter()
    await user.ok("PUT", f"{room}/send/m.room.message/m{next(_numbers)}", {"msgtype": "m.text", "body": "x"})
    return time.perf_counter() - started


async def attack(
    port: int, connections: int, tls: ssl.SSLContext | None, said: bytes
) -> list[asyncio.StreamWriter]:
    """So many connections of another address; those that are refused are left out."""

    async def one() -> asyncio.StreamWriter | None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=ATTACKER)
        except OSError:
            return None
        writer.write(said)
        return writer

    return [
        writer for writer in await asyncio.gather(*(one() for _ in range(connections))) if writer is not None
    ]


def open_files(server: ServerProcess) -> int:
    assert server.process is not None
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


async def test_r1_users_notice_nothing_of_half_requests_to_their_server(
    servers: tuple[ServerProcess, ServerProcess],
) -> None:
    hub, participant = servers
    port = int(hub.name.rpartition(":")[2])
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    async with aiohttp.ClientSession() as http:
        alice, bob = await register(http, hub, "alice"), await register(http, participant, "bob")
        room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
        await bob.ok("POST", f"/join/{quote(room_id)}", {})
        room = f"/rooms/{quote(room_id)}"
        before = statistics.median([await send_time(bob, room) for _ in range(15)])
        files = open_files(hub)
        held = await attack(port, 100, anybody, HALF_REQUEST)
        held += await attack(port, 400, None, b"\x16\x03\x01")
        assert len(held) > 100
        assert open_files(hub) < files + CONNECTIONS_PER_ADDRESS + 50
        meanwhile = statistics.median([await send_time(bob, room) for _ in range(15)])
        assert meanwhile < max(5 * before, 0.5), (before, meanwhile)
        # A server that has no connection yet gets one, and the attacker gets no more.
        other = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
        await bob.ok("POST", f"/join/{quote(other)}", {})
        for writer in held:
            writer.transport.abort()
