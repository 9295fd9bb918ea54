"""D7: conflicts and lost connections around COMMIT never double an event, lose one, or surface as a defect.
D1: a killed process leaves every acknowledged event stored once, and its retries find them."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
from functools import partial

import asyncpg
import pytest

from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.outcomes import Accepted, ClientTxn
from lmserver.storage import client_transactions, room_log
from lmserver.storage.database import Database, DatabaseUnavailable
from tests.drills.long import rounds
from tests.kit.engines import EngineKit, engine_kit
from tests.kit.rooms import ALICE, HUB, ROOM, message, opening
from tests.kit.waiting import HANGS, eventually

EVENTS = rounds(60, 2_000)
LIVES = rounds(5, 100)


class Faults:
    """Raises at a share of commits: before, so that nothing happened, or after, so that it did."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.before = self.after = 0
        self.on = False

    async def before_commit(self) -> None:
        if self.on and self.pick.random() < 0.15:
            self.before += 1
            raise self.pick.choice([asyncpg.SerializationError, asyncpg.DeadlockDetectedError])("injected")

    async def after_commit(self) -> None:
        if self.on and self.pick.random() < 0.15:
            self.after += 1
            raise ConnectionResetError("injected: the outcome is unknown")


async def persistently(kit: EngineKit, text: str, txn: ClientTxn | None) -> str:
    """A client that repeats until it is answered."""
    for _ in range(30):
        try:
            [outcome] = await kit.engine.send([message(text)], txn)
        except DatabaseUnavailable:
            continue
        assert isinstance(outcome, Accepted)
        return outcome.event_id
    raise AssertionError("never answered")


async def stored(db: Database) -> list[str]:
    return [r.event_id for r in await room_log.events_between(db, ROOM, 3, 10**9, 10**6, newest_first=False)]


@pytest.fixture
async def faults(database_url: str) -> Faults:
    return Faults(7)


async def test_d7_conflicts_and_unknown_outcomes_have_one_effect(
    database_url: str, db: Database, faults: Faults
) -> None:
    faulty = await Database.connect(database_url, max_size=4, faults=faults)
    kit = engine_kit(faulty, HUB)
    await kit.engine.create(LM_02, opening())
    faults.on = True
    answered: list[str] = []
    for start in range(0, EVENTS, 2):  # few at a time, or all of them would share one commit
        answered += await asyncio.gather(
            *(persistently(kit, f"event {n}", ClientTxn(ALICE, "D", str(n))) for n in (start, start + 1))
        )
    faults.on = False
    await faulty.close()
    assert faults.before > 0
    assert faults.after > 0
    assert sorted(answered) == sorted(await stored(db))
    assert len(set(answered)) == EVENTS
    assert await engine_kit(db, HUB).problems(ROOM) == []


async def test_d7_control_without_transaction_ids_events_are_doubled(
    database_url: str, db: Database, faults: Faults
) -> None:
    """What the drill protects from does happen when the retry has nothing to be recognised by."""
    faulty = await Database.connect(database_url, max_size=4, faults=faults)
    kit = engine_kit(faulty, HUB)
    await kit.engine.create(LM_02, opening())
    faults.on = True
    for n in range(40):
        await persistently(kit, f"event {n}", None)
    faults.on = False
    await faulty.close()
    assert len(await stored(db)) > 40


KILLED = """
import asyncio, sys
from lmserver.rooms.outcomes import Accepted, ClientTxn
from lmserver.storage.database import Database
from tests.kit.engines import engine_kit
from tests.kit.rooms import ALICE, HUB, message

async def main(dsn, life):
    name = "&application_name=killed" if "?" in dsn else "?application_name=killed"
    db = await Database.connect(dsn + name, max_size=2)
    kit = engine_kit(db, HUB)
    async def send(n):
        txn = ClientTxn(ALICE, "D", f"{life}-{n}")
        [outcome] = await kit.engine.send([message(f"{life}-{n}")], txn)
        assert isinstance(outcome, Accepted)
        print(f"{life}-{n} {outcome.event_id}", flush=True)
    n = 0
    while True:
        await asyncio.gather(*(send(n + i) for i in range(8)))
        n += 8

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


async def killed_are_gone(db: Database) -> bool:
    """PostgreSQL ends the statement it was given, and may commit it, before it sees that nobody listens."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    return await db.fetchval(query + " AND application_name = 'killed'") == 0


async def test_d1_what_was_acknowledged_before_a_kill_is_stored_once(database_url: str, db: Database) -> None:
    kit = engine_kit(db, HUB)
    await kit.engine.create(LM_02, opening())
    pick = random.Random(3)
    acked: dict[str, str] = {}
    for life in range(LIVES):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED, database_url, str(life), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        first = await asyncio.wait_for(process.stdout.readline(), HANGS)
        await asyncio.sleep(pick.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        rest = await process.stdout.read()
        await process.wait()
        complete = (first + rest).rsplit(b"\n", 1)[0].decode().splitlines()
        acked |= dict(line.split(" ") for line in complete)
    await eventually(partial(killed_are_gone, db))
    found = await stored(db)
    assert len(acked) >= LIVES
    assert set(acked.values()) <= set(found)
    assert len(found) == len(set(found))
    # The clients repeat everything, answered or not: nothing new comes of it.
    known = await client_transactions.known(db, ROOM, [ClientTxn(ALICE, "D", txn) for txn in acked])
    assert {key.txn_id: value.event_id for key, value in known.items()} == acked
    for txn, event_id in acked.items():
        [again] = await kit.engine.send([message("again")], ClientTxn(ALICE, "D", txn))
        assert isinstance(again, Accepted)
        assert again.event_id == event_id
    assert await stored(db) == found
    assert await kit.problems(ROOM) == []


async def test_d1_control_an_early_acknowledgement_is_caught(database_url: str, db: Database) -> None:
    """A server that answers before COMMIT loses what it answered: the comparison above sees it."""
    kit = engine_kit(db, HUB)
    await kit.engine.create(LM_02, opening())
    acked: list[str] = []

    class AnswersEarly(Exception):
        pass

    async def before_commit() -> None:
        acked.append("$answered-before-commit")
        raise AnswersEarly

    faults = type("Early", (), {"before_commit": staticmethod(before_commit)})()
    faulty = await Database.connect(database_url, max_size=2, faults=faults)
    with pytest.raises(AnswersEarly):
        await engine_kit(faulty, HUB).engine.send([message()])
    await faulty.close()
    assert acked
    assert not set(acked) <= set(await stored(db))
    assert json.dumps(acked)
