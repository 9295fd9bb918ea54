"""Events parsed lately: many read the same ones, and to parse is most of what reading costs."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from lmserver.protocol.room_versions import RoomVersion
from lmserver.rooms.client_format import Shown, shown
from lmserver.storage.room_log import StoredEvent

MAX_BYTES: Final = 4 * 1024 * 1024
"""Of the events' stored form; parsed they take a few times as much."""


class ParsedEvents:
    """Keeps what events say, in the form readers may see. Nobody changes what they are given."""

    def __init__(self) -> None:
        self._events: OrderedDict[tuple[str, str, str | None], tuple[Shown, int]] = OrderedDict()
        self._bytes = 0

    def shown(self, stored: StoredEvent, version: RoomVersion) -> Shown:
        """The same as client_format.shown; a redaction makes another entry."""
        key = (stored.room_id, stored.event_id, stored.redacted_by)
        known = self._events.get(key)
        if known is not None:
            self._events.move_to_end(key)
            event = known[0]
            if event.position != stored.position:  # an outlier has been given its place
                event = Shown(stored.event_id, stored.position, event.fields, stored.redacted_by)
                self._events[key] = event, known[1]
            return event
        event = shown(stored, version)
        self._events[key] = event, len(stored.pdu)
        self._bytes += len(stored.pdu)
        while self._bytes > MAX_BYTES:
            _, (_, size) = self._events.popitem(last=False)
            self._bytes -= size
        return event
