"""The append transaction: one database transaction for everything that waits for a room.

Steps, and what a crash after each means:

1. take the room's row: nothing has happened yet;
2. dedupe by LPDU hash, event ID and client transaction: still nothing;
3. decide and complete every event against the head (pure);
4. write events and head, state, fan-out ranges and transaction IDs: all of it or nothing,
   at COMMIT. A crash after COMMIT and before the answer leaves an event stored and not
   acknowledged; the retry finds it in step 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lmserver.protocol import hub, participant
from lmserver.protocol.events import EventDraft, Lpdu, Pdu
from lmserver.protocol.power_levels import PowerLevels
from lmserver.protocol.room_view import RoomView
from lmserver.protocol.signatures import SigningKey
from lmserver.rooms import snapshot as snapshots
from lmserver.rooms.outcomes import HELD, Accepted, ClientTxn, GapFound, Outcome, Proposal, Rejected
from lmserver.rooms.relations import new_relation
from lmserver.rooms.snapshot import Snapshot
from lmserver.storage import (
    client_transactions,
    evidence,
    fanout,
    history,
    holds,
    lpdus,
    people,
    relations,
    room_log,
    room_state,
)
from lmserver.storage.client_transactions import KnownTransaction
from lmserver.storage.database import Connection, Executor
from lmserver.storage.evidence import NewEvidence
from lmserver.storage.fanout import RangeChange
from lmserver.storage.lpdus import OwnLpdu
from lmserver.storage.message_search import searched_text
from lmserver.storage.relations import NewRelation
from lmserver.storage.room_log import NewEvent, RoomRow
from lmserver.storage.room_state import NewState

NOT_FOUND = Rejected("M_NOT_FOUND", "room not known")
NO_LPDU = ("", "")
_OPENS = ("m.room.join_rules", "m.room.history_visibility")
EARLIER_STAY = Rejected("M_FORBIDDEN", "the event belongs to an earlier stay in the room")


@dataclass(slots=True)
class Batch:
    """What one turn has decided so far; nothing of it counts before COMMIT."""

    room_id: str
    our_name: str
    snapshot: Snapshot
    events: list[NewEvent] = field(default_factory=list)
    states: list[NewState] = field(default_factory=list)
    ranges: list[RangeChange] = field(default_factory=list)
    redactions: list[tuple[Pdu, bool]] = field(default_factory=list)
    txns: list[tuple[ClientTxn, str | None, str | None]] = field(default_factory=list)
    evidence: list[NewEvidence] = field(default_factory=list)
    altered: dict[str, bytes] = field(default_factory=dict)
    lpdus: dict[tuple[str, str], Accepted] = field(default_factory=dict)
    known_txns: dict[ClientTxn, KnownTransaction] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)
    relations: list[NewRelation] = field(default_factory=list)
    people: dict[str, dict[str, Any]] = field(default_factory=dict)

    def place(self, pdu: Pdu, *, failed: str | None = None, keep_lpdu_hash: bool = True) -> Accepted:
        """Put an event at the next position; `failed` is why it is soft-failed."""
        if pdu.altered_from is not None:
            self.hold(pdu, "altered", "the content is not what its hashes say")
            self.altered[pdu.event_id] = pdu.altered_from
        before = self.snapshot.view.head_event_id
        self.snapshot, changes = self.snapshot.after(pdu, self.our_name, applies=failed is None)
        position = self.snapshot.view.head_position
        lpdu_hash = pdu.lpdu_hash if keep_lpdu_hash else None
        self.events.append(
            NewEvent(
                pdu.event_id, position, before, lpdu_hash, pdu.type, pdu.state_key, pdu.sender,
                pdu.canonical, failed, None if failed is not None else self._text(pdu),
            )
        )  # fmt: skip
        self.ranges += changes
        accepted = Accepted(pdu.event_id, position)
        if lpdu_hash is not None:
            self.lpdus[lpdu_hash, pdu.sender] = accepted
        if failed is None and (related := new_relation(pdu, position)) is not None:
            self.relations.append(related)
        if failed is None and pdu.state_key is not None:
            self._set_state(pdu, pdu.state_key, position)
        return accepted

    def _text(self, pdu: Pdu) -> str | None:
        """What a search finds it by; nothing in an encrypted room."""
        if self.snapshot.view.get("m.room.encryption") is not None:
            return None
        return searched_text(pdu.type, pdu.content)

    def hold(self, pdu: Pdu, kind: str, detail: str, against: str | None = None) -> None:
        """Keep what the hub sent as evidence, with the event `against` that contradicts it."""
        self.evidence.append(
            NewEvidence(
                pdu.event_id, kind, detail, pdu.altered_from or pdu.canonical, related_event_id=against
            )
        )

    def _set_state(self, pdu: Pdu, state_key: str, position: int) -> None:
        for index in range(len(self.states) - 1, -1, -1):
            entry = self.states[index]
            if entry.type == pdu.type and entry.state_key == state_key:
                self.states[index] = NewState(
                    entry.type,
                    entry.state_key,
                    entry.event_id,
                    entry.membership,
                    entry.from_position,
                    position,
                )
                break
        self.states.append(NewState(pdu.type, state_key, pdu.event_id, pdu.membership, position))
        if pdu.type == "m.room.member":
            self.members.append(state_key)
            if pdu.membership == "join":
                self.people[state_key] = pdu.content


@dataclass(frozen=True, slots=True)
class Held:
    """Evidence of a committed turn; `stored` is false for a case known before or one too many."""

    kind: str
    event_id: str
    stored: bool


@dataclass(frozen=True, slots=True)
class Appended:
    """What a committed turn did, for whoever has to be told."""

    outcomes: list[Outcome | GapFound]
    snapshot: Snapshot | None
    position_before: int = 0
    destinations: frozenset[str] = frozenset()
    members: tuple[str, ...] = ()
    settled_lpdus: tuple[tuple[str, Outcome], ...] = ()
    evidence: tuple[Held, ...] = ()
    xid: int = 0


async def append(
    db: Connection,
    room_id: str,
    proposals: Sequence[Proposal],
    cached: Snapshot | None,
    key: SigningKey,
    now_ms: int,
) -> Appended:
    """Decide and write a batch inside the caller's transaction."""
    row = await room_log.lock_head(db, room_id)
    if row is None:
        return Appended([NOT_FOUND] * len(proposals), None)
    if row.hub_server == key.server_name and _went_back(row, cached):
        await holds.hold(db, room_id, holds.RESTORED)
        row = replace(row, hold=holds.RESTORED)
    batch = Batch(room_id, key.server_name, await snapshots.refresh(db, row, cached))
    await _look_up_known(db, batch, proposals)
    if row.hub_server == key.server_name:
        outcomes: list[Outcome | GapFound] = [
            HELD if row.held and not p.recovered else _hub_decides(batch, p, key) for p in proposals
        ]
    else:
        outcomes = await _participant_decides(db, batch, proposals)
    return await write(db, batch, row, outcomes, now_ms)


