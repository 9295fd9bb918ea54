"""Events parsed lately: many read the same ones, and to parse is most of what reading costs."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from lmserver.protocol.room_versions import RoomVersion
from lmserver.rooms.client_format import Shown, shown
from lmserver.storage.room_log import StoredEvent

MAX_BYTES: Final = 4 * 1024 * 1024
"""Of the events' stored form; parsed they take a few times as much."""


class ParsedEvents:
    """Keeps what events say, in the form readers may see. Nobody changes what they are given."""

    def __init__(self) -> None:
        self._fields: OrderedDict[tuple[str, str, str | None], tuple[dict[str, Any], int]] = OrderedDict()
        self._bytes = 0

    def shown(self, stored: StoredEvent, version: RoomVersion) -> Shown:
        """The same as client_format.shown; a redaction makes another entry."""
        key = (stored.room_id, stored.event_id, stored.redacted_by)
        known = self._fields.get(key)
        if known is not None:
            self._fields.move_to_end(key)
            return Shown(stored.event_id, stored.position, known[0], stored.redacted_by)
        event = shown(stored, version)
        self._fields[key] = event.fields, len(stored.pdu)
        self._bytes += len(stored.pdu)
        while self._bytes > MAX_BYTES:
            _, (_, size) = self._fields.popitem(last=False)
            self._bytes -= size
        return event
