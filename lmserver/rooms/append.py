"""The append transaction: one database transaction for everything that waits for a room.

Steps, and what a crash after each means:

1. take the room's row: nothing has happened yet;
2. dedupe by LPDU hash, event ID and client transaction: still nothing;
3. decide and complete every event against the head (pure), then sign them all;
4. write events and head, state, fan-out ranges and transaction IDs: all of it or nothing,
   at COMMIT. A crash after COMMIT and before the answer leaves an event stored and not
   acknowledged; the retry finds it in step 2.

A turn of nothing but messages, which is most, is decided against memory and does all of it in one statement,
which writes nothing where memory was behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lmserver.protocol import hub, participant
from lmserver.protocol.events import EventDraft, Lpdu, Pdu
from lmserver.protocol.signatures import LaterSignatures, Signer, SigningKey
from lmserver.rooms import placing
from lmserver.rooms import snapshot as snapshots
from lmserver.rooms.batch import Batch
from lmserver.rooms.outcomes import HELD, Accepted, ClientTxn, GapFound, Outcome, Proposal, Rejected
from lmserver.rooms.signing import Signing
from lmserver.rooms.snapshot import Snapshot
from lmserver.storage import (
    client_transactions,
    evidence,
    fanout,
    history,
    holds,
    messages,
    people,
    relations,
    room_log,
    room_state,
)
from lmserver.storage.client_transactions import KnownTransaction
from lmserver.storage.database import Connection, Database, Executor
from lmserver.storage.room_log import RoomRow

NOT_FOUND = Rejected("M_NOT_FOUND", "room not known")
NO_LPDU = ("", "")
_OPENS = ("m.room.join_rules", "m.room.history_visibility")


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


@dataclass(frozen=True, slots=True)
class Turn:
    """What is offered to a room, and what it is decided with: `cached` is the room as memory has it."""

    room_id: str
    proposals: Sequence[Proposal]
    cached: Snapshot | None
    key: SigningKey
    signing: Signing
    now_ms: int


async def append_at_once(db: Database, turn: Turn) -> Appended | None:
    """The same in one statement, for a turn of nothing but messages in a room whose hub we are. None, with
    nothing done, where it is more than that, or the head is not where memory has it, or an event was
    appended before: what was decided then counts for nothing. What the rules refuse now may have been
    appended before too, which only the database knows."""
    cached, our_name = turn.cached, turn.key.server_name
    if cached is None or cached.view.hub != our_name or not all(map(_is_message, turn.proposals)):
        return None
    batch, later = Batch(turn.room_id, our_name, cached), LaterSignatures(turn.key)
    outcomes = [_hub_decides(batch, p, later) for p in turn.proposals]
    if not batch.is_messages_only or not all(isinstance(o, Accepted) for o in outcomes):
        return None
    await turn.signing.finish(later)
    txns = [(txn, event_id) for txn, event_id, _ in batch.txns if event_id is not None]
    head = cached.view.head_event_id
    xid = await messages.append(db, turn.room_id, head, batch.seal(), txns, turn.now_ms)
    if xid is None:
        return None
    before = cached.view.head_position
    return Appended(outcomes, batch.snapshot, before, _destinations(batch), xid=xid)


def _is_message(proposal: Proposal) -> bool:
    """At a glance: what else it may need is known once it is decided."""
    event = proposal.event
    return not isinstance(event, Pdu) and event.state_key is None and event.type != "m.room.redaction"


async def append(db: Connection, turn: Turn) -> Appended:
    """Decide, sign and write a batch inside the caller's transaction."""
    room_id, proposals, our_name = turn.room_id, turn.proposals, turn.key.server_name
    row = await room_log.lock_head(db, room_id)
    if row is None:
        return Appended([NOT_FOUND] * len(proposals), None)
    if row.hub_server == our_name and _went_back(row, turn.cached):
        await holds.hold(db, room_id, holds.RESTORED)
        row = replace(row, hold=holds.RESTORED)
    batch = Batch(room_id, our_name, await snapshots.refresh(db, row, turn.cached))
    await _look_up_known(db, batch, proposals)
    if row.hub_server == our_name:
        later = LaterSignatures(turn.key)
        outcomes: list[Outcome | GapFound] = [
            HELD if row.held and not p.recovered else _hub_decides(batch, p, later) for p in proposals
        ]
        await turn.signing.finish(later)
    else:
        outcomes = await placing.place_all(db, batch, proposals)
    return await write(db, batch, row, outcomes, turn.now_ms)


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


def _hub_decides(batch: Batch, proposal: Proposal, signer: Signer) -> Outcome | GapFound:
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
    decision = hub.decide(event, view, signer)
    if isinstance(decision, hub.Reject):
        return Rejected(decision.errcode, decision.reason, decision.rule)
    return _place_on_hub(batch, decision.pdu, proposal.txn)


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
            return batch.place(pdu)
        case participant.Gap(prev_event_id=prev):
            return GapFound(prev)
        case _:
            return Rejected("M_FORBIDDEN", decision.reason)


def _place_on_hub(batch: Batch, pdu: Pdu, txn: ClientTxn | None) -> Accepted:
    accepted = batch.place(pdu)
    if txn is not None:
        batch.txns.append((txn, pdu.event_id, None))
        batch.known_txns[txn] = KnownTransaction(pdu.event_id, None)
    return accepted


async def write(
    db: Connection, batch: Batch, row: RoomRow, outcomes: list[Outcome | GapFound], now_ms: int
) -> Appended:
    """The list and its head, then what stands beside them, in the caller's transaction."""
    if not batch.events:
        held = await _hold(db, batch, now_ms)
        return Appended(outcomes, batch.snapshot, row.head_position, evidence=held)
    xid = await room_log.append(db, batch.room_id, batch.seal(), now_ms, after=row.head_event_id)
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
    settled = await placing.settle_own_lpdus(db, batch) if row.hub_server != batch.our_name else ()
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