def _went_back(row: RoomRow, cached: Snapshot | None) -> bool:
    """Memory has what the database has not: it was restored, or failed over, while we ran."""
    return cached is not None and row.hold is None and cached.view.head_position > row.head_position


async def _look_up_known(db: Executor, batch: Batch, proposals: Sequence[Proposal]) -> None:
    keys = [p.event.lpdu_key for p in proposals if not isinstance(p.event, EventDraft)]
    wanted = [key for key in keys if key is not None]
    if wanted:
        known = await room_log.known_lpdus(db, batch.room_id, wanted)
        batch.lpdus = {key: Accepted(event_id, at) for key, (event_id, at) in known.items()}
    txns = [p.txn for p in proposals if p.txn is not None]
    if txns:
        batch.known_txns = await client_transactions.known(db, batch.room_id, txns)


def _hub_decides(batch: Batch, proposal: Proposal, key: SigningKey) -> Outcome | GapFound:
    """We are the hub: complete, authorize, place; a duplicate is what stood there first."""
    event = proposal.event
    if isinstance(event, Pdu):
        return (
            _place_recovered(batch, event) if proposal.recovered else _place_completed(batch, event, proposal)
        )
    if isinstance(event, Lpdu):
        first = batch.lpdus.get(event.lpdu_key or NO_LPDU)
        if first is not None:
            return first
    if proposal.txn is not None:
        known = batch.known_txns.get(proposal.txn)
        if known is not None and known.event_id is not None:
            return Accepted(known.event_id, None)
    view = batch.snapshot.view
    decision = hub.decide(event, view, key)
    if isinstance(decision, hub.Reject):
        return Rejected(decision.errcode, decision.reason, decision.rule)
    return _place_on_hub(batch, decision.pdu, view, proposal.txn)


