"""State in the database: what it costs to change it, and that changes are found where they are."""

from __future__ import annotations

import itertools

from lmserver.storage import room_batches, room_reads, room_state, sliding_rooms
from lmserver.storage.database import Database
from lmserver.storage.room_batches import Stretch
from lmserver.storage.room_reads import RoomSpan
from lmserver.storage.room_state import NewState

ROOM, AFTER_IT = "!m0123456789abcdefghijk:server.example", "!z0123456789abcdefghijk:server.example"
MEMBER = "m.room.member"
"""The first and last of a page of positions that the index tells apart, and their neighbours."""
PLACES = [0, 1, 254, 255, 256, 257, 511, 512, 2**40 - 1, 2**40, 2**40 + 255, 2**40 + 256]


def _event_id(position: int) -> str:
    return f"${position:043}"


async def _change(db: Database, room_id: str, position: int, type_: str, state_key: str) -> None:
    entry = NewState(type_, state_key, _event_id(position), "join" if type_ == MEMBER else None, position)
    await db.run(lambda connection: room_state.set_state(connection, room_id, [entry]))


async def _bytes(db: Database) -> int:
    await db.execute("VACUUM room_state")
    size: int = await db.fetchval("SELECT pg_total_relation_size('room_state')")
    return size


async def test_a_thousand_changes_cost_a_row_each_and_next_to_nothing_in_indexes(db: Database) -> None:
    """A room that is not the last of an index is where its pages are split in half."""
    await _change(db, AFTER_IT, 1, "org.lmserver.test", "")
    before = await _bytes(db)
    for position in range(1, 1_001):
        await _change(db, ROOM, position, "org.lmserver.test", "")
    assert (await _bytes(db) - before) / 1_000 < 270


async def test_changes_are_found_from_each_place_to_each(db: Database) -> None:
    for position in PLACES:
        await _change(db, ROOM, position, MEMBER, f"@u{position}:server.example")
        await db.execute(
            "INSERT INTO events (room_id, event_id, position, type, state_key, sender, pdu, received_ts)"
            " VALUES ($1, $2, $3, $4, '', '', '', 0)",
            ROOM, _event_id(position), position, MEMBER,
        )  # fmt: skip
    for first, last in itertools.combinations_with_replacement([-1, *PLACES], 2):
        after = [p for p in PLACES if first < p <= last]
        within = [p for p in PLACES if first <= p <= last]
        stretch, span = Stretch(ROOM, first, last), RoomSpan(ROOM, first, last)
        changes = await room_state.state_changes(db, ROOM, first, last)
        assert [e.position for e in changes] == after
        batch = await room_batches.state_changes(db, [stretch])
        assert [e.position for e in batch.get(ROOM, [])] == within
        members = await room_reads.member_changes(db, [span])
        assert [m.user_id for m in members] == [f"@u{p}:server.example" for p in after]
        piece = await room_state.state_after(db, ROOM, last, (first, ""), 3)
        assert [position for position, _ in piece] == [p for p in within if p < last][:3]
        assert bool(await sliding_rooms.with_member_changes(db, [stretch])) == bool(within)
