"""D13: a process is paused (SIGSTOP) while it holds a room, or a destination. Another process on the same
database goes on; what the first does when it wakes changes nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.outcomes import Accepted
from lmserver.storage import room_log
from lmserver.storage.database import Database, DatabaseUnavailable
from tests.drills.sending import Peer, in_order_once, taken
from tests.evilpeer.network import Network
from tests.kit.clock import SECOND, Clock
from tests.kit.engines import engine_kit
from tests.kit.federation import Node
from tests.kit.rooms import BOB, HUB, PARTICIPANT, ROOM, lpdu, member, message, opening
from tests.kit.waiting import HANGS

HOLDS_A_ROOM = """
import asyncio, sys
from lmserver.storage import database
from lmserver.storage.database import Database, DatabaseUnavailable
from tests.kit.engines import engine_kit
from tests.kit.rooms import HUB, draft

class Slow:
    commits = 0
    async def before_commit(self):
        self.commits += 1
        if self.commits < 2:  # the room's state is read first
            return
        print("holding", flush=True)
        await asyncio.to_thread(sys.stdin.readline)  # the time in which it is stopped
    async def after_commit(self):
        pass

# A message would be one statement, which holds nothing while its process is paused.
topic = draft("m.room.topic", {"topic": "of the paused process"}, state_key="")

async def main(dsn, limit):
    database._SESSION["idle_in_transaction_session_timeout"] = limit
    db = await Database.connect(dsn, max_size=2, faults=Slow())
    try:
        [outcome] = await engine_kit(db, HUB).engine.send([topic])
        print(outcome.event_id, flush=True)
    except DatabaseUnavailable:
        print("unavailable", flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


async def started(script: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), HANGS)).decode().strip()


@pytest.mark.parametrize("limit", ["1s", "0"], ids=["d13", "control"])
async def test_d13_a_paused_process_loses_the_room_it_holds(
    database_url: str, db: Database, limit: str
) -> None:
    """The control has no limit for a transaction that does nothing: the others wait for ever."""
    kit = engine_kit(db, HUB)
    await kit.engine.create(LM_02, opening())
    process = await started(HOLDS_A_ROOM, database_url, limit)
    try:
        assert await line(process) == "holding"
        process.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(4 if limit == "0" else HANGS):
                [outcome] = await kit.engine.send([message("of another process")])
            assert isinstance(outcome, Accepted)
            assert limit != "0"
        except (TimeoutError, DatabaseUnavailable):
            assert limit == "0"
        process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.write(b"go on\n")
        last = await line(process)
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await kit.engine.close()
    events = await room_log.events_between(db, ROOM, -1, 10**9, 100, newest_first=False)
    assert (last in [event.event_id for event in events]) is (limit == "0")
    assert await kit.problems(ROOM) == []


HOLDS_A_DESTINATION = """
import asyncio, json, sys
from pathlib import Path
from tests.evilpeer.network import Network
from tests.kit.federation import Node
from tests.kit.rooms import HUB, ROOM, message

async def main(dsn, ports, folder):
    network = Network()
    network.ports.update(json.loads(ports))
    node = Node(HUB, dsn, network, Path(folder), port=8001)
    await node.start()
    print(await node.send(message("of the paused process")), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await node.stop()

asyncio.run(main(*sys.argv[1:4]))
"""


class Gate(Peer):
    """Holds the first transaction back until told, and notes how many are there at once."""

    def __init__(self, network: Network, name: str) -> None:
        super().__init__(network, name)
        self.came, self.go = asyncio.Event(), asyncio.Event()

    async def first(self) -> web.StreamResponse:
        self.came.set()
        await self.go.wait()
        return await taken()


@pytest.mark.parametrize("fenced", [True, False], ids=["d13", "control"])
async def test_d13_a_paused_process_loses_the_destination_it_sends_to(
    database_url: str, db: Database, tmp_path: Path, fenced: bool
) -> None:
    """The control gives the paused process its old fence back, as if there were none: it sends on,
    beside the process that took over."""
    network = Network()
    peer = Gate(network, PARTICIPANT)
    await peer.start()
    other = Node(HUB, database_url, network, tmp_path / "other", port=8002)
    clock = other.clock = Clock()
    kit = engine_kit(db, HUB)
    await kit.engine.create(LM_02, opening())
    await kit.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    await kit.engine.close()
    await db.execute("UPDATE outbound_ranges SET acked_position = (SELECT head_position FROM rooms)")
    peer.plan = [peer.first]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDS_A_DESTINATION, database_url, json.dumps(network.ports),
        str(tmp_path / "paused"), stdout=subprocess.PIPE, stdin=subprocess.PIPE,
    )  # fmt: skip
    try:
        sent = [await line(process)]
        await asyncio.wait_for(peer.came.wait(), HANGS)
        process.send_signal(signal.SIGSTOP)
        fence = await db.fetchval("SELECT lease_fence FROM destinations WHERE destination = $1", PARTICIPANT)
        # The lease has run out by the clock of the other process, which finds the work by itself.
        clock.offset = 31 * SECOND
        await other.start()
        sent += [await other.send(message(str(n))) for n in range(20)]
        await _taken(peer, sent)
        assert peer.transactions[0] == peer.transactions[1], "not the stored transaction again"
        before = await _acked(db)
        await other.stop()
        sent.append(await _append(db))
        await _fence(db, fence if not fenced else fence + 1000, clock() + 60 * SECOND)
        count = len(peer.transactions)
        peer.go.set()
        process.send_signal(signal.SIGCONT)
        if fenced:
            while "destination_lease_lost" not in await line(process):
                pass
            assert len(peer.transactions) == count
            assert await _acked(db) == before
            await db.execute("UPDATE destinations SET lease_until = 0")
        else:
            async with asyncio.timeout(HANGS):
                while len(peer.transactions) == count or await _acked(db) == before:
                    await asyncio.sleep(0.02)
        await _taken(peer, sent)
        assert in_order_once(peer.events(), sent)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            await process.wait()
        await other.stop()
        await peer.stop()


async def _fence(db: Database, fence: int, until: int) -> None:
    """Somebody has the lease; the paused process's fence is the newest one only in the control."""
    await db.execute(
        "UPDATE destinations SET lease_fence = $2, lease_owner = 'x', lease_until = $3 WHERE destination = $1",
        PARTICIPANT, fence, until,
    )  # fmt: skip


async def _taken(peer: Peer, events: list[str]) -> None:
    async with asyncio.timeout(HANGS):
        while not set(events) <= set(peer.events()):
            await asyncio.sleep(0.02)


async def _acked(db: Database) -> int:
    acked: int = await db.fetchval(
        "SELECT acked_position FROM outbound_ranges WHERE destination = $1", PARTICIPANT
    )
    return acked


async def _append(db: Database) -> str:
    """By a third process, which does not send."""
    kit = engine_kit(db, HUB)
    [outcome] = await kit.engine.send([message("of a third")])
    await kit.engine.close()
    assert isinstance(outcome, Accepted)
    return outcome.event_id