def _place_completed(batch: Batch, pdu: Pdu, proposal: Proposal) -> Outcome | GapFound:
    """An event we completed at this very head is allowed as it was then; at another it is not
    placed. Full events of anybody else are none of a hub's business (attack B1)."""
    if not proposal.completed:
        return Rejected("M_FORBIDDEN", "a full event is not accepted by the hub")
    first = batch.lpdus.get(pdu.lpdu_key or NO_LPDU)
    if first is not None:
        return first
    if pdu.prev_events != [batch.snapshot.view.head_event_id]:
        return GapFound(pdu.prev_events[0])
    return batch.place(pdu)


def _place_recovered(batch: Batch, pdu: Pdu) -> Outcome | GapFound:
    """An event we appended and lost is judged as a participant judges it, and placed only where it
    stood: at the head it names."""
    view = batch.snapshot.view
    decision = participant.decide(pdu, view, seen_lpdus=batch.lpdus)
    match decision:
        case participant.Apply() if pdu.unverified:
            return batch.place(pdu, failed=history.UNVERIFIED, keep_lpdu_hash=False)
        case participant.Apply():
            if pdu.type == "m.room.redaction":
                batch.redactions.append((pdu, _may_redact_others(view, pdu.sender)))
            return batch.place(pdu)
        case participant.Gap(prev_event_id=prev):
            return GapFound(prev)
        case _:
            return Rejected("M_FORBIDDEN", decision.reason)


def _place_on_hub(batch: Batch, pdu: Pdu, view: RoomView, txn: ClientTxn | None) -> Accepted:
    if pdu.type == "m.room.redaction":
        batch.redactions.append((pdu, _may_redact_others(view, pdu.sender)))
    accepted = batch.place(pdu)
    if txn is not None:
        batch.txns.append((txn, pdu.event_id, None))
        batch.known_txns[txn] = KnownTransaction(pdu.event_id, None)
    return accepted


def _may_redact_others(view: RoomView, user_id: str) -> bool:
    levels = PowerLevels.from_view(view)
    return levels.user(user_id) >= levels.action("redact")


async def _participant_decides(
    db: Executor, batch: Batch, proposals: Sequence[Proposal]
) -> list[Outcome | GapFound]:
    """Place what the hub sent in chain order, whatever order it came in (attack B11)."""
    outcomes: list[Outcome | GapFound] = [Rejected("M_FORBIDDEN", "not the hub of the room")] * len(proposals)
    waiting: dict[str, list[tuple[int, Pdu]]] = {}
    pdus = [(i, p.event) for i, p in enumerate(proposals) if isinstance(p.event, Pdu)]
    links = await _links(db, batch, [pdu for _, pdu in pdus])
    for index, pdu in pdus:
        if links.placed(pdu.event_id):
            outcomes[index] = Accepted(pdu.event_id, links.known[pdu.event_id])
        else:
            waiting.setdefault(pdu.prev_events[0] if pdu.prev_events else "", []).append((index, pdu))
    while candidates := waiting.pop(batch.snapshot.view.head_event_id, None):
        for index, pdu in candidates:
            outcomes[index] = _place_of_hub(batch, pdu, links)
    for candidates in waiting.values():
        for index, pdu in candidates:
            outcomes[index] = _place_of_hub(batch, pdu, links)
    if any(case.kind == "auth" for case in batch.evidence) and await _state_is_doubtful(db, batch, pdus):
        batch.evidence = [case for case in batch.evidence if case.kind != "auth"]
    return outcomes


async def _state_is_doubtful(db: Executor, batch: Batch, pdus: Sequence[tuple[int, Pdu]]) -> bool:
    """Whether state that we could not verify may have allowed what our state forbids: then nothing
    is proven against the hub."""
    if any(pdu.unverified and pdu.state_key is not None for _, pdu in pdus):
        return True
    return await history.has_unverified_state(db, batch.room_id)


