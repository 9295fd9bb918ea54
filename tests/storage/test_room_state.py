"""State entries: what it costs to set them."""

from __future__ import annotations

import time

import asyncpg

from lmserver.storage import room_state
from lmserver.storage.room_state import NewState
from tests.kit.rooms import ROOM

BATCH = 1_000
BATCHES = 12
WARM = 8
"""Executions after which PostgreSQL keeps the plan it has."""


async def test_setting_state_costs_what_is_set_and_not_what_is_there(database_url: str) -> None:
    """R14: a plan kept from when the table was small must not be one that compares all with all."""
    connection = await asyncpg.connect(database_url)

    async def set_(*numbers: int) -> float:
        entries = [NewState("m.test", str(n), f"${n}", None, n) for n in numbers]
        started = time.perf_counter()
        async with connection.transaction():
            await room_state.set_state(connection, ROOM, entries)
        return time.perf_counter() - started

    for n in range(WARM):
        await set_(-n - 1)
    first = await set_(*range(BATCH))
    later = [await set_(*range(start, start + BATCH)) for start in range(BATCH, BATCH * BATCHES, BATCH)]
    assert min(later[-3:]) < 5 * first, (first, later)
    current = await connection.fetchval("SELECT count(*) FROM room_state WHERE to_position IS NULL")
    assert current == WARM + BATCH * BATCHES
    await connection.close()


async def test_an_entry_ends_where_the_next_begins(database_url: str) -> None:
    """In an earlier batch or in the same."""
    connection = await asyncpg.connect(database_url)
    await room_state.set_state(connection, ROOM, [NewState("m.test", "", "$1", None, 1)])
    await room_state.set_state(
        connection,
        ROOM,
        [NewState("m.test", "", "$2", None, 5, 7), NewState("m.test", "", "$3", None, 7)],
    )
    lives = [
        (e.event_id, e.from_position, e.to_position) for e in await room_state.all_entries(connection, ROOM)
    ]
    assert lives == [("$1", 1, 5), ("$2", 5, 7), ("$3", 7, None)]
    await connection.close()


async def test_a_piece_of_the_state_costs_its_entries_and_not_all_events(database_url: str) -> None:
    """R14, also in a room that was not there when PostgreSQL last counted."""
    connection = await asyncpg.connect(database_url)

    async def fill(room_id: str, count: int) -> None:
        await connection.execute(
            "INSERT INTO events (event_id, room_id, position, type, sender, pdu, received_ts)"
            " SELECT '$' || md5(n::text) || $1 || n, $1, n, 'm.test', '@a:b', '{}', 0"
            " FROM generate_series(1, $2::int) AS n",
            room_id,
            count,
        )
        rows = await connection.fetch("SELECT event_id, position FROM events WHERE room_id = $1", room_id)
        entries = [NewState("m.test", f"{at:05}", event_id, None, at) for event_id, at in rows]
        await room_state.set_state(connection, room_id, entries)

    await fill("!other:hub.test", 1_000)
    await connection.execute("ANALYZE")
    await fill(ROOM, 2_000)
    fetched = "SELECT idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'events'"
    async with connection.transaction():
        before = await connection.fetchval(fetched)
        piece = await room_state.current_after(connection, ROOM, ("m.test", "00100"), 500)
        read = await connection.fetchval(fetched) - before
    assert [event.position for event in piece] == list(range(101, 601))
    assert read <= 2 * len(piece)
    await connection.close()
