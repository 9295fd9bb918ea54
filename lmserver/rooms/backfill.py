"""History from before our join, fetched from the hub when a user scrolls up.

Every event is checked as one that arrives is: signatures, hashes, and its place in the chain that
ends with our join. Fetched once for a room at a time, in bounded steps; a hub that is away or lies
costs its users the history and nothing else (attack S3).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from lmserver.federation_client.errors import FederationError
from lmserver.protocol import canonical_json
from lmserver.protocol.events import Pdu, parse_pdu
from lmserver.protocol.room_versions import room_version
from lmserver.rooms.checking import Verifier
from lmserver.rooms.evidence import EvidenceLog
from lmserver.rooms.relations import new_relation
from lmserver.rooms.weaving import CONTRADICTION, Weaver
from lmserver.storage import client_transactions, history, lpdus, relations, room_log, room_state
from lmserver.storage.database import Connection, Database, UniqueViolation
from lmserver.storage.evidence import NewEvidence
from lmserver.storage.history import UNVERIFIED, Link
from lmserver.storage.message_search import searched_text
from lmserver.storage.room_log import NewEvent, RoomRow

log = structlog.get_logger(__name__)

PAGE: Final = 100
MAX_PAGES: Final = 3
"""Pages one request may cause."""
SECONDS: Final = 10.0
AT_ONCE: Final = 20
QUIET_MS: Final = 30_000
"""How long a hub that gave nothing is left alone with a room's history."""
MAX_QUIET: Final = 10_000
MAX_RECHECKED: Final = 50


class Past(Protocol):
    """The hub's side of the room: linked events up to and including `event_id`, oldest first, and
    whether each one's signatures hold. Raises FederationError when the hub cannot be asked."""

    async def past(self, hub: str, room_id: str, event_id: str, limit: int) -> list[tuple[Pdu, bool]]: ...


@dataclass(frozen=True, slots=True)
class Reached:
    """`stored` says that there is history that was not there before, `complete` that the room is
    here from its beginning."""

    stored: bool
    complete: bool


@dataclass(slots=True)
class _Batch:
    """A page that is being stored."""

    events: list[NewEvent]
    cases: list[NewEvidence]
    weaver: Weaver


