"""What is told with events besides what they say, most of it private to the reader (CS API §UnsignedData)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lmserver.rooms import relations
from lmserver.rooms.access import Access, Reader
from lmserver.rooms.client_format import ENCRYPTED, Extras, Shown
from lmserver.storage import client_transactions, room_batches
from lmserver.storage.database import Database, Executor

Rooms = Sequence[tuple[Access, Sequence[Shown]]]


async def extras(db: Database, reader: Reader, rooms: Rooms, now_ms: int) -> Extras:
    """For events of many rooms in as few round trips as for one's, all at the same time."""
    transaction_ids, redactions, previous, bundles = await asyncio.gather(
        _transaction_ids(db, reader, rooms),
        _redactions(db, rooms),
        _previous(db, rooms),
        relations.bundles(db, reader.user_id, rooms),
    )
    return Extras(now_ms, transaction_ids, redactions, previous, bundles, _memberships(rooms))


async def _transaction_ids(db: Executor, reader: Reader, rooms: Rooms) -> dict[str, str]:
    """Transaction IDs go to the device that sent the event and to no other."""
    own = {
        e.event_id: access.room_id for access, events in rooms for e in events if e.sender == reader.user_id
    }
    if not own or reader.device_id is None:
        return {}
    return await client_transactions.transaction_ids(db, reader.user_id, reader.device_id, own)


async def _redactions(db: Executor, rooms: Rooms) -> dict[str, Shown]:
    by_room = {access.room_id: access for access, _ in rooms}
    wanted = {
        (access.room_id, e.redacted_by)
        for access, events in rooms
        for e in events
        if e.redacted_by is not None
    }
    if not wanted:
        return {}
    return {
        row.event_id: by_room[row.room_id].shown(row)
        for row in await room_batches.events_by_id(db, sorted(wanted))
        if row.position is not None and row.position in by_room[row.room_id].visible
    }


async def _previous(db: Executor, rooms: Rooms) -> dict[str, Shown]:
    """What state events replaced, where the user may see that too."""
    state = [
        (access, e.event_id, (access.room_id, e.position))
        for access, events in rooms
        for e in events
        if e.state_key is not None and e.position is not None
    ]
    if not state:
        return {}
    found = await room_batches.replaced(db, [place for _, _, place in state])
    if not found:
        return {}
    previous = [(access, event_id, found.get(place)) for access, event_id, place in state]
    return {
        event_id: access.shown(stored)
        for access, event_id, stored in previous
        if stored is not None and _may_see_previous(access, stored.position)
    }


def _memberships(rooms: Rooms) -> dict[str, str]:
    return {
        e.event_id: access.membership_at(e.position)
        for access, events in rooms
        for e in events
        if e.type == ENCRYPTED and e.state_key is None and e.position is not None
    }


def _may_see_previous(access: Access, position: int | None) -> bool:
    """An outlier was part of the state the user's server joined with."""
    return access.joined if position is None else position in access.visible
