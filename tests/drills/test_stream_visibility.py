"""L1: a reader of the stream misses nothing under concurrent writers; a reader of a bare sequence does."""

from __future__ import annotations

import asyncio
import random

from lmserver.storage import stream
from lmserver.storage.database import Connection, Database
from tests.drills.long import rounds

WRITERS = 6
ROWS = rounds(80, 1_000)


async def write(db: Database, writer: int, finished: list[int]) -> None:
    """Transactions that draw their number early and commit some milliseconds later."""
    pick = random.Random(writer)
    for _ in range(ROWS):

        async def insert(connection: Connection) -> int:
            number: int = await connection.fetchval("INSERT INTO drill_stream DEFAULT VALUES RETURNING id")
            await asyncio.sleep(pick.uniform(0, 0.01))
            return number

        finished.append(await db.run(insert))


async def read_settled(db: Database, seen: set[int], stop: asyncio.Event) -> None:
    position = 0
    while True:
        last = stop.is_set()
        upto = await stream.settled(db)
        rows = await db.fetch(
            "SELECT id FROM drill_stream WHERE xid >= $1::text::xid8 AND xid < $2::text::xid8",
            str(position),
            str(upto),
        )
        seen |= {row["id"] for row in rows}
        position = upto
        if last:
            return
        await asyncio.sleep(0.001)


async def read_sequence(db: Database, seen: set[int], stop: asyncio.Event) -> None:
    """The control: follow the highest number seen."""
    position = 0
    while True:
        last = stop.is_set()
        rows = await db.fetch("SELECT id FROM drill_stream WHERE id > $1 ORDER BY id", position)
        seen |= {row["id"] for row in rows}
        position = max([position, *(row["id"] for row in rows)])
        if last:
            return
        await asyncio.sleep(0.001)


async def test_l1_the_stream_shows_every_row_and_a_bare_sequence_does_not(database_url: str) -> None:
    db = await Database.connect(database_url, max_size=WRITERS + 2)
    await db.execute(
        "CREATE TABLE drill_stream (id bigserial PRIMARY KEY, xid xid8 NOT NULL DEFAULT pg_current_xact_id())"
    )
    finished: list[int] = []
    settled: set[int] = set()
    naive: set[int] = set()
    stop = asyncio.Event()
    readers = [
        asyncio.create_task(read_settled(db, settled, stop)),
        asyncio.create_task(read_sequence(db, naive, stop)),
    ]
    await asyncio.gather(*(write(db, n, finished) for n in range(WRITERS)))
    stop.set()
    await asyncio.gather(*readers)
    await db.close()
    assert len(finished) == WRITERS * ROWS
    assert settled == set(finished)
    assert naive < set(finished), "the control read everything: the drill proves nothing"
