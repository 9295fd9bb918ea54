"""Events that the hub sent and we have not got: fetched from the hub, applied in chain order.

A gap is filled outside the room's turn, within a budget, and only ever from the room's hub; an
event whose predecessors cannot be had is refused, never applied out of order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lmserver.protocol.events import Pdu
from lmserver.rooms.outcomes import GapFound, Outcome, Rejected
from lmserver.rooms.turns import Turns
from lmserver.storage import room_log
from lmserver.storage.database import Database

PAGE = 100
MAX_PAGES = 50


class History(Protocol):
    """The hub's side of the room: checked events up to and including `event_id`, oldest first."""

    async def backfill(self, hub: str, room_id: str, event_id: str, limit: int) -> list[Pdu]: ...


class GapFiller:
    """Places a hub's events, fetching what is missing before them."""

    def __init__(self, db: Database, turns: Turns, history: History) -> None:
        self._db = db
        self._turns = turns
        self._history = history

    async def place(self, room_id: str, hub: str, pdus: Sequence[Pdu]) -> list[Outcome]:
        """Place events of one room; an outcome for each, in the order given."""
        outcomes = await self._turns.place_pdus(room_id, pdus)
        gaps = {o.prev_event_id for o in outcomes if isinstance(o, GapFound)}
        if not gaps:
            return [o for o in outcomes if not isinstance(o, GapFound)]
        missing = await self._fetch(room_id, hub, gaps)
        stuck = [i for i, o in enumerate(outcomes) if isinstance(o, GapFound)]
        again = await self._turns.place_pdus(room_id, [*missing, *(pdus[i] for i in stuck)])
        for index, outcome in zip(stuck, again[len(missing) :], strict=True):
            outcomes[index] = outcome
        return [
            Rejected("M_UNKNOWN", "the event's predecessor is missing") if isinstance(o, GapFound) else o
            for o in outcomes
        ]

    async def _fetch(self, room_id: str, hub: str, wanted: set[str]) -> list[Pdu]:
        """Page backwards from each missing event until something we have is reached."""
        fetched: list[Pdu] = []
        for missing in wanted:
            event_id = missing
            pages: list[list[Pdu]] = []
            for _ in range(MAX_PAGES):
                page = await self._history.backfill(hub, room_id, event_id, PAGE)
                if not page or page[-1].event_id != event_id:
                    break
                pages.append(page)
                event_id = page[0].prev_events[0] if page[0].prev_events else ""
                if not event_id or await self._reaches_ours(room_id, page):
                    break
            fetched += [pdu for page in reversed(pages) for pdu in page]
        return fetched

    async def _reaches_ours(self, room_id: str, page: Sequence[Pdu]) -> bool:
        ids = [p.event_id for p in page] + [e for p in page for e in p.prev_events]
        placed = await room_log.known_events(self._db, room_id, ids)
        return any(position is not None for position in placed.values())
