"""Who must get which part of a room's list: ranges per destination, no row per event.

A range begins when a server joins and ends with the event that took its last user away; how far
the destination has acknowledged is one number in it. After any crash the work left is found by
comparing that number with the room's head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class OpenRange:
    """`destination` gets what follows `position` (the event there it has from its join)."""

    destination: str
    position: int


@dataclass(frozen=True, slots=True)
class CloseRange:
    """`destination` gets nothing after `position`."""

    destination: str
    position: int


@dataclass(frozen=True, slots=True)
class SingleEvent:
    """`destination`, not in the room, gets the one event at `position` that concerns its user."""

    destination: str
    position: int


RangeChange = OpenRange | CloseRange | SingleEvent


async def apply_changes(db: Executor, room_id: str, changes: Sequence[RangeChange]) -> None:
    """Apply the changes of a batch in order; the caller holds the room's head."""
    for change in changes:
        if isinstance(change, CloseRange):
            await db.execute(
                "UPDATE outbound_ranges SET until_position = $3"
                " WHERE destination = $1 AND room_id = $2 AND until_position IS NULL",
                change.destination,
                room_id,
                change.position,
            )
            continue
        if isinstance(change, OpenRange):
            # The answer to its join gives a server everything: what it had not got of the room
            # before has no place in its list any more.
            await db.execute(
                "DELETE FROM outbound_ranges WHERE destination = $1 AND room_id = $2",
                change.destination,
                room_id,
            )
        single = isinstance(change, SingleEvent)
        await db.execute(
            "INSERT INTO outbound_ranges"
            " (destination, room_id, from_position, until_position, acked_position)"
            " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            change.destination,
            room_id,
            change.position,
            change.position if single else None,
            change.position - 1 if single else change.position,
        )
