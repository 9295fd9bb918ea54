"""B11: what is missing before a hub's event is held, fetched, and applied in chain order, within bounds."""

from __future__ import annotations

import asyncio
from itertools import permutations

import pytest

from lmserver.federation_client.errors import Unreachable
from lmserver.protocol import hub
from lmserver.protocol.events import Pdu
from lmserver.rooms.gaps import MAX_ATTEMPTS, UNVERIFIED_AFTER, Budget
from lmserver.rooms.held import MAX_IN_ROOM, HeldEvents
from lmserver.rooms.outcomes import Accepted, Rejected
from lmserver.storage import evidence, gaps, room_log
from lmserver.storage.database import Database
from lmserver.storage.history import UNVERIFIED
from tests.kit.engines import EngineKit, ListHistory, NoHistory, adopt_join, engine_kit
from tests.kit.rooms import BOB, HUB, PARTICIPANT, ROOM, RoomBuilder, draft, key_of, lpdu, member, message

SMALL = Budget(pages=3)


@pytest.fixture
def room() -> RoomBuilder:
    built = RoomBuilder()
    built.add(member("join", sender=BOB))
    return built


async def joined(db: Database, room: RoomBuilder, history: object | None = None) -> EngineKit:
    kit = engine_kit(db, PARTICIPANT, history=history, in_request=SMALL, in_background=SMALL)
    await adopt_join(kit, room.pdus, HUB)
    return kit


async def complete(db: Database, room: RoomBuilder, join: int = 4) -> bool:
    """Whether our list is the hub's from our join on, and nothing is missing any more."""
    rows = await room_log.events_between(db, ROOM, -1, 2**62, 10**6, newest_first=False)
    same = [row.event_id for row in rows] == [pdu.event_id for pdu in room.pdus[join:]]
    return same and await gaps.get(db, ROOM) is None


async def pass_time(kit: EngineKit) -> None:
    await kit.db.execute("UPDATE room_gaps SET retry_at = 0")
    await kit.gaps.retry_due()


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_b11_any_order_of_arrival_becomes_the_hubs_order(
    db: Database, room: RoomBuilder, order: tuple[int, ...]
) -> None:
    """One event a transaction, and a hub that cannot be asked for anything."""
    kit = await joined(db, room, NoHistory())
    sent = [room.add(message(str(n))) for n in range(3)]
    for index in order:
        [outcome] = await kit.engine.accept_pdus(ROOM, [sent[index]])
        assert isinstance(outcome, Accepted)
    await pass_time(kit)
    rows = await room_log.events_between(db, ROOM, -1, 2**62, 10**6, newest_first=False)
    assert [row.event_id for row in rows] == [pdu.event_id for pdu in room.pdus[4:]]
    assert await kit.problems(ROOM) == []


async def test_b11_a_gap_beyond_the_budget_is_closed_in_steps_across_restarts(
    db: Database, room: RoomBuilder
) -> None:
    history = ListHistory(room.pdus)
    kit = await joined(db, room, history)
    for n in range(1050):
        room.add(message(str(n)) if n % 7 else draft("m.room.name", {"name": str(n)}, state_key=""))
    [outcome] = await kit.engine.accept_pdus(ROOM, [room.pdus[-1]])
    assert outcome == Accepted(room.pdus[-1].event_id, None)
    assert len(history.asked) == 3
    for step in range(20):
        if await complete(db, room):
            break
        if step % 3 == 0:
            kit = engine_kit(db, PARTICIPANT, history=history, in_request=SMALL, in_background=SMALL)
        await pass_time(kit)
    assert await complete(db, room)
    assert len(history.asked) < 30
    assert await kit.problems(ROOM) == []


async def test_b11_events_that_come_while_a_gap_is_open_are_not_lost(db: Database, room: RoomBuilder) -> None:
    history = ListHistory(room.pdus)
    kit = await joined(db, room, history)
    for n in range(420):
        room.add(message(str(n)))
    await kit.engine.accept_pdus(ROOM, [room.pdus[-1]])
    for n in range(3):
        later = room.add(message(f"later {n}"))
        room.add(message("this one is not sent"))
        assert isinstance((await kit.engine.accept_pdus(ROOM, [later]))[0], Accepted)
    last = room.pdus.pop()
    kit = engine_kit(db, PARTICIPANT, history=history, in_request=SMALL, in_background=SMALL)
    for _ in range(10):
        await pass_time(kit)
    assert await complete(db, room)
    assert last.prev_events == [room.pdus[-1].event_id]


class AwayHistory:
    """A hub that does not answer."""

    asked = 0

    async def past(self, hub: str, room_id: str, event_id: str, limit: int) -> list[tuple[Pdu, bool]]:
        self.asked += 1
        raise Unreachable("no answer")