@dataclass(frozen=True, slots=True)
class _Links:
    """What the list knows of some events: their positions, and what follows them in it."""

    known: dict[str, int | None]
    followers: dict[str, str]

    def placed(self, event_id: str) -> bool:
        return self.known.get(event_id) is not None


async def _links(db: Executor, batch: Batch, pdus: Sequence[Pdu]) -> _Links:
    previous = [event_id for pdu in pdus for event_id in pdu.prev_events]
    known = await room_log.known_events(db, batch.room_id, [pdu.event_id for pdu in pdus] + previous)
    head = batch.snapshot.view.head_event_id
    behind = [e for e in previous if known.get(e) is not None and e != head]
    return _Links(known, await room_log.successors(db, batch.room_id, behind) if behind else {})


def _place_of_hub(batch: Batch, pdu: Pdu, links: _Links) -> Outcome | GapFound:
    view = batch.snapshot.view
    if view.head_event_id == pdu.event_id:
        return Accepted(pdu.event_id, view.head_position)
    if pdu.event_id in links.known and view.head_event_id in pdu.prev_events:
        batch.hold(pdu, "future_state", "it was given as part of the state before our join")
        return Rejected("M_FORBIDDEN", "the event was given as state before")
    decision = participant.decide(pdu, view, seen_lpdus=batch.lpdus)
    match decision:
        case participant.Apply() if pdu.unverified:
            return batch.place(pdu, failed=history.UNVERIFIED, keep_lpdu_hash=False)
        case participant.Apply():
            if pdu.type == "m.room.redaction":
                batch.redactions.append((pdu, _may_redact_others(view, pdu.sender)))
            return batch.place(pdu)
        case participant.SoftFail(kind=kind, reason=reason) if pdu.unverified:
            return batch.place(pdu, failed=f"{kind}: {reason}", keep_lpdu_hash=False)
        case participant.SoftFail(kind=kind, reason=reason):
            first = batch.lpdus.get(pdu.lpdu_key or NO_LPDU) if kind == "replay" else None
            batch.hold(pdu, kind, reason, None if first is None else first.event_id)
            return batch.place(pdu, failed=f"{kind}: {reason}", keep_lpdu_hash=kind != "replay")
        case participant.Gap(prev_event_id=prev):
            return _place_elsewhere(batch, pdu, prev, links)
        case participant.Refuse(kind=kind, reason=reason):
            batch.hold(pdu, kind, reason)
            return Rejected("M_FORBIDDEN", reason)


def _place_elsewhere(batch: Batch, pdu: Pdu, prev: str, links: _Links) -> Outcome | GapFound:
    """An event that does not follow the head: its predecessor has another follower (a fork, attack
    B8), ended an earlier stay of ours, or is missing."""
    follower = links.followers.get(prev) or next(
        (e.event_id for e in batch.events if e.prev_event_id == prev), None
    )
    if follower is not None:
        batch.hold(pdu, "fork", "another event has the same predecessor", follower)
        return Rejected("M_FORBIDDEN", "the event forks the room")
    return EARLIER_STAY if links.placed(prev) else GapFound(prev)


async def write(
    db: Connection, batch: Batch, row: RoomRow, outcomes: list[Outcome | GapFound], now_ms: int
) -> Appended:
    """The list and its head, then what stands beside them, in the caller's transaction."""
    if not batch.events:
        held = await _hold(db, batch, now_ms)
        return Appended(outcomes, batch.snapshot, row.head_position, evidence=held)
    xid = await room_log.append(db, batch.room_id, batch.events, now_ms, after=row.head_event_id)
    if batch.states:
        await room_state.set_state(db, batch.room_id, batch.states)
        await _note_people(db, batch)
    if batch.ranges and row.hub_server == batch.our_name:
        await fanout.apply_changes(db, batch.room_id, batch.ranges)
    if batch.txns:
        await client_transactions.remember(db, batch.room_id, batch.txns, now_ms)
    if batch.relations:
        await relations.add(db, batch.room_id, batch.relations)
    if batch.redactions:
        await _apply_redactions(db, batch)
    settled = await _settle_own_lpdus(db, batch) if row.hub_server != batch.our_name else ()
    return Appended(
        outcomes,
        batch.snapshot,
        row.head_position,
        _destinations(batch) if row.hub_server == batch.our_name else frozenset(),
        tuple(batch.members),
        settled,
        await _hold(db, batch, now_ms),
        xid,
    )


