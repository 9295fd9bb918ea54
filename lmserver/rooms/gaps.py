"""Events that the hub sent and we have not got: fetched from the hub, applied in chain order.

What is missing is written down before the hub is told that it was received; then it is fetched
outside the room's turn, within a budget, and only ever from the room's hub. A gap that is longer
than the budget goes on later from where it stopped (attack B11).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from lmserver.federation_client.errors import FederationError
from lmserver.protocol.events import Pdu
from lmserver.rooms.background import repeat
from lmserver.rooms.evidence import EvidenceLog
from lmserver.rooms.held import HeldEvents
from lmserver.rooms.outcomes import Accepted, GapFound, Outcome
from lmserver.rooms.placing import EARLIER_STAY
from lmserver.rooms.turns import Turns
from lmserver.storage import gaps, room_log
from lmserver.storage.database import Database
from lmserver.storage.evidence import NewEvidence
from lmserver.storage.gaps import Gap

log = structlog.get_logger(__name__)

PAGE: Final = 100
POLL_SECONDS: Final = 5.0
CLAIM_MS: Final = 120_000
MAX_DUE: Final = 100
AT_ONCE: Final = 20
"""Gaps filled at the same time, so that pages in memory are few; what comes then waits its turn."""
ROOMS_OF_A_HUB: Final = 3
"""Rooms of one hub tried in one pass: one that is slow must not keep the others waiting."""
FIRST_PAUSE_MS: Final = 5_000
MAX_PAUSE_MS: Final = 3_600_000
AWAY_PAUSE_MS: Final = 300_000
MAX_ATTEMPTS: Final = 12
"""Tries in which a hub that answers has nothing: about three hours, with doubling pauses."""
UNVERIFIED_AFTER: Final = 8
"""Tries after which an event whose signatures cannot be checked gets its place unverified, shown to
nobody: about 40 minutes. A server that hides its keys must not end a room for us."""
AT_ONCE_BELOW: Final = 3
"""After so many failures a gap waits for its time instead of being tried with each new event."""


class History(Protocol):
    """The hub's side of the room: linked events up to and including `event_id`, oldest first, and
    whether each one's signatures hold.

    Empty when the hub has nothing usable; raises FederationError when it cannot be asked.
    """

    async def past(self, hub: str, room_id: str, event_id: str, limit: int) -> list[tuple[Pdu, bool]]: ...


Page = Sequence[tuple[Pdu, bool]]


def _last_of(pdus: Sequence[Pdu]) -> list[str]:
    """Those that none of the others follows, in whatever order they came: who has these has them all."""
    followed = {event_id for pdu in pdus for event_id in pdu.prev_events}
    return list(dict.fromkeys(pdu.event_id for pdu in pdus if pdu.event_id not in followed))


def _size(page: Page) -> int:
    return sum(len(pdu.canonical) for pdu, _ in page)


@dataclass(slots=True)
class Budget:
    """What one try may cost: pages asked for, bytes of events, seconds."""

    pages: int = 100
    bytes: int = 64 * 1024 * 1024
    seconds: float = 5.0

    def started(self) -> _Spending:
        return _Spending(self.pages, self.bytes, time.monotonic() + self.seconds)


@dataclass(slots=True)
class _Spending:
    pages: int
    bytes: int
    deadline: float

    def spend(self, page: Page) -> None:
        self.pages -= 1
        self.bytes -= _size(page)

    @property
    def left(self) -> bool:
        return self.pages > 0 and self.bytes > 0 and time.monotonic() < self.deadline


IN_REQUEST: Final = Budget()
IN_BACKGROUND: Final = Budget(pages=500, bytes=256 * 1024 * 1024, seconds=30.0)
KEPT_BYTES: Final = 8 * 1024 * 1024
"""Pages kept on the way back, so that a gap of ordinary length is fetched once and not twice."""


class GapFiller:
    """Places a hub's events, fetching what is missing before them."""

    def __init__(
        self,
        db: Database,
        turns: Turns,
        history: History,
        evidence: EvidenceLog,
        clock: Callable[[], int],
        *,
        in_request: Budget = IN_REQUEST,
        in_background: Budget = IN_BACKGROUND,
    ) -> None:
        self._db = db
        self._turns = turns
        self._history = history
        self._evidence = evidence
        self._clock = clock
        self._in_request = in_request
        self._in_background = in_background
        self._held = HeldEvents()
        self._filling: set[str] = set()
        self._places = asyncio.Semaphore(AT_ONCE)

    async def place(self, room_id: str, hub: str, pdus: Sequence[Pdu]) -> list[Outcome]:
        """Place events of one room; an outcome for each, in the order given.

        An event that could not be placed yet is accepted without a position: it is written down
        and will be asked for.
        """
        outcomes = await self._place_with_held(room_id, pdus)
        missing = [pdu for pdu, o in zip(pdus, outcomes, strict=True) if isinstance(o, GapFound)]
        if missing:
            for event_id in _last_of(missing):
                await self.missed(room_id, event_id)
            if not self._places.locked() and await self._may_try(room_id):
                await self._fill(room_id, hub, self._in_request)
            again = await self._place_with_held(room_id, missing)
            late = dict(zip((pdu.event_id for pdu in missing), again, strict=True))
            outcomes = [late.get(pdu.event_id, o) for pdu, o in zip(pdus, outcomes, strict=True)]
        return [
            Accepted(pdu.event_id, None) if isinstance(o, GapFound) else o
            for pdu, o in zip(pdus, outcomes, strict=True)
        ]

    async def missed(self, room_id: str, event_id: str) -> None:
        """An event of the room's hub that could not be taken now is asked for later."""
        await gaps.note(self._db, room_id, event_id, self._clock() + FIRST_PAUSE_MS)

    async def _place_with_held(self, room_id: str, pdus: Sequence[Pdu]) -> list[Outcome | GapFound]:
        """Together with what came too early before; what is too early now is held."""
        early = self._held.take(room_id)
        offered = [*pdus, *early]
        outcomes = await self._turns.place_pdus(room_id, offered)
        self._held.hold(
            room_id, (pdu for pdu, o in zip(offered, outcomes, strict=True) if isinstance(o, GapFound))
        )
        return outcomes[: len(pdus)]

    async def _may_try(self, room_id: str) -> bool:
        gap = await gaps.get(self._db, room_id)
        return gap is not None and gap.attempts < AT_ONCE_BELOW

    # -- later ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Go on with what is missing until cancelled."""
        await repeat("gaps", POLL_SECONDS, self.retry_due)

    async def retry_due(self) -> None:
        """Try every gap whose time has come, the hubs side by side."""
        now = self._clock()
        by_hub: dict[str, list[str]] = {}
        for room_id in await gaps.claim_due(self._db, now, now + CLAIM_MS, MAX_DUE):
            view = await self._turns.view(room_id)
            if view is None or view.hub == self._turns.our_name:
                await gaps.drop(self._db, room_id)
            else:
                by_hub.setdefault(view.hub, []).append(room_id)
        await asyncio.gather(*(self._retry(hub, rooms) for hub, rooms in by_hub.items()))

    async def _retry(self, hub: str, rooms: Sequence[str]) -> None:
        for room_id in rooms[:ROOMS_OF_A_HUB]:
            await self._fill(room_id, hub, self._in_background)
            await self._place_with_held(room_id, [])

    # -- one gap --------------------------------------------------------------------------------

    async def _fill(self, room_id: str, hub: str, budget: Budget) -> None:
        """One try for a room at a time, and few at once."""
        if room_id in self._filling:
            return
        self._filling.add(room_id)
        try:
            async with self._places:
                await self._try(room_id, hub, budget.started())
        finally:
            self._filling.discard(room_id)

    async def _try(self, room_id: str, hub: str, spending: _Spending) -> None:
        """Fetch back to what we have and place from there, as far as the budget goes."""
        kept: dict[str, Page] = {}
        try:
            while (gap := await gaps.get(self._db, room_id)) is not None:
                if not spending.left:
                    await gaps.retry(self._db, room_id, 0, self._clock())
                    return
                if not await self._step(gap, hub, spending, kept):
                    await self._failed(gap)
                    return
        except (FederationError, TimeoutError):
            await gaps.retry(self._db, room_id, 0, self._clock() + AWAY_PAUSE_MS)

    async def _step(self, gap: Gap, hub: str, spending: _Spending, kept: dict[str, Page]) -> bool:
        """One page: placed, or the one before it found. False when nothing comes of it."""
        page = kept.pop(gap.top, None)
        if page is None:
            async with asyncio.timeout(max(1.0, spending.deadline - time.monotonic())):
                page = await self._history.past(hub, gap.room_id, gap.top, PAGE)
            spending.spend(page)
        if not page:
            return False
        start = await self._after_ours(gap.room_id, [pdu for pdu, _ in page])
        if start is not None:
            return await self._place_page(gap, page[start:])
        before = page[0][0].prev_events
        if len(before) != 1 or len(gap.boundaries) >= gaps.MAX_BOUNDARIES or before[0] in gap.boundaries:
            return False
        if sum(map(_size, kept.values())) < KEPT_BYTES:
            kept[gap.top] = page
        await gaps.push(self._db, gap.room_id, gap.top, before[0])
        return True

    async def _place_page(self, gap: Gap, page: Page) -> bool:
        """What does not hold is waited for a while: the keys of its server may come."""
        pdus = [pdu for pdu, _ in page]
        for index, (pdu, holds) in enumerate(page):
            pdu.unverified = not holds
            if not holds and gap.attempts < UNVERIFIED_AFTER:
                await self._turns.place_pdus(gap.room_id, pdus[:index])
                return False
        outcomes = await self._turns.place_pdus(gap.room_id, pdus)
        if isinstance(outcomes[-1], Accepted) or EARLIER_STAY in outcomes:
            # Waited for one event of a silent server is waited for all that stand after it.
            attempts = 0 if all(holds for _, holds in page) else gap.attempts
            await gaps.close(self._db, gap.room_id, gap.top, attempts)
            return True
        return False

    async def _after_ours(self, room_id: str, page: Sequence[Pdu]) -> int | None:
        """Where the page goes on from our list; what stands before is history of before our join."""
        ids = [p.event_id for p in page] + [e for p in page for e in p.prev_events]
        known = await room_log.known_events(self._db, room_id, ids)
        placed = {event_id for event_id, position in known.items() if position is not None}
        return next(
            (i for i in range(len(page) - 1, -1, -1) if placed & {page[i].event_id, *page[i].prev_events}),
            None,
        )

    async def _failed(self, gap: Gap) -> None:
        """The hub answers and gives nothing of use: later, less often, and at last no more."""
        attempts = gap.attempts + 1
        if attempts < MAX_ATTEMPTS:
            pause = min(FIRST_PAUSE_MS << attempts, MAX_PAUSE_MS)
            await gaps.retry(self._db, gap.room_id, attempts, self._clock() + pause)
            return
        await gaps.drop(self._db, gap.room_id)
        log.warning("gap_given_up", room_id=gap.room_id, event_id=gap.top)
        for pdu in self._held.take(gap.room_id):
            case = NewEvidence(pdu.event_id, "gap", f"asked {attempts} times for {gap.top}", pdu.canonical)
            await self._evidence.hold(gap.room_id, case)