async def test_b11_a_hub_that_is_away_is_asked_for_ever(db: Database, room: RoomBuilder) -> None:
    away = AwayHistory()
    kit = await joined(db, room, away)
    room.add(message("missing"))
    await kit.engine.accept_pdus(ROOM, [room.add(message("sent"))])
    for _ in range(MAX_ATTEMPTS + 1):
        await pass_time(kit)
    assert away.asked == MAX_ATTEMPTS + 2
    assert await evidence.of_room(db, ROOM) == []
    kit = engine_kit(db, PARTICIPANT, history=ListHistory(room.pdus))
    await pass_time(kit)
    assert await complete(db, room)


async def test_b11_a_hub_that_never_gives_what_comes_before_is_held_to_it(
    db: Database, room: RoomBuilder
) -> None:
    kit = await joined(db, room, NoHistory())
    hidden = room.view
    room.add(message("never given"))
    sent = room.add(message("sent"))
    await kit.engine.accept_pdus(ROOM, [sent])
    for _ in range(MAX_ATTEMPTS - 1):
        assert await gaps.get(db, ROOM) is not None
        await pass_time(kit)
    assert await gaps.get(db, ROOM) is None
    [case] = await evidence.of_room(db, ROOM)
    assert (case.kind, case.event_id, case.pdu) == ("gap", sent.event_id, sent.canonical)
    other = hub.complete_draft(message("goes on"), hidden, key_of(HUB))
    assert isinstance((await kit.engine.accept_pdus(ROOM, [other]))[0], Accepted)


class EndlessHistory:
    """A hub that makes up a past without end."""

    def __init__(self, view: object) -> None:
        self.asked = 0
        self.view = view

    async def past(self, hub_name: str, room_id: str, event_id: str, limit: int) -> list[tuple[Pdu, bool]]:
        self.asked += 1
        pdu = hub.complete_draft(message(str(self.asked)), self.view, key_of(HUB))  # type: ignore[arg-type]
        fields = {**pdu.fields, "prev_events": [f"$made-up-{self.asked}"]}
        return [(Pdu(fields, pdu.version), True)]


async def test_b11_a_past_without_end_costs_a_bounded_amount(
    db: Database, room: RoomBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "MAX_BOUNDARIES", 10)
    endless = EndlessHistory(room.view)
    kit = await joined(db, room, endless)
    room.add(message("missing"))
    await kit.engine.accept_pdus(ROOM, [room.add(message("sent"))])
    assert endless.asked == SMALL.pages
    for _ in range(MAX_ATTEMPTS + 10):
        await pass_time(kit)
    assert await gaps.get(db, ROOM) is None
    assert endless.asked < 50


async def test_b11_a_gap_that_ends_in_a_fork_is_not_closed(db: Database, room: RoomBuilder) -> None:
    kit = await joined(db, room)
    before, count = room.view, len(room.pdus)
    room.add(message("ours"))
    await kit.engine.accept_pdus(ROOM, [room.pdus[-1]])
    other = RoomBuilder.__new__(RoomBuilder)
    other.key, other.view, other.pdus = room.key, before, room.pdus[:count]
    for n in range(3):
        other.add(message(f"theirs {n}"))
    kit = engine_kit(db, PARTICIPANT, history=ListHistory(other.pdus), in_request=SMALL)
    await kit.engine.accept_pdus(ROOM, [other.pdus[-1]])
    assert [case.kind for case in await evidence.of_room(db, ROOM)] == ["fork"]
    row = await room_log.room(db, ROOM)
    assert row is not None and row.head_event_id == room.pdus[-1].event_id


async def test_b11_a_server_that_hides_its_keys_does_not_end_the_room(
    db: Database, room: RoomBuilder
) -> None:
    """What it wrote gets its place after a while, shown to nobody; everything else goes on."""
    history = ListHistory(room.pdus)
    kit = await joined(db, room, history)
    hidden = room.add(message("hidden", sender=BOB))
    name = room.add(draft("m.room.name", {"name": "hidden"}, state_key=""))
    history.bad = {hidden.event_id, name.event_id}
    await kit.engine.missed(ROOM, hidden.event_id)
    last = room.add(message("last"))
    await kit.engine.accept_pdus(ROOM, [last])
    for _ in range(UNVERIFIED_AFTER - 2):
        await pass_time(kit)
        assert not await complete(db, room)
    for _ in range(3):
        await pass_time(kit)
    assert await complete(db, room)
    rows = {r.event_id: r for r in await room_log.events_by_id(db, ROOM, [p.event_id for p in room.pdus])}
    assert [rows[e.event_id].soft_failed for e in (hidden, name, last)] == [UNVERIFIED, UNVERIFIED, None]
    view = await kit.engine.view(ROOM)
    assert view is not None and view.get("m.room.name") is None
    assert await kit.problems(ROOM) == []
    # What our state forbids because it lacks the hidden part is no proof against the hub.
    carol = f"@carol:{PARTICIPANT}"
    await kit.engine.accept_pdus(
        ROOM, [room.force(hub.complete_lpdu(lpdu(message(sender=carol)), room.view, key_of(HUB)))]
    )
    assert await evidence.of_room(db, ROOM) == []


