"""Rooms with more state than anybody needs (R14), and a room whose row somebody does not let go of (R8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from lmserver.federation_server import event_lists
from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.outcomes import Accepted
from lmserver.storage import database, room_log, room_state
from lmserver.storage.database import Database, DatabaseUnavailable
from lmserver.storage.room_log import StoredEvent
from tests.attacks.test_fairness import fastest, median
from tests.drills.long import rounds
from tests.evilpeer.arena import Arena
from tests.evilpeer.peer import UNSTABLE
from tests.kit.rooms import HUB, PARTICIPANT, ROOM, draft, lpdu, member, message, opening
from tests.kit.waiting import HANGS, eventually

ENTRIES = rounds(2_000, 100_000)
BATCH = 250
WAITING = 1000
OTHER = f"!other:{HUB}"


async def test_r14_state_that_grows_costs_a_message_nothing(arena: Arena) -> None:
    async def say() -> None:
        await arena.engine.send([message("m")])

    async def set_() -> None:
        await arena.engine.send([draft("m.test", {"n": 0}, state_key="0")])

    few = await fastest(say), await fastest(set_)
    for start in range(0, ENTRIES, BATCH):
        await arena.engine.send(
            [draft("m.test", {"n": n}, state_key=str(n)) for n in range(start, start + BATCH)]
        )
    view = await arena.engine.view(ROOM)
    assert view is not None and len(view.state) >= ENTRIES
    many = await fastest(say), await fastest(set_)
    assert all(after < 5 * before for before, after in zip(few, many, strict=True)), (few, many)
    path = f"{UNSTABLE}/state/{ROOM}?event_id={view.head_event_id}"
    status, answer = await arena.ask("GET", path)
    assert status == 200 and len(answer["pdus"]) >= ENTRIES
    joining = lpdu(member("join", sender=f"@joe:{PARTICIPANT}"))
    path = f"{UNSTABLE}/send_join/joe"
    status, answer = await arena.ask("POST", path, joining.fields, origin=PARTICIPANT)
    assert status == 200 and len(answer["state"]) >= ENTRIES
    assert await arena.problems() == []


@pytest.mark.parametrize("piece", [1, 3, 1000])
async def test_r14_state_is_sent_in_pieces_of_which_nothing_is_lost(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(event_lists, "PIECE", piece)
    for key in ("a", "b", "a", "c"):
        await arena.engine.send([draft("m.test", {}, state_key=key)])
    view = await arena.engine.view(ROOM)
    assert view is not None
    head = await room_log.event(arena.db, view.head_event_id, ROOM)
    assert head is not None and head.position is not None
    known = [e.event_id for e in await room_state.state_at(arena.db, ROOM, head.position)]
    found = [
        e for some in [p async for p in event_lists.state_pieces(arena.db, ROOM, head.position)] for e in some
    ]
    assert [e.event_id for e in found] == known
    query = f"/{ROOM}?event_id={view.head_event_id}"
    _, ids = await arena.ask("GET", f"{UNSTABLE}/state_ids{query}")
    _, whole = await arena.ask("GET", f"{UNSTABLE}/state{query}")
    assert ids["pdu_ids"] == known and len(whole["pdus"]) == len(known)
    cited = {c for pdu in [*whole["pdus"], *whole["auth_chain"]] for c in pdu["auth_events"]}
    assert set(ids["auth_chain_ids"]) == cited and len(whole["auth_chain"]) == len(cited)


async def test_r14_a_state_is_made_in_pieces_of_a_bounded_size(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits while a large answer is made, and the server does not hold it as a whole."""
    monkeypatch.setattr(event_lists, "PIECE", 4)
    for key in range(30):
        await arena.engine.send([draft("m.test", {"n": "x" * 1000}, state_key=str(key))])
    view = await arena.engine.view(ROOM)
    assert view is not None

    def show(event: StoredEvent) -> bytes:
        return event.pdu

    answer = event_lists.state_answer(arena.db, ROOM, view.head_position, b"{", "pdus", show, show)
    blocks = [block async for block in answer.body]
    assert len(blocks) > 7 and max(map(len, blocks)) < 4 * 2000


@pytest.fixture
async def impatient(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Arena]:
    """An arena whose database waits half a second for a lock."""
    monkeypatch.setitem(database._SESSION, "lock_timeout", "500ms")
    db = await Database.connect(database_url, max_size=5)
    async with Arena(db, tmp_path) as made:
        await made.engine.create(LM_02, opening(room_id=OTHER))
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
    assert other < max(20 * usual, 0.25), (other, usual)
    async with asyncio.timeout(HANGS):
        results = await waiting
    assert {type(result) for result in results} == {DatabaseUnavailable}
    await holding.execute("ROLLBACK")
    await holding.close()
    [outcome] = await impatient.engine.send([message("again")])
    assert isinstance(outcome, Accepted)
    assert await impatient.problems() == []


async def test_r8_a_lock_that_is_let_go_lets_everybody_through_once(arena: Arena, database_url: str) -> None:
    holding = await hold_row(database_url)
    before = await arena.engine.view(ROOM)
    waiting = asyncio.gather(*(arena.engine.send([message(f"m{n}")]) for n in range(WAITING)))
    await eventually(lambda: holding.fetchval("SELECT true FROM pg_locks WHERE NOT granted"))
    await holding.execute("ROLLBACK")
    await holding.close()
    async with asyncio.timeout(HANGS):
        await waiting
    after = await arena.engine.view(ROOM)
    assert before is not None and after is not None
    assert after.head_position == before.head_position + WAITING
    status, _ = await arena.send("honest", [])
    assert status == 200
