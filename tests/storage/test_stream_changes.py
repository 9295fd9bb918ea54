"""Reading the stream: every streamed table is read, and nothing that is not settled."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import lmserver.storage
from lmserver.storage import account_data, stream
from lmserver.storage.database import Connection, Database
from lmserver.storage.stream import UserChange

SCHEMA = Path(lmserver.storage.__file__).with_name("schema.sql")


def test_every_streamed_table_is_read() -> None:
    """A table that /sync tells of and the journal does not read would never wake a client that keeps
    up, nor be told to it later."""
    tables = re.findall(r"CREATE TABLE (\w+) \((.*?)\n\);", SCHEMA.read_text(), re.DOTALL)
    streamed = {name for name, columns in tables if "stream_xid" in columns}
    assert streamed
    assert streamed == set(re.findall(r"FROM (\w+)\s+WHERE stream_xid", stream._CHANGES))


async def test_what_is_not_settled_is_not_read(db: Database) -> None:
    start = (await stream.changes(db, stream.NOTHING_YET)).settled
    hold, held = asyncio.Event(), asyncio.Event()

    async def slow(connection: Connection) -> None:
        await account_data.put(connection, "@slow:x", "", "t", b"{}")
        held.set()
        await hold.wait()

    slower = asyncio.create_task(db.run(slow))
    await held.wait()
    await account_data.put(db, "@fast:x", "", "t", b"{}")
    early = await stream.changes(db, start)
    assert (early.changes, early.complete) == ([], True)
    assert early.settled < early.upcoming
    hold.set()
    await slower
    late = await stream.changes(db, early.settled)
    assert {c.user_id for c in late.changes if isinstance(c, UserChange)} == {"@slow:x", "@fast:x"}


async def test_too_much_at_once_is_said_to_be_incomplete(db: Database) -> None:
    start = (await stream.changes(db, stream.NOTHING_YET)).settled
    for number in range(stream.MAX_ROWS):
        await account_data.put(db, f"@u{number}:x", "", "t", b"{}")
    assert not (await stream.changes(db, start)).complete
