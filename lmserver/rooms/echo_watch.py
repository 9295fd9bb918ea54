"""Echoes that do not come: every LPDU of ours ends in our list, in a refusal, or in an error.

A hub that has named our event but never delivers it is asked for the event; when it has none to
show, it gets the same LPDU again, which is harmless if it was honest (attacks B9, B10). What to do
next is in the database, so a restart forgets nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from lmserver.federation_client.errors import FederationError, KeysUnavailable, RemoteError, Unreachable
from lmserver.protocol.events import Pdu
from lmserver.protocol.room_view import RoomView
from lmserver.rooms.background import repeat
from lmserver.rooms.checking import Verifier, check_pdus
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.evidence import EvidenceLog
from lmserver.rooms.lpdu_answers import LpduAnswers
from lmserver.rooms.outcomes import Rejected
from lmserver.rooms.own_lpdus import GIVEN_UP
from lmserver.storage import client_transactions, lpdus
from lmserver.storage.database import Connection, Database
from lmserver.storage.evidence import NewEvidence
from lmserver.storage.lpdus import WatchedLpdu

POLL_SECONDS: Final = 5.0
BATCH: Final = 100
AT_ONCE: Final = 10
"""Hubs asked at the same time; one that is slow delays its own events only."""
CLAIM_MS: Final = 120_000
FIRST_CHECK_MS: Final = 30_000
MAX_PAUSE_MS: Final = 3_600_000
MAX_CHECKS: Final = 8
"""Times a hub that answers may fail to show the event: two hours, with doubling pauses."""
MAX_SENDS: Final = 10
"""Times a hub may take the LPDU and say nothing of it: about five hours."""
MAX_AGE_MS: Final = 7 * 24 * 3_600_000
"""An event its hub could not be given in this time is of no use to anybody any more."""


class Events(Protocol):
    """Where single events are asked for."""

    async def event(self, server: str, version: str, event_id: str) -> dict[str, Any]: ...


class EchoWatch:
    """Looks after LPDUs without an echo; `wake` starts the sender to a hub."""

    def __init__(
        self,
        db: Database,
        engine: RoomEngine,
        events: Events,
        verifier: Verifier,
        answers: LpduAnswers,
        evidence: EvidenceLog,
        wake: Callable[[Iterable[str]], None],
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._engine = engine
        self._events = events
        self._verifier = verifier
        self._answers = answers
        self._evidence = evidence
        self._wake = wake
        self._clock = clock
        self._places = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Watch until cancelled."""
        await repeat("echo watch", POLL_SECONDS, self.check)

    async def check(self) -> int:
        """Look after everything that is due; returns how many LPDUs that were."""
        now = self._clock()
        due = await lpdus.claim_due(self._db, now, now + CLAIM_MS, BATCH)
        by_hub: dict[str, list[WatchedLpdu]] = {}
        for lpdu in due:
            by_hub.setdefault(lpdu.destination, []).append(lpdu)
        await asyncio.gather(*(self._check_hub(waiting) for waiting in by_hub.values()))
        return len(due)

    async def _check_hub(self, waiting: Sequence[WatchedLpdu]) -> None:
        async with self._places:
            for lpdu in waiting:
                try:
                    await self._check(lpdu)
                except (Unreachable, KeysUnavailable):
                    return  # a hub that is away withholds nothing; its other events wait as well
                except FederationError as error:
                    if isinstance(error, RemoteError) and (error.status == 429 or error.status >= 500):
                        return
                    await self._not_shown(lpdu)

    async def _check(self, lpdu: WatchedLpdu) -> None:
        if lpdu.sends >= MAX_SENDS and lpdu.status == "pending":
            await self._give_up(lpdu, "the room's hub takes the event and never answers")
        elif self._clock() - lpdu.created_ts > MAX_AGE_MS:
            await self._give_up(lpdu, "the room's hub could not be reached")
        elif lpdu.status == "pending":
            await lpdus.check_again(self._db, lpdu, lpdu.checks, self._clock() + MAX_PAUSE_MS, resend=False)
        else:
            await self._ask(lpdu)

    async def _ask(self, lpdu: WatchedLpdu) -> None:
        """The hub has named an event: it has to show it, and it has to be ours."""
        snapshot = await self._engine.snapshot(lpdu.room_id)
        if snapshot is None or lpdu.pdu_event_id is None or not snapshot.includes(self._engine.our_name):
            # No echo is owed to a server that is not in the room any more.
            await self._give_up(lpdu, "we are not in the room")
            return
        view = snapshot.view
        raw = await self._events.event(lpdu.destination, view.version.id, lpdu.pdu_event_id)
        pdu = await self._ours(lpdu, view, raw)
        if pdu is not None:
            # The echo settles what waits for it; what is missing before it is asked for there.
            await self._engine.accept_pdus(lpdu.room_id, [pdu])
        await self._not_shown(lpdu, resend=pdu is None)

    async def _ours(self, lpdu: WatchedLpdu, view: RoomView, raw: dict[str, Any]) -> Pdu | None:
        [pdu] = await check_pdus([raw], view.version, lpdu.room_id, self._verifier)
        if isinstance(pdu, KeysUnavailable):
            raise pdu
        if not isinstance(pdu, Pdu) or pdu.event_id != lpdu.pdu_event_id:
            return None
        if pdu.lpdu_hash == lpdu.lpdu_hash:
            return pdu
        detail = "the event it named is not the one we sent"
        case = NewEvidence(pdu.event_id, "forged_echo", detail, pdu.canonical, lpdu.lpdu)
        await self._evidence.hold(lpdu.room_id, case)
        return None

    async def _not_shown(self, lpdu: WatchedLpdu, *, resend: bool = True) -> None:
        """Still no echo: once more later, or the end. An LPDU that was settled meanwhile stays so."""
        checks = lpdu.checks + 1
        if checks >= MAX_CHECKS:
            case = NewEvidence(lpdu.pdu_event_id or "", "withheld_echo", f"asked {checks} times", lpdu.lpdu)
            if await self._give_up(lpdu, "the room's hub named the event and never delivered it"):
                await self._evidence.hold(lpdu.room_id, case)
            return
        pause = min(FIRST_CHECK_MS << checks, MAX_PAUSE_MS)
        await lpdus.check_again(self._db, lpdu, checks, self._clock() + pause, resend=resend)
        if resend:
            self._wake([lpdu.destination])

    async def _give_up(self, lpdu: WatchedLpdu, reason: str) -> bool:
        """Its client gets an error; False if the echo was faster."""
        ended = await self._db.run(lambda db: self._end(db, lpdu, reason))
        if ended:
            self._answers.settle(lpdu.lpdu_id, Rejected(GIVEN_UP, reason), placed=False)
        return ended

    @staticmethod
    async def _end(db: Connection, lpdu: WatchedLpdu, reason: str) -> bool:
        if not await lpdus.end(db, lpdu.room_id, lpdu.lpdu_id, "given_up", reason):
            return False
        await client_transactions.unsettle(db, lpdu.lpdu_id)
        return True
