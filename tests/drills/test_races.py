"""D12: several processes append to one room at once, and the list is one chain with every ack in it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

from lmserver.protocol.room_versions import LM_02
from lmserver.storage import room_log
from lmserver.storage.database import Database
from tests.drills.long import rounds
from tests.kit.engines import engine_kit
from tests.kit.rooms import ALICE, HUB, ROOM, opening

PROCESSES = 4
EVENTS = rounds(40, 1_000)

WORKER = f"""
import asyncio, json, sys
from lmserver.rooms.outcomes import Accepted, ClientTxn
from lmserver.storage.database import Database
from tests.kit.engines import engine_kit
from tests.kit.rooms import ALICE, HUB, message

async def main(dsn, number):
    db = await Database.connect(dsn, max_size=2)
    kit = engine_kit(db, HUB)
    async def send(n):
        txn = ClientTxn(ALICE, f"D{{number}}", str(n))
        [outcome] = await kit.engine.send([message(f"{{number}}/{{n}}")], txn)
        assert isinstance(outcome, Accepted), outcome
        print(json.dumps([txn.device_id, txn.txn_id, outcome.event_id]), flush=True)
    for start in range(0, {EVENTS}, 4):
        await asyncio.gather(*(send(n) for n in range(start, start + 4)))
    await db.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_d12_processes_racing_on_one_room_make_one_chain(database_url: str, db: Database) -> None:
    kit = engine_kit(db, HUB)
    await kit.engine.create(LM_02, opening())
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, database_url, str(n), stdout=subprocess.PIPE
        )
        for n in range(PROCESSES)
    ]
    outputs = [(await worker.communicate())[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * PROCESSES
    acked = [json.loads(line) for output in outputs for line in output.splitlines()]
    assert len(acked) == PROCESSES * EVENTS
    rows = await room_log.events_between(db, ROOM, 3, 10**9, 10**6, newest_first=False)
    assert sorted(event_id for _, _, event_id in acked) == sorted(row.event_id for row in rows)
    assert [row.position for row in rows] == list(range(4, 4 + len(rows)))
    assert await kit.problems(ROOM) == []
    assert ALICE


async def test_d12_control_a_lost_row_and_a_fork_are_noticed(db: Database) -> None:
    """The check above can fail: take an event away, or bend a link, and verify names it."""
    kit = engine_kit(db, HUB)
    await kit.engine.create(LM_02, opening())
    from tests.kit.rooms import message

    await kit.engine.send([message(str(n)) for n in range(5)])
    await db.execute("UPDATE events SET prev_event_id = '$bent' WHERE room_id = $1 AND position = 6", ROOM)
    assert any("position 6" in problem for problem in await kit.problems(ROOM))
    await db.execute("DELETE FROM events WHERE room_id = $1 AND position = 7", ROOM)
    assert any("position 8" in problem for problem in await kit.problems(ROOM))