class Backfill:
    """Reaches back in rooms whose hub is another server."""

    def __init__(
        self,
        db: Database,
        our_name: str,
        past: Past,
        verifier: Verifier,
        evidence: EvidenceLog,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._our_name = our_name
        self._past = past
        self._verifier = verifier
        self._evidence = evidence
        self._clock = clock
        self._in_flight: dict[str, asyncio.Task[bool]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._quiet: OrderedDict[str, int] = OrderedDict()

    async def reach(self, room_id: str, start: int, wanted: int) -> Reached:
        """Try to have `wanted` events at and below a position. Whoever asks for a room while it is
        being fetched for waits for the same pages. Never raises for the hub's sake."""
        row = await room_log.room(self._db, room_id)
        if row is None or row.hub_server == self._our_name:
            return Reached(False, True)
        task = self._in_flight.get(room_id)
        if task is None:
            task = asyncio.create_task(self._fetch(row, start, wanted), name=f"backfill {room_id}")
            self._in_flight[room_id] = task
            task.add_done_callback(lambda _: self._in_flight.pop(room_id, None))
        stored = await asyncio.shield(task)
        created = await room_log.event_position(self._db, room_id, row.create_event_id)
        return Reached(stored, created is not None)

    async def close(self) -> None:
        """Let what is being fetched finish."""
        await asyncio.gather(*self._in_flight.values(), return_exceptions=True)

    async def _fetch(self, row: RoomRow, start: int, wanted: int) -> bool:
        stored = False
        try:
            async with self._places, asyncio.timeout(SECONDS):
                stored = await self._recheck(row, start, wanted)
                for _ in range(MAX_PAGES):
                    hole = await self._hole(row.room_id, start, wanted)
                    if hole is None or self._is_quiet(row.room_id):
                        break
                    if not await self._fetch_page(row, hole):
                        self._be_quiet(row.room_id)
                        break
                    stored = True
        except (FederationError, TimeoutError, UniqueViolation) as error:
            # A chain that takes an event twice, like one that cannot be had, is no history of ours.
            log.info("history_not_fetched", room_id=row.room_id, hub=row.hub_server, error=str(error))
            self._be_quiet(row.room_id)
        return stored

    def _is_quiet(self, room_id: str) -> bool:
        return self._quiet.get(room_id, 0) > self._clock()

    def _be_quiet(self, room_id: str) -> None:
        self._quiet[room_id] = self._clock() + QUIET_MS
        self._quiet.move_to_end(room_id)
        while len(self._quiet) > MAX_QUIET:
            self._quiet.popitem(last=False)

    async def _hole(self, room_id: str, start: int, wanted: int) -> Link | None:
        """The first event at or below `start` whose predecessor is missing. The event right above counts
        too: whoever has read down to it asks with the position below, where there may be nothing yet."""
        links = await history.links_below(self._db, room_id, start + 1, wanted + 2)
        enough = wanted + 1 if links and links[0].position > start else wanted
        for link, below in itertools.pairwise(links):
            if link.prev_event_id is not None and below.event_id != link.prev_event_id:
                return link
        if not links or len(links) > enough:
            return None
        return links[-1] if links[-1].prev_event_id is not None else None

    async def _fetch_page(self, row: RoomRow, hole: Link) -> bool:
        page = await self._past.past(row.hub_server, row.room_id, hole.prev_event_id or "", PAGE)
        if not page:
            return False
        batch = await self._db.run(lambda db: self._store(db, hole, page, row.room_id))
        for case in batch.cases:
            await self._evidence.hold(row.room_id, case)
        return bool(batch.events)

    # -- storing a page -------------------------------------------------------------------------

    async def _store(
        self, db: Connection, hole: Link, page: Sequence[tuple[Pdu, bool]], room_id: str
    ) -> _Batch:
        """Everything of the page in one transaction, or nothing if the hole has been filled."""
        batch = _Batch([], [], Weaver([]))
        row = await room_log.lock_head(db, room_id)
        links = await history.links_below(db, room_id, hole.position, 2)
        if row is None or links[:1] != [hole] or (len(links) > 1 and links[1].event_id == hole.prev_event_id):
            return batch
        below = links[1] if len(links) > 1 else None
        page = await self._new_part(db, row, page, below, batch)
        room_left = hole.position - 1 - (below.position if below is not None else 0)
        page = page[-room_left:] if room_left > 0 else []
        if page:
            await self._place(db, row, hole, page, batch)
        return batch

    async def _new_part(
        self,
        db: Connection,
        row: RoomRow,
        page: Sequence[tuple[Pdu, bool]],
        below: Link | None,
        batch: _Batch,
    ) -> Sequence[tuple[Pdu, bool]]:
        """The part of the page that is not in the list; a chain that runs into the middle of
        another stay, or begins with another room, is a fork."""
        ids = [pdu.event_id for pdu, _ in page] + [e for pdu, _ in page for e in pdu.prev_events]
        known = await room_log.known_events(db, row.room_id, ids)
        placed = {event_id for event_id, position in known.items() if position is not None}
        start = next((i + 1 for i in range(len(page) - 1, -1, -1) if page[i][0].event_id in placed), 0)
        page = page[start:]
        oldest = page[0][0] if page else None
        if oldest is None:
            return []
        meets = next((e for e in oldest.prev_events if e in placed), None)
        if meets is not None and (below is None or meets != below.event_id):
            followers = await room_log.successors(db, row.room_id, [meets])
            detail = "history leads to an event that another one follows"
            batch.cases.append(_case(oldest, "fork", detail, followers.get(meets)))
            return []
        if oldest.type == "m.room.create" and oldest.event_id != row.create_event_id:
            batch.cases.append(_case(oldest, "second_create", "history begins with another room"))
            return page[1:]
        return page

    async def _place(
        self,
        db: Connection,
        row: RoomRow,
        hole: Link,
        page: Sequence[tuple[Pdu, bool]],
        batch: _Batch,
    ) -> None:
        pdus = [pdu for pdu, _ in page]
        # State that came with the join was verified then, with the keys of then.
        carried = await room_log.known_events(db, row.room_id, [pdu.event_id for pdu in pdus])
        batch.weaver = await _weaver(db, row.room_id, pdus)
        keys = [pdu.lpdu_key for pdu in pdus if pdu.lpdu_key is not None]
        known = await room_log.known_lpdus(db, row.room_id, keys)
        taken = {key: event_id for key, (event_id, _) in known.items()}
        texts = await _texts(db, row, pdus)
        for offset, (pdu, holds) in enumerate(reversed(page), 1):
            failed = _judge(pdu, holds or pdu.event_id in carried, hole.position - offset, taken, batch)
            text = texts.get(pdu.event_id) if failed is None else None
            batch.events.append(_row(pdu, hole.position - offset, failed, text))
        times = [max(0, min(pdu.fields["origin_server_ts"], self._clock())) for pdu in reversed(pdus)]
        await history.add(db, row.room_id, batch.events, times)
        await history.weave(db, row.room_id, batch.weaver.begin, batch.weaver.end)
        shown = {e.event_id: e.position or 0 for e in batch.events if e.soft_failed is None}
        await _relate(db, row.room_id, [(pdu, shown[pdu.event_id]) for pdu in pdus if pdu.event_id in shown])
        await _redact(db, row.room_id, [pdu for pdu in pdus if pdu.event_id in shown])
        await self._settle(db, row.room_id, batch.events)

    async def _settle(self, db: Connection, room_id: str, events: Sequence[NewEvent]) -> None:
        """Echoes of our own LPDUs that came while we were away."""
        mine = {e.lpdu_hash: e.event_id for e in events if e.sender.endswith(":" + self._our_name)}
        sent = await lpdus.by_hash(db, room_id, [h for h in mine if h is not None]) if mine else {}
        for lpdu_hash, own in sorted(sent.items(), key=lambda item: item[1].lpdu_id):
            await lpdus.placed(db, room_id, own.lpdu_id, mine[lpdu_hash])
            await client_transactions.settle(db, own.lpdu_id, mine[lpdu_hash])

    # -- signatures that could not be checked ---------------------------------------------------

    async def _recheck(self, row: RoomRow, start: int, wanted: int) -> bool:
        """Events whose servers' keys could not be had before: shown when they hold now."""
        links = await history.links_below(self._db, row.room_id, start, wanted)
        if not links:
            return False
        waiting = await history.unverified(self._db, row.room_id, links[-1].position, start, MAX_RECHECKED)
        if not waiting:
            return False
        version = room_version(row.room_version)
        pdus = [parse_pdu(canonical_json.parse_object(w.pdu), version) for w in waiting]
        verdicts = await self._verifier.verify_events(pdus)
        good = [(pdu, w.position) for pdu, w, v in zip(pdus, waiting, verdicts, strict=True) if v is None]
        if good:
            await self._db.run(lambda db: self._verified(db, row.room_id, good))
        return bool(good)

    async def _verified(self, db: Connection, room_id: str, good: Sequence[tuple[Pdu, int]]) -> None:
        row = await room_log.lock_head(db, room_id)
        weaver = await _weaver(db, room_id, [pdu for pdu, _ in good])
        keys = [pdu.lpdu_key for pdu, _ in good if pdu.lpdu_key is not None]
        taken = await room_log.known_lpdus(db, room_id, keys)
        shown = [
            pdu
            for pdu, position in good
            if pdu.lpdu_key not in taken and (pdu.state_key is None or weaver.place(pdu, position) is None)
        ]
        texts = {} if row is None else await _texts(db, row, shown)
        found = [(pdu.event_id, pdu.lpdu_hash, texts.get(pdu.event_id)) for pdu in shown]
        await history.verified(db, room_id, found)
        await history.weave(db, room_id, weaver.begin, weaver.end)
        await _relate(db, room_id, [(pdu, position) for pdu, position in good if pdu in shown])
        await _redact(db, room_id, shown)


async def _weaver(db: Connection, room_id: str, pdus: Sequence[Pdu]) -> Weaver:
    keys = [(pdu.type, pdu.state_key) for pdu in pdus if pdu.state_key is not None]
    return Weaver(await history.lives(db, room_id, keys) if keys else [])


def _judge(
    pdu: Pdu, holds: bool, position: int, taken: dict[tuple[str, str], str], batch: _Batch
) -> str | None:
    """Why one event is shown to nobody, None for one that is; of one LPDU the first seen counts."""
    if pdu.altered_from is not None:
        batch.cases.append(_case(pdu, "altered", "the content is not what its hashes say"))
    if not holds:
        return UNVERIFIED
    other = pdu.event_id if pdu.lpdu_key is None else taken.setdefault(pdu.lpdu_key, pdu.event_id)
    if other != pdu.event_id:
        batch.cases.append(_case(pdu, "replay", "the same LPDU stands in the room already", other))
        return "replay: the same LPDU stands in the room already"
    if pdu.state_key is not None and (wrong := batch.weaver.place(pdu, position)) is not None:
        batch.cases.append(_case(pdu, "join_state", CONTRADICTION.partition(": ")[2]))
        return wrong
    return None


async def _texts(db: Connection, row: RoomRow, pdus: Sequence[Pdu]) -> dict[str, str | None]:
    """What a search finds events by; nothing in a room that is encrypted now."""
    head = row.head_position + 1
    if await room_state.state_entry(db, row.room_id, head, "m.room.encryption", "") is not None:
        return {}
    return {pdu.event_id: searched_text(pdu.type, pdu.content) for pdu in pdus}


def _row(pdu: Pdu, position: int, failed: str | None, text: str | None) -> NewEvent:
    prev = pdu.prev_events[0] if pdu.prev_events else None
    lpdu_hash = pdu.lpdu_hash if failed is None else None
    return NewEvent(
        pdu.event_id, position, prev, lpdu_hash, pdu.type, pdu.state_key, pdu.sender, pdu.canonical, failed,
        text,
    )  # fmt: skip


def _case(pdu: Pdu, kind: str, detail: str, against: str | None = None) -> NewEvidence:
    return NewEvidence(
        pdu.event_id, kind, detail, pdu.altered_from or pdu.canonical, related_event_id=against
    )


async def _relate(db: Connection, room_id: str, placed: Iterable[tuple[Pdu, int]]) -> None:
    found = [new_relation(pdu, position) for pdu, position in placed]
    if any(found):
        await relations.add(db, room_id, [relation for relation in found if relation is not None])


async def _redact(db: Connection, room_id: str, pdus: Sequence[Pdu]) -> None:
    """Redactions that came before their targets. Those that stand in history themselves count for
    their senders' own events: moderators' are the hub's to apply, we do not know the levels then."""
    unseen = [
        (target, pdu.event_id, False, pdu.sender)
        for pdu in pdus
        if pdu.type == "m.room.redaction"
        and isinstance(target := pdu.content.get("redacts"), str)
        and len(target) <= 255
        and "\0" not in target
    ]
    if unseen:
        await room_log.remember_redactions(db, room_id, unseen)
    by_id = {pdu.event_id: pdu for pdu in pdus if pdu.type != "m.room.create"}
    pairs = [
        (r.redacts, r.event_id)
        for r in await history.redactions_of(db, room_id, by_id)
        if r.by_moderator or r.sender == by_id[r.redacts].sender
    ]
    if pairs:
        await room_log.mark_redacted(db, room_id, pairs)
        await relations.remove(db, room_id, [target for target, _ in pairs])
