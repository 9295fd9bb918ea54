"""D2 and D3 for messages between devices: sender and receiver are killed while they flow, answers are
lost, and the sender forgets which transaction it was sending; each message still arrives once, in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest
import yaml

from tests.drills.long import rounds
from tests.kit.databases import dsn_of, execute
from tests.kit.faultproxy import FaultProxy
from tests.kit.processes import ServerProcess, configure, free_port
from tests.kit.users import User, register
from tests.kit.waiting import HANGS, eventually

# A receiver that forgets what it took as soon as it has taken it.
FORGETFUL = """
CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql
AS 'BEGIN DELETE FROM to_device_received; RETURN NULL; END';
CREATE TRIGGER forget AFTER INSERT ON to_device_received FOR EACH STATEMENT EXECUTE FUNCTION forget()
"""


class Pair:
    """Two servers over plain HTTP; the second is reached through a proxy."""

    def __init__(self, folder: Path) -> None:
        self.sender, self.receiver = configure(folder, "sender"), configure(folder, "receiver")
        port = free_port()
        _change(self.sender, [self.receiver.name])
        _change(self.receiver, [self.sender.name], port)
        self.proxy = FaultProxy(port, int(self.receiver.name.rpartition(":")[2]))

    async def start(self) -> None:
        await asyncio.gather(self.sender.start(), self.receiver.start(), self.proxy.start())

    async def stop(self) -> None:
        self.sender.stop()
        self.receiver.stop()
        await self.proxy.stop()

    async def restart(self, server: ServerProcess) -> None:
        server.kill()
        await server.start()


def _change(server: ServerProcess, peers: list[str], port: int | None = None) -> None:
    config = yaml.safe_load(server.config.read_text(encoding="utf-8"))
    config["federation"].update(
        tls_certificate=None, tls_private_key=None, ca_file=None, plain_http_servers=peers
    )
    if port is not None:
        config["federation"]["port"] = port
    server.config.write_text(yaml.safe_dump(config), encoding="utf-8")


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    made = Pair(tmp_path)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def say(alice: User, bob: User, numbers: range) -> None:
    """One request after another, each repeated under its transaction ID until it is answered."""
    for number in numbers:
        body = {"messages": {bob.user_id: {"*": {"n": number}}}}
        while True:
            try:
                if (await alice.call("PUT", f"/sendToDevice/m.x/t{number}", body))[0] == 200:
                    break
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(0.05)


async def heard(bob: User, last: int) -> list[int]:
    """What Bob's client gets, syncing until the last one has come and acknowledging as it goes."""
    numbers: list[int] = []
    since = ""
    deadline = asyncio.get_running_loop().time() + 4 * HANGS
    while last not in numbers:
        assert asyncio.get_running_loop().time() < deadline, numbers
        answer = await bob.ok("GET", f"/sync?timeout=1000{since}")
        since = f"&since={answer['next_batch']}"
        numbers += [event["content"]["n"] for event in answer["to_device"]["events"]]
    return numbers


async def rows(server: ServerProcess, table: str) -> int:
    db = await asyncpg.connect(dsn_of(server))
    try:
        found: int = await db.fetchval(f"SELECT count(*) FROM {table}")
        return found
    finally:
        await db.close()


async def torment(pair: Pair, alice: User, bob: User, first: int) -> int:
    """One round; the number after the last message said."""
    talking = asyncio.create_task(say(alice, bob, range(first, first + 30)))
    await pair.restart(pair.sender)
    await pair.restart(pair.receiver)
    await talking
    # The sender waits longer after each failure in a row: all is well again before the next fault.
    await eventually(lambda: _all_taken(pair), 4 * HANGS)
    before, cuts = await rows(pair.receiver, "to_device_messages"), pair.proxy.cuts
    pair.proxy.faults.cut_answer_after = 0
    await say(alice, bob, range(first + 30, first + 40))
    await eventually(lambda: _more(pair, before, cuts))
    # The receiver has some of them; the sender does not know and no longer knows what it was sending.
    dsn = dsn_of(pair.sender)
    pair.sender.kill()
    await execute(dsn, "DELETE FROM outbound_transactions")
    pair.proxy.faults.cut_answer_after = None
    await pair.sender.start()
    return first + 40


async def _more(pair: Pair, before: int, cuts: int) -> bool:
    return pair.proxy.cuts > cuts and await rows(pair.receiver, "to_device_messages") > before


async def _all_taken(pair: Pair) -> bool:
    return await rows(pair.sender, "outbound_edus") == 0


async def play(pair: Pair, http: aiohttp.ClientSession) -> tuple[list[int], int]:
    alice, bob = await register(http, pair.sender, "alice"), await register(http, pair.receiver, "bob")
    said = 0
    for _ in range(rounds(1, 5)):
        said = await torment(pair, alice, bob, said)
    await say(alice, bob, range(said, said + 1))
    return await heard(bob, said), said


async def test_d2_d3_a_message_arrives_once_and_in_order_whatever_dies(
    pair: Pair, http: aiohttp.ClientSession
) -> None:
    numbers, last = await play(pair, http)
    assert numbers == list(range(last + 1))


async def test_d2_d3_control_a_receiver_that_forgets_is_noticed(
    pair: Pair, http: aiohttp.ClientSession
) -> None:
    await execute(dsn_of(pair.receiver), FORGETFUL)
    numbers, last = await play(pair, http)
    assert numbers != list(range(last + 1))
    assert set(numbers) == set(range(last + 1)), "it loses nothing either"