async def test_b11_keys_that_come_in_time_leave_no_trace(db: Database, room: RoomBuilder) -> None:
    history = ListHistory(room.pdus)
    kit = await joined(db, room, history)
    late = room.add(message("late", sender=BOB))
    history.bad = {late.event_id}
    await kit.engine.accept_pdus(ROOM, [room.add(message("last"))])
    await pass_time(kit)
    assert not await complete(db, room)
    history.bad = set()
    await pass_time(kit)
    assert await complete(db, room)
    stored = await room_log.event(db, late.event_id, ROOM)
    assert stored is not None and stored.soft_failed is None


async def test_b11_what_stands_before_an_unverified_event_is_placed_at_once(
    db: Database, room: RoomBuilder
) -> None:
    history = ListHistory(room.pdus)
    kit = await joined(db, room, history)
    good = room.add(message("good"))
    history.bad = {room.add(message("late", sender=BOB)).event_id}
    await kit.engine.accept_pdus(ROOM, [room.add(message("last"))])
    row = await room_log.room(db, ROOM)
    assert row is not None and row.head_event_id == good.event_id


class SlowHistory(NoHistory):
    """A hub that takes its time."""

    def __init__(self) -> None:
        self.asked = 0
        self.go_on = asyncio.Event()

    async def past(self, hub: str, room_id: str, event_id: str, limit: int) -> list[tuple[Pdu, bool]]:
        self.asked += 1
        await self.go_on.wait()
        return []


async def test_p5_slow_hubs_hold_up_no_transaction_of_another(db: Database, room: RoomBuilder) -> None:
    """When every place is taken a gap is left for later, and its events are taken at once."""
    slow = SlowHistory()
    kit = await joined(db, room, slow)
    kit.gaps._places = asyncio.Semaphore(1)
    room.add(message("missing"))
    first, second = room.add(message("first")), room.add(message("second"))
    waiting = asyncio.create_task(kit.engine.accept_pdus(ROOM, [first]))
    while not slow.asked:
        await asyncio.sleep(0)
    assert await kit.engine.accept_pdus(ROOM, [second]) == [Accepted(second.event_id, None)]
    assert slow.asked == 1 and not waiting.done()
    slow.go_on.set()
    assert await waiting == [Accepted(first.event_id, None)]


async def test_a_refusal_is_still_told(db: Database, room: RoomBuilder) -> None:
    kit = await joined(db, room)
    wrong = draft("m.room.create", {"room_version": room.view.version.id}, state_key="")
    again = hub.create_event(wrong, room.view.version, key_of(HUB))
    assert isinstance((await kit.engine.accept_pdus(ROOM, [again]))[0], Rejected)


def test_r_what_is_held_is_bounded_for_each_room_and_in_all(room: RoomBuilder) -> None:
    pdus = [room.add(message(str(n))) for n in range(MAX_IN_ROOM + 5)]
    size = len(pdus[0].canonical)
    held = HeldEvents(max_bytes=size * 150)
    held.hold("!a", pdus)
    assert len(held.take("!a")) == MAX_IN_ROOM
    held.hold("!a", pdus)
    held.hold("!b", pdus)
    assert held.take("!a") == []
    assert len(held.take("!b")) == MAX_IN_ROOM
    assert held._bytes == 0


@pytest.mark.parametrize("order", list(permutations(range(1, 4))))
async def test_b11_what_came_too_early_in_one_transaction_survives_a_restart(
    db: Database, room: RoomBuilder, order: tuple[int, ...]
) -> None:
    """The hub was told that we have it; the last of the list may have come first."""
    kit = await joined(db, room, NoHistory())
    sent = [room.add(message(str(n))) for n in range(4)]
    outcomes = await kit.engine.accept_pdus(ROOM, [sent[index] for index in order])
    assert all(isinstance(o, Accepted) for o in outcomes)
    again = engine_kit(db, PARTICIPANT, history=ListHistory(room.pdus))
    await pass_time(again)
    assert await complete(db, room)