async def _note_people(db: Executor, batch: Batch) -> None:
    """For the user directory. Of our own users their profile tells, not what they call themselves in
    one room; it is noted where they change it."""
    if any(state.type in _OPENS for state in batch.states):
        await room_log.set_public(db, batch.room_id, batch.snapshot.view.is_public())
    await people.note(db, batch.our_name, batch.people)


async def _hold(db: Executor, batch: Batch, now_ms: int) -> tuple[Held, ...]:
    return tuple(
        [Held(e.kind, e.event_id, await evidence.add(db, batch.room_id, e, now_ms)) for e in batch.evidence]
    )


def _destinations(batch: Batch) -> frozenset[str]:
    gone = {change.destination for change in batch.ranges}
    return frozenset((set(batch.snapshot.servers) | gone) - {batch.our_name})


async def _apply_redactions(db: Executor, batch: Batch) -> None:
    """A redaction counts when its sender wrote the target or has the redact level (protocol
    decision 8); never for another room's events, never for the create event."""
    targets = {pdu.event_id: _target(pdu) for pdu, _ in batch.redactions}
    found = await room_log.event_senders(db, batch.room_id, [t for t in targets.values() if t])
    pairs: list[tuple[str, str]] = []
    unseen: list[tuple[str, str, bool, str]] = []
    for pdu, moderator in batch.redactions:
        target = targets[pdu.event_id]
        if target is None:
            continue
        if target not in found:
            unseen.append((target, pdu.event_id, moderator, pdu.sender))
            continue
        sender, type_ = found[target]
        if type_ != "m.room.create" and (moderator or sender == pdu.sender):
            pairs.append((target, pdu.event_id))
    if pairs:
        await room_log.mark_redacted(db, batch.room_id, pairs)
        await relations.remove(db, batch.room_id, [target for target, _ in pairs])
    if unseen:
        await room_log.remember_redactions(db, batch.room_id, unseen)


def _target(pdu: Pdu) -> str | None:
    target = pdu.content.get("redacts")
    return target if isinstance(target, str) and len(target) <= 255 and "\0" not in target else None


async def _settle_own_lpdus(db: Executor, batch: Batch) -> tuple[tuple[str, Outcome], ...]:
    """The echo of our own LPDUs has come: (LPDU ID, outcome) pairs for those who wait."""
    mine = {
        e.lpdu_hash: e
        for e in batch.events
        if e.lpdu_hash is not None and e.sender.endswith(":" + batch.our_name)
    }
    if not mine:
        return ()
    sent = await lpdus.by_hash(db, batch.room_id, list(mine))
    in_order = sorted(sent.items(), key=lambda item: item[1].lpdu_id)
    return tuple([(own.lpdu_id, await _settle(db, batch, own, mine[h])) for h, own in in_order])


async def _settle(db: Executor, batch: Batch, own: OwnLpdu, echo: NewEvent) -> Outcome:
    """One echo: our event as we sent it, or the hub has forged it (attack B9)."""
    altered = batch.altered.get(echo.event_id)
    if altered is not None:
        batch.evidence.append(
            NewEvidence(echo.event_id, "forged_echo", "our event with other content", altered, own.lpdu)
        )
    elif own.pdu_event_id not in (None, echo.event_id):
        detail = f"it had named {own.pdu_event_id} in its answer"
        batch.evidence.append(NewEvidence(echo.event_id, "forged_echo", detail, echo.pdu, own.lpdu))
    if altered is None and echo.soft_failed is None:
        await lpdus.placed(db, batch.room_id, own.lpdu_id, echo.event_id)
        await client_transactions.settle(db, own.lpdu_id, echo.event_id)
        return Accepted(echo.event_id, None)
    reason = "the room's hub altered the event" if altered else "the room's rules forbid the event"
    await lpdus.end(db, batch.room_id, own.lpdu_id, "rejected", reason)
    await client_transactions.unsettle(db, own.lpdu_id)
    return Rejected("M_FORBIDDEN", reason)
