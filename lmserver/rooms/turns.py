"""Turns: one at a time per room, everything that waits appended in one transaction.

Whoever wants an event in a room puts it in the room's queue; a single task per room takes all
that waits, appends it as one batch and answers after COMMIT. The queue only saves round trips:
order is decided by the database row, so several processes may do this at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog

from lmserver.protocol import hub
from lmserver.protocol.errors import AuthRejected
from lmserver.protocol.events import EventDraft, Lpdu, Pdu
from lmserver.protocol.room_versions import RoomVersion
from lmserver.protocol.room_view import RoomView
from lmserver.protocol.signatures import SigningKey
from lmserver.rooms import append as appending
from lmserver.rooms import snapshot as snapshots
from lmserver.rooms.append import Appended
from lmserver.rooms.batch import Batch
from lmserver.rooms.evidence import EvidenceLog
from lmserver.rooms.lpdu_answers import LpduAnswers
from lmserver.rooms.outcomes import ClientTxn, GapFound, Outcome, Proposal, Rejected, RoomBusy
from lmserver.rooms.signing import Signing
from lmserver.rooms.snapshot import Snapshot
from lmserver.storage import room_log, room_purges
from lmserver.storage.database import Connection, Database, DatabaseUnavailable, UniqueViolation
from lmserver.storage.room_log import RoomRow

log = structlog.get_logger(__name__)

MAX_WAITING = 5_000
"""Events that may wait for one room before callers are told to come back."""
MAX_BATCH = 256
"""Events of one append transaction: bounds how long the room's row is held."""
MAX_CACHED_ENTRIES = 500_000
"""State entries kept in memory over all rooms."""
MAX_CONFLICTS = 5


class Audience(Protocol):
    """Who is told after COMMIT. A wake-up is a hint: both can find their work by reading."""

    def publish(self, keys: Iterable[str], xid: int | None = None) -> None: ...

    def wake(self, destinations: Iterable[str]) -> None: ...


@dataclass(slots=True)
class _Request:
    proposals: Sequence[Proposal]
    answer: asyncio.Future[list[Outcome | GapFound]]


@dataclass(slots=True)
class _Turn:
    """A room's queue. `task` runs while something waits; nobody else touches `waiting`'s head."""

    waiting: list[_Request] = field(default_factory=list)
    size: int = 0
    task: asyncio.Task[None] | None = None


