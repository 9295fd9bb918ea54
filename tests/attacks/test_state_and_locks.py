"""Rooms with more state than anybody needs (R14), and a room whose row somebody does not let go of (R8).

LMSERVER_STATE says how many entries the room gets.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from lmserver.storage import database
from lmserver.storage.database import Database, DatabaseUnavailable
from tests.attacks.test_fairness import median, seconds
from tests.evilpeer.arena import Arena
from tests.evilpeer.peer import UNSTABLE
from tests.kit.rooms import HUB, ROOM, draft, message, opening

ENTRIES = int(os.environ.get("LMSERVER_STATE", "2000"))
BATCH = 250
WAITING = 1000
OTHER = f"!other:{HUB}"


async def test_r14_state_that_grows_costs_a_message_nothing(arena: Arena) -> None:
    async def say() -> None:
        await arena.engine.send([message("m")])

    async def set_() -> None:
        await arena.engine.send([draft("m.test", {"n": 0}, state_key="0")])

    few = await median(say), await median(set_)
    for start in range(0, ENTRIES, BATCH):
        await arena.engine.send(
            [draft("m.test", {"n": n}, state_key=str(n)) for n in range(start, start + BATCH)]
        )
    view = await arena.engine.view(ROOM)
    assert view is not None and len(view.state) >= ENTRIES
    many = await median(say), await median(set_)
    assert all(after < 5 * before for before, after in zip(few, many, strict=True)), (few, many)
    path = f"{UNSTABLE}/state/{ROOM}?event_id={view.head_event_id}"
    status, answer = await arena.ask("GET", path)
    assert status == 200 and len(answer["pdus"]) >= ENTRIES
    assert await arena.problems() == []


@pytest.fixture
async def impatient(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Arena]:
    """An arena whose database waits half a second for a lock."""
    monkeypatch.setitem(database._SESSION, "lock_timeout", "500ms")
    db = await Database.connect(database_url, max_size=5)
    async with Arena(db, tmp_path) as made:
        await made.engine.create((await made.engine.view(ROOM)).version, opening(room_id=OTHER))  # type: ignore[union-attr]
        yield made
    await db.close()


async def hold_row(database_url: str) -> asyncpg.Connection:
    """Another process that has the room's row and does not go on."""
    holding = await asyncpg.connect(database_url)
    await holding.execute("BEGIN")
    await holding.execute("SELECT 1 FROM rooms WHERE room_id = $1 FOR UPDATE", ROOM)
    return holding


async def test_r8_who_waits_for_a_stuck_room_waits_a_bounded_time(
    impatient: Arena, database_url: str
) -> None:
    """All get an error that says to come back, no other room waits, and afterwards nothing is different."""
    usual = await median(lambda: impatient.engine.send([message("x", room_id=OTHER)]))
    holding = await hold_row(database_url)
    waiting = asyncio.gather(
        *(impatient.engine.send([message(f"m{n}")]) for n in range(WAITING)), return_exceptions=True
    )
    other = await median(lambda: impatient.engine.send([message("x", room_id=OTHER)]))
    assert other < 20 * usual, (other, usual)
    async with asyncio.timeout(20):
        results = await waiting
    assert {type(result) for result in results} == {DatabaseUnavailable}
    await holding.execute("ROLLBACK")
    await holding.close()
    assert await seconds(lambda: impatient.engine.send([message("again")])) < 1
    assert await impatient.problems() == []


async def test_r8_a_lock_that_is_let_go_lets_everybody_through_once(
    impatient: Arena, database_url: str
) -> None:
    holding = await hold_row(database_url)
    before = await impatient.engine.view(ROOM)
    waiting = asyncio.gather(*(impatient.engine.send([message(f"m{n}")]) for n in range(WAITING)))
    await asyncio.sleep(0.1)
    await holding.execute("ROLLBACK")
    await holding.close()
    async with asyncio.timeout(20):
        await waiting
    after = await impatient.engine.view(ROOM)
    assert before is not None and after is not None
    assert after.head_position == before.head_position + WAITING
    status, _ = await impatient.send("honest", [])
    assert status == 200
