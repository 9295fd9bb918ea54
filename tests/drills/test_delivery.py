"""D10 and D3 at a participant: duplicates, disorder and gaps end in the hub's list, or in nothing."""

from __future__ import annotations

import random

import pytest

from lmserver.protocol import hub
from lmserver.protocol.events import Pdu
from lmserver.rooms.held import HeldEvents
from lmserver.rooms.outcomes import Accepted, Rejected
from lmserver.storage import evidence, room_log
from lmserver.storage.database import Database
from tests.drills.long import rounds
from tests.kit.engines import EngineKit, ListHistory, NoHistory, adopt_join, engine_kit
from tests.kit.rooms import (
    ALICE,
    BOB,
    HUB,
    PARTICIPANT,
    ROOM,
    RoomBuilder,
    draft,
    key_of,
    lpdu,
    member,
    message,
)


@pytest.fixture
def room() -> RoomBuilder:
    built = RoomBuilder()
    built.add(member("join", sender=BOB))
    return built


async def joined(db: Database, room: RoomBuilder, history: object | None = None) -> EngineKit:
    kit = engine_kit(db, PARTICIPANT, history=history)
    await adopt_join(kit, room.pdus, HUB)
    return kit


async def listed(db: Database) -> list[str]:
    rows = await room_log.events_between(db, ROOM, -1, 2**62, 10**6, newest_first=False)
    return [row.event_id for row in rows]


async def test_d10_duplicates_and_disorder_become_the_hubs_list(db: Database, room: RoomBuilder) -> None:
    kit = await joined(db, room)
    start = len(room.pdus) - 1
    for n in range(rounds(30, 300)):
        room.add(message(str(n)) if n % 3 else draft("m.room.name", {"name": str(n)}, state_key=""))
    sent = room.pdus[start + 1 :]
    pick = random.Random(5)
    for batch in (sent[:10], sent[5:20], sent[:30], sent):
        shuffled = pick.sample(batch, len(batch)) + pick.sample(batch, len(batch) // 2)
        await kit.engine.accept_pdus(ROOM, shuffled)
    assert await listed(db) == [pdu.event_id for pdu in room.pdus[start:]]
    assert await kit.problems(ROOM) == []


async def test_d10_control_without_holding_what_comes_early_the_list_differs(
    db: Database, room: RoomBuilder
) -> None:
    kit = await joined(db, room, NoHistory())
    kit.gaps._held = HeldEvents(max_bytes=0)
    first, second = room.add(message("1")), room.add(message("2"))
    await kit.engine.accept_pdus(ROOM, [second])
    await kit.engine.accept_pdus(ROOM, [first])
    assert await listed(db) != [pdu.event_id for pdu in room.pdus[-3:]]


async def test_b11_a_gap_is_filled_from_the_hub_in_chain_order(db: Database, room: RoomBuilder) -> None:
    history = ListHistory(room.pdus)
    kit = await joined(db, room, history)
    start = len(room.pdus) - 1
    for n in range(250):
        room.add(message(str(n)))
    [outcome] = await kit.engine.accept_pdus(ROOM, [room.pdus[-1]])
    assert isinstance(outcome, Accepted)
    assert await listed(db) == [pdu.event_id for pdu in room.pdus[start:]]
    assert 2 <= len(history.asked) <= 4
    assert await kit.problems(ROOM) == []


async def test_d3_a_repeated_transaction_changes_nothing(db: Database, room: RoomBuilder) -> None:
    kit = await joined(db, room)
    sent = [room.add(message(str(n))) for n in range(5)]
    first = await kit.engine.accept_pdus(ROOM, sent)
    before = await listed(db)
    restarted = engine_kit(db, PARTICIPANT)
    again = await restarted.engine.accept_pdus(ROOM, sent)
    assert [o.event_id for o in first if isinstance(o, Accepted)] == [
        o.event_id for o in again if isinstance(o, Accepted)
    ]
    assert await listed(db) == before


async def test_b8_two_events_after_one_are_a_fork_and_kept_as_evidence(
    db: Database, room: RoomBuilder
) -> None:
    kit = await joined(db, room)
    before = room.view
    good = room.add(message("for everybody"))
    other = hub.complete_draft(message("for you alone"), before, key_of(HUB))
    assert isinstance((await kit.engine.accept_pdus(ROOM, [good]))[0], Accepted)
    assert isinstance((await kit.engine.accept_pdus(ROOM, [other]))[0], Rejected)
    assert [(e.event_id, e.kind) for e in await evidence.of_room(db, ROOM)] == [(other.event_id, "fork")]


async def test_b5_an_old_lpdu_again_keeps_the_link_and_changes_no_state(
    db: Database, room: RoomBuilder
) -> None:
    """Bob's join is appended again by a dishonest hub after he has left."""
    kit = await joined(db, room)
    join = lpdu(member("join", sender=BOB))
    room.add(member("leave", sender=BOB))
    room.add(join)
    room.add(member("leave", sender=BOB))
    replayed: Pdu = room.force(hub.complete_lpdu(join, room.view, key_of(HUB)))
    outcomes = await kit.engine.accept_pdus(ROOM, room.pdus[-4:])
    assert [type(o) for o in outcomes] == [Accepted] * 4
    view = await kit.engine.view(ROOM)
    assert view is not None
    assert view.head_event_id == replayed.event_id
    assert view.membership(BOB) == "leave"
    assert [e.kind for e in await evidence.of_room(db, ROOM)] == ["replay"]
    assert await kit.problems(ROOM) == []


async def test_an_event_the_rules_forbid_is_linked_and_shown_to_nobody(
    db: Database, room: RoomBuilder
) -> None:
    kit = await joined(db, room)
    forbidden = room.force(
        hub.complete_draft(member("join", sender=ALICE, target=BOB), room.view, key_of(HUB))
    )
    after = room.force(hub.complete_draft(message("goes on"), room.view, key_of(HUB)))
    outcomes = await kit.engine.accept_pdus(ROOM, [forbidden, after])
    assert [type(o) for o in outcomes] == [Accepted, Accepted]
    stored = await room_log.event(db, forbidden.event_id, ROOM)
    assert stored is not None
    assert stored.soft_failed is not None
