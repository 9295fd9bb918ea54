"""What goes to a destination next, when more waits than fits in one transaction."""

from __future__ import annotations

from lmserver.storage import fanout, outbound, room_log
from lmserver.storage.database import Database
from lmserver.storage.room_log import NewEvent, RoomRow

BEYOND = "participant.test"


async def test_no_room_waits_for_ever_behind_rooms_that_are_always_busy(db: Database) -> None:
    """Nothing is acknowledged here, so that as many rooms as fit are busy all the time."""
    rooms = [f"!r{number:02}:hub.test" for number in range(12)]
    for room_id in rooms:
        first, said = f"$first{room_id[1:4]}", f"$said{room_id[1:4]}"
        await room_log.create_room(db, RoomRow(room_id, "v", "hub.test", first, 0, first, 0), 1)
        event = NewEvent(said, 1, first, None, "m.room.message", None, "@a:hub.test", b"{}")
        await room_log.append(db, room_id, [event], 1, after=first)
        await db.run(lambda c, r=room_id: fanout.apply_changes(c, r, [fanout.OpenRange(BEYOND, 0)]))  # type: ignore[misc]
    served: set[str] = set()
    for now in range(200):
        due = await outbound.due(db, BEYOND, now, 10, 10)
        assert len({event.room_id for event in due.events}) == 10
        served.add(due.events[0].room_id)  # others may not fit into the transaction
        if len(served) == len(rooms):
            return
    raise AssertionError(f"never served: {set(rooms) - served}")
