"""Invites and knocks as stripped state: all there is to see of a room one is not in."""

from __future__ import annotations

from collections.abc import Sequence

from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.room_versions import room_version
from lmserver.rooms.client_format import Shown, shown, stripped
from lmserver.rooms.sliding.request import MEMBER
from lmserver.rooms.sliding.room_list import UserRoom
from lmserver.rooms.stripped_state import SHOWN
from lmserver.rooms.sync.other_rooms import own_event_of, stripped_events
from lmserver.storage import room_batches, sliding_rooms
from lmserver.storage.database import Executor
from lmserver.storage.sliding_rooms import StateWant


class PendingRooms:
    """Reads stripped state, as it was when the user was invited or knocked."""

    def __init__(self, db: Executor) -> None:
        self._db = db

    async def stripped(self, user_id: str, rooms: Sequence[UserRoom]) -> dict[str, list[JsonObject]]:
        """Room ID to stripped state events, the user's own member event last."""
        found = {r.room_id: stripped_events(r.told) for r in rooms if r.told is not None}
        listed = [room for room in rooms if room.told is None]
        if not listed:
            return found
        known = await room_batches.rooms(self._db, [room.room_id for room in listed])
        entries = await sliding_rooms.state_entries(
            self._db, [want for room in listed for want in _wants(user_id, room)]
        )
        for room in listed:
            if room.room_id not in known:
                continue
            version = room_version(known[room.room_id].room_version)
            stored = [entry for _, entry in entries.get(room.room_id, {}).values()]
            events = [shown(row, version) for row in stored if row.soft_failed is None]
            events.sort(key=lambda event: _order(user_id, event))
            found[room.room_id] = [stripped(event) for event in events]
        return found

    @staticmethod
    def own_event(room: UserRoom) -> Shown | None:
        """The member event of a room whose list we do not have, if a client may see it."""
        return None if room.told is None else own_event_of(room.told)


def _wants(user_id: str, room: UserRoom) -> list[StateWant]:
    at = room.from_position + 1
    wants = [StateWant(room.room_id, at, type_, "") for type_ in SHOWN]
    return wants + [StateWant(room.room_id, at, MEMBER, user) for user in {room.sender, user_id}]


def _order(user_id: str, event: Shown) -> tuple[bool, bool, str]:
    return event.type == MEMBER, event.state_key == user_id, event.type
