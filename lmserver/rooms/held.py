"""Events that came before their predecessor, kept in memory for a while.

Only a cache: that they are missing from the list is in the database, and the hub has them. Bounded
for each room and in all; what does not fit is asked for again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from lmserver.protocol.events import Pdu

MAX_IN_ROOM: Final = 100
MAX_BYTES: Final = 32 * 1024 * 1024


class HeldEvents:
    """By room and event ID; the room that waited longest gives way."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._rooms: OrderedDict[str, dict[str, Pdu]] = OrderedDict()
        self._max_bytes = max_bytes
        self._bytes = 0

    def hold(self, room_id: str, pdus: Iterable[Pdu]) -> None:
        """Keep what there is room for."""
        for pdu in pdus:
            held = self._rooms.setdefault(room_id, {})
            if pdu.event_id not in held and len(held) < MAX_IN_ROOM:
                held[pdu.event_id] = pdu
                self._bytes += len(pdu.canonical)
        while self._bytes > self._max_bytes:
            self.take(next(iter(self._rooms)))

    def take(self, room_id: str) -> list[Pdu]:
        """What was held for the room, no longer held."""
        held = list(self._rooms.pop(room_id, {}).values())
        self._bytes -= sum(len(pdu.canonical) for pdu in held)
        return held
