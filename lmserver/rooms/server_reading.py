"""What another server may read of a room (D04 §Calculating Event Visibility, protocol decision 7).

A server may see what any of its users may; of what it may know of but not see it gets the
redacted copy. Everything is served from canonical bytes, redacted events pruned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lmserver.protocol import canonical_json
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import RoomVersion, room_version
from lmserver.rooms.visible_ranges import Ranges, Span, visible_to_user
from lmserver.storage import room_log, room_state
from lmserver.storage.database import Executor
from lmserver.storage.room_log import RoomRow, StoredEvent

MAX_CHAIN = 100_000


@dataclass(frozen=True, slots=True)
class ServerAccess:
    """The room and the positions a server may see in it."""

    room: RoomRow
    version: RoomVersion
    ranges: Sequence[Ranges]

    def sees(self, position: int | None) -> bool:
        return position is not None and any(position in ranges for ranges in self.ranges)


class ServerReading:
    """Reads rooms on behalf of other servers."""

    def __init__(self, db: Executor) -> None:
        self._db = db

    async def access(self, server: str, room_id: str) -> ServerAccess | None:
        """None when the room is not here or the server never had anything to do with it."""
        row = await room_log.room(self._db, room_id)
        if row is None:
            return None
        users: dict[str, list[Span]] = {}
        for span in await room_state.server_memberships(self._db, room_id, server):
            users.setdefault(span.user_id, []).append(
                Span(span.from_position, span.to_position, span.membership)
            )
        visibility = [
            Span(s.from_position, s.to_position, _visibility(s.pdu))
            for s in await room_state.state_history(self._db, room_id, "m.room.history_visibility", "")
        ]
        open_to_all = any(span.value == "world_readable" for span in visibility)
        if not users and not open_to_all:
            return None
        ranges = [visible_to_user(spans, visibility) for spans in users.values()]
        if not users:
            ranges = [visible_to_user([], visibility)]
        return ServerAccess(row, room_version(row.room_version), ranges)

    async def event(self, server: str, event_id: str) -> dict[str, Any] | None:
        """One event by its ID, redacted where the server may not see its content."""
        stored = await room_log.event(self._db, event_id)
        if stored is None or stored.soft_failed is not None:
            return None
        access = await self.access(server, stored.room_id)
        return None if access is None else serve(stored, access)

    async def backfill(self, access: ServerAccess, event_id: str, limit: int) -> list[dict[str, Any]] | None:
        """Events up to and including one, oldest first; None when it is not in the room's list."""
        position = await room_log.event_position(self._db, access.room.room_id, event_id)
        if position is None:
            return None
        rows = await room_log.events_between(
            self._db, access.room.room_id, -1, position, limit, newest_first=True
        )
        return [serve(row, access) for row in reversed(rows)]

    async def state_before(self, access: ServerAccess, event_id: str) -> list[StoredEvent] | None:
        """The state before an event of the room, in list order."""
        position = await room_log.event_position(self._db, access.room.room_id, event_id)
        if position is None or not access.sees(position):
            return None
        return await room_state.state_at(self._db, access.room.room_id, position)

    async def state_for_join(self, room_id: str, event_id: str) -> list[StoredEvent]:
        """The state before a join that has just been accepted."""
        position = await room_log.event_position(self._db, room_id, event_id)
        return [] if position is None else await room_state.state_at(self._db, room_id, position)

    async def stored(self, room_id: str, event_id: str) -> StoredEvent:
        """An event that is known to be in the room."""
        found = await room_log.event(self._db, event_id, room_id)
        if found is None:
            raise LookupError(event_id)
        return found

    async def auth_chain(self, room_id: str, events: Iterable[StoredEvent]) -> list[StoredEvent]:
        """What the events cite as their authority, recursively, each once, in list order."""
        known: dict[str, StoredEvent] = {}
        wanted = {cited for event in events for cited in _auth_events(event)}
        while wanted and len(known) < MAX_CHAIN:
            found = await room_log.events_by_id(self._db, room_id, wanted)
            known |= {event.event_id: event for event in found}
            wanted = {cited for event in found for cited in _auth_events(event)} - known.keys()
        return sorted(known.values(), key=lambda e: (e.position is not None, e.position or 0))


def _auth_events(event: StoredEvent) -> list[str]:
    cited: list[str] = canonical_json.parse_object(event.pdu)["auth_events"]
    return cited


def _visibility(pdu: bytes) -> str:
    value = canonical_json.parse_object(pdu)["content"].get("history_visibility")
    return value if isinstance(value, str) else "shared"


def fields_of(stored: StoredEvent, version: RoomVersion) -> dict[str, Any]:
    """The event as anybody may have it: pruned if it has been redacted."""
    fields = canonical_json.parse_object(stored.pdu)
    return fields if stored.redacted_by is None else redact(fields, version)


def serve(stored: StoredEvent, access: ServerAccess) -> dict[str, Any]:
    """The event as this server may have it. State is always whole: rules need it, and redaction
    keeps what they need."""
    fields = fields_of(stored, access.version)
    if access.sees(stored.position) or fields["type"] == "m.mls.commit":
        return fields
    return redact(fields, access.version)


def serve_state(stored: StoredEvent, access: ServerAccess) -> dict[str, Any]:
    """A state event for a server that may see the state it is part of: it needs the content to
    apply the rules, whatever it may see of the time before."""
    return fields_of(stored, access.version)