class Turns:
    """Appends events to rooms and knows their current state."""

    def __init__(
        self,
        db: Database,
        key: SigningKey,
        audience: Audience,
        answers: LpduAnswers,
        clock: Callable[[], int],
        evidence: EvidenceLog | None = None,
    ) -> None:
        self._db = db
        self._key = key
        self._evidence = EvidenceLog(db, clock) if evidence is None else evidence
        self._audience = audience
        self._answers = answers
        self._clock = clock
        self._signing = Signing()
        self._turns: dict[str, _Turn] = {}
        self._snapshots: OrderedDict[str, Snapshot] = OrderedDict()
        self._cached_entries = 0

    @property
    def our_name(self) -> str:
        return self._key.server_name

    # -- asking ---------------------------------------------------------------------------------

    async def view(self, room_id: str) -> RoomView | None:
        """The room's current state, or None when we hold no list of it."""
        found = await self.snapshot(room_id)
        return None if found is None else found.view

    async def snapshot(self, room_id: str) -> Snapshot | None:
        """The current state with the servers in the room."""
        cached = self._snapshots.get(room_id)
        if cached is not None:
            self._snapshots.move_to_end(room_id)
            return cached
        loaded = await self._db.run(lambda db: snapshots.of_room(db, room_id, None))
        if loaded is not None and room_id not in self._snapshots:
            self._remember(room_id, loaded)
        return self._snapshots.get(room_id, loaded)

    async def is_closed(self, room_id: str) -> bool:
        """Whether none of our users may enter the room."""
        return await room_purges.is_closed(self._db, room_id)

    # -- appending ------------------------------------------------------------------------------

    async def create(self, version: RoomVersion, drafts: Sequence[EventDraft]) -> list[Outcome]:
        """Create a room: the first draft is m.room.create, the others follow in one transaction.

        Raises AuthRejected when any draft is not allowed and UniqueViolation when the room ID is
        taken; either way nothing of the room is kept.
        """
        created = hub.create_event(drafts[0], version, self._key)
        appended = await self._db.run(lambda db: self._create(db, created, drafts[1:]))
        self._committed(created.room_id, appended)
        return [o for o in appended.outcomes if not isinstance(o, GapFound)]

    async def append_drafts(
        self, drafts: Sequence[EventDraft], txn: ClientTxn | None = None
    ) -> list[Outcome]:
        """Events of our users in a room whose hub we are, all in the same room."""
        proposals = [Proposal(d, txn if i == 0 else None) for i, d in enumerate(drafts)]
        return _no_gaps(await self.submit(drafts[0].room_id, proposals))

    async def accept_lpdus(self, room_id: str, lpdus: Sequence[Lpdu]) -> list[Outcome]:
        """LPDUs for a room whose hub we are; their signatures have been checked."""
        return _no_gaps(await self.submit(room_id, [Proposal(lpdu) for lpdu in lpdus]))

    async def place_pdus(self, room_id: str, pdus: Sequence[Pdu]) -> list[Outcome | GapFound]:
        """PDUs of a room's hub, checked and with hashes enforced; gaps are told, not filled."""
        return await self.submit(room_id, [Proposal(pdu) for pdu in pdus])

    async def place_recovered(self, room_id: str, pdus: Sequence[Pdu]) -> list[Outcome | GapFound]:
        """Events of a room whose hub we are that we had before the database was restored, checked and
        with hashes enforced."""
        return await self.submit(room_id, [Proposal(pdu, recovered=True) for pdu in pdus])

    async def submit(self, room_id: str, proposals: Sequence[Proposal]) -> list[Outcome | GapFound]:
        """Queue events for the room's next turn and wait until they are durable or refused.

        Raises RoomBusy when too many wait, DatabaseUnavailable when the database does not answer.
        """
        if not proposals:
            return []
        turn = self._turns.setdefault(room_id, _Turn())
        if turn.size + len(proposals) > MAX_WAITING:
            raise RoomBusy(room_id)
        request = _Request(proposals, asyncio.get_running_loop().create_future())
        turn.waiting.append(request)
        turn.size += len(proposals)
        if turn.task is None:
            turn.task = asyncio.create_task(self._take_turns(room_id, turn), name=f"turn {room_id}")
        return await asyncio.shield(request.answer)

    async def _take_turns(self, room_id: str, turn: _Turn) -> None:
        """Until nothing waits: take what fits in a batch, append it, answer."""
        while turn.waiting:
            requests = _take_batch(turn)
            try:
                await self._append_requests(room_id, requests)
            except Exception as error:  # one failure must not end the room's turn for ever
                _fail(requests, error)
        turn.task = None
        if self._turns.get(room_id) is turn:
            del self._turns[room_id]

    async def _append_requests(self, room_id: str, requests: Sequence[_Request]) -> None:
        """Append and answer them. Where they fail together, the one whose fault it is fails alone."""
        proposals = [p for request in requests for p in request.proposals]
        try:
            appended = await self._append(room_id, proposals)
        except DatabaseUnavailable:
            raise
        except Exception as error:
            await self._divide(room_id, requests, error)
            return
        self._committed(room_id, appended)
        start = 0
        for request in requests:
            end = start + len(request.proposals)
            if not request.answer.done():
                request.answer.set_result(appended.outcomes[start:end])
            start = end

    async def _divide(self, room_id: str, requests: Sequence[_Request], error: Exception) -> None:
        half = len(requests) // 2
        if half == 0:
            _fail(requests, error)
            return
        log.warning("turn_divided", room_id=room_id, requests=len(requests), error=type(error).__name__)
        await self._append_requests(room_id, requests[:half])
        await self._append_requests(room_id, requests[half:])

    async def _append(self, room_id: str, proposals: Sequence[Proposal]) -> Appended:
        """One append transaction; a conflict of another process is decided again at the new head."""
        for attempt in range(MAX_CONFLICTS):
            cached = self._snapshots.get(room_id)
            turn = appending.Turn(room_id, proposals, cached, self._key, self._signing, self._clock())
            try:
                if attempt == 0 and (appended := await appending.append_at_once(self._db, turn)) is not None:
                    return appended
                return await self._db.run(partial(appending.append, turn=turn))
            except UniqueViolation as conflict:
                log.warning(
                    "append_conflict", room_id=room_id, constraint=conflict.constraint, attempt=attempt
                )
                self.forget(room_id)
        raise RoomBusy(room_id)

    async def _create(self, db: Connection, created: Pdu, drafts: Sequence[EventDraft]) -> Appended:
        view = hub.view_of_create(created)
        row = RoomRow(
            created.room_id, created.version.id, self.our_name, created.event_id, 0, created.event_id, 0
        )
        await room_log.create_room(db, row, self._clock())
        batch = Batch(created.room_id, self.our_name, Snapshot(view, {}))
        batch.begin(created)
        outcomes: list[Outcome | GapFound] = []
        for draft in drafts:
            decision = hub.decide(draft, batch.snapshot.view, self._key)
            if isinstance(decision, hub.Reject):
                raise AuthRejected(decision.rule or "", decision.reason)
            outcomes.append(batch.place(decision.pdu))
        return await appending.write(db, batch, row, outcomes, self._clock())

    # -- after COMMIT ---------------------------------------------------------------------------

    def _committed(self, room_id: str, appended: Appended) -> None:
        """Memory follows the database, then local readers and senders are woken."""
        if appended.snapshot is None:
            return
        self._remember(room_id, appended.snapshot)
        for held in appended.evidence:
            self._evidence.tell(room_id, held.kind, held.event_id, stored=held.stored)
        for lpdu_id, outcome in appended.settled_lpdus:
            self._answers.settle(lpdu_id, outcome, placed=True)
        if appended.xid:
            local = ":" + self.our_name
            members = [user for user in appended.members if user.endswith(local)]
            self._audience.publish([room_id, *members], appended.xid)
            self._audience.wake(appended.destinations)

    def _remember(self, room_id: str, snapshot: Snapshot) -> None:
        old = self._snapshots.pop(room_id, None)
        self._cached_entries += len(snapshot.view.state) - (0 if old is None else len(old.view.state))
        self._snapshots[room_id] = snapshot
        while self._cached_entries > MAX_CACHED_ENTRIES and len(self._snapshots) > 1:
            _, evicted = self._snapshots.popitem(last=False)
            self._cached_entries -= len(evicted.view.state)

    def forget(self, room_id: str) -> None:
        """Drop what memory knows of a room; the next question reads the database."""
        old = self._snapshots.pop(room_id, None)
        if old is not None:
            self._cached_entries -= len(old.view.state)

    async def close(self) -> None:
        """Let every turn in progress finish."""
        tasks = [turn.task for turn in self._turns.values() if turn.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        self._signing.close()


def _fail(requests: Sequence[_Request], error: Exception) -> None:
    """Tell those who have no answer yet."""
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(error)
            request.answer.exception()


def _take_batch(turn: _Turn) -> list[_Request]:
    """Whole requests up to the batch size, at least one."""
    taken: list[_Request] = []
    size = 0
    while turn.waiting and (not taken or size + len(turn.waiting[0].proposals) <= MAX_BATCH):
        request = turn.waiting.pop(0)
        taken.append(request)
        size += len(request.proposals)
    turn.size -= size
    return taken


def _no_gaps(outcomes: Sequence[Outcome | GapFound]) -> list[Outcome]:
    """Events without a predecessor of their own cannot leave a gap."""
    return [
        Rejected("M_FORBIDDEN", "not the hub of the room") if isinstance(o, GapFound) else o for o in outcomes
    ]
