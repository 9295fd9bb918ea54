"""What a participant does with the events that the room's hub sent: each at its place in the list, or kept
as evidence (D04 §Receiving Events)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmserver.protocol import participant
from lmserver.protocol.events import Pdu
from lmserver.rooms.batch import Batch
from lmserver.rooms.outcomes import Accepted, GapFound, Outcome, Proposal, Rejected
from lmserver.storage import client_transactions, history, lpdus, room_log
from lmserver.storage.database import Executor
from lmserver.storage.evidence import NewEvidence
from lmserver.storage.lpdus import OwnLpdu
from lmserver.storage.room_log import NewEvent

NO_LPDU = ("", "")
EARLIER_STAY = Rejected("M_FORBIDDEN", "the event belongs to an earlier stay in the room")


async def place_all(db: Executor, batch: Batch, proposals: Sequence[Proposal]) -> list[Outcome | GapFound]:
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


async def settle_own_lpdus(db: Executor, batch: Batch) -> tuple[tuple[str, Outcome], ...]:
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
