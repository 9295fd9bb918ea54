"""The append transaction as a hub: order, duplicates, retries, and what is left after each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lmserver.protocol.errors import AuthRejected
from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.outcomes import HELD, Accepted, ClientTxn, Proposal, Rejected, RoomBusy
from lmserver.rooms.turns import MAX_WAITING
from lmserver.storage import fanout, holds, room_log, room_state
from lmserver.storage.database import Database, UniqueViolation
from tests.kit.engines import EngineKit, engine_kit
from tests.kit.rooms import (
    ALICE,
    BOB,
    EVIL,
    HUB,
    MALLORY,
    PARTICIPANT,
    ROOM,
    draft,
    key_of,
    lpdu,
    member,
    message,
    opening,
)  # fmt: skip


@pytest.fixture
async def hub(db: Database) -> EngineKit:
    kit = engine_kit(db, HUB)
    await kit.engine.create(LM_02, opening())
    return kit


async def positions(kit: EngineKit) -> list[int | None]:
    rows = await room_log.events_between(kit.db, ROOM, -1, 10**6, 10**6, newest_first=False)
    return [row.position for row in rows]


async def test_a_new_room_is_verified_and_has_no_gap(hub: EngineKit) -> None:
    assert await positions(hub) == [0, 1, 2, 3]
    assert await hub.problems(ROOM) == []
    view = await hub.engine.view(ROOM)
    assert view is not None and view.membership(ALICE) == "join" and view.hub == HUB


async def test_a_room_that_may_not_begin_leaves_nothing(db: Database) -> None:
    kit = engine_kit(db, HUB)
    with pytest.raises(AuthRejected):
        await kit.engine.create(LM_02, [*opening(), message(sender=f"@nobody:{HUB}")])
    assert await room_log.room(db, ROOM) is None
    assert await positions(kit) == []


async def test_a10_a_room_id_that_is_taken_stays_with_the_first_create(hub: EngineKit) -> None:
    with pytest.raises(UniqueViolation):
        await hub.engine.create(LM_02, opening())
    assert await hub.problems(ROOM) == []


async def test_what_waits_together_is_one_chain(hub: EngineKit) -> None:
    outcomes = await asyncio.gather(*(hub.engine.send([message(str(n))]) for n in range(100)))
    placed = sorted(o.position or 0 for [o] in outcomes if isinstance(o, Accepted))
    assert placed == list(range(4, 104))
    assert await hub.problems(ROOM) == []


async def test_one_refused_event_does_not_harm_the_others(hub: EngineKit) -> None:
    good, bad = lpdu(member("join", sender=BOB)), lpdu(message(sender=MALLORY))
    outcomes = await hub.engine.accept_lpdus(ROOM, [bad, good, lpdu(message(sender=BOB))])
    assert isinstance(outcomes[0], Rejected)
    assert [type(o) for o in outcomes[1:]] == [Accepted, Accepted]
    assert await hub.problems(ROOM) == []


async def test_b6_the_same_lpdu_is_appended_once(hub: EngineKit) -> None:
    await hub.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    sent = lpdu(message(sender=BOB))
    together = await hub.engine.accept_lpdus(ROOM, [sent, sent])
    again = await asyncio.gather(*(hub.engine.accept_lpdus(ROOM, [sent]) for _ in range(5)))
    ids = {o.event_id for o in [*together, *(o for [o] in again)] if isinstance(o, Accepted)}
    assert len(ids) == 1
    assert len(await positions(hub)) == 6


async def test_b6_other_lpdus_of_equal_text_are_two_events(hub: EngineKit) -> None:
    """Control of the test above: it is the LPDU that is deduplicated, not the text."""
    await hub.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    outcomes = await hub.engine.accept_lpdus(
        ROOM, [lpdu(message("same", sender=BOB)), lpdu(message("same", sender=BOB))]
    )
    assert len({o.event_id for o in outcomes if isinstance(o, Accepted)}) == 2


async def test_a_client_transaction_gives_one_event(hub: EngineKit) -> None:
    txn = ClientTxn(ALICE, "DEVICE", "t1")
    first, second = await asyncio.gather(
        hub.engine.send([message("once")], txn), hub.engine.send([message("once")], txn)
    )
    fresh = engine_kit(hub.db, HUB)
    third = await fresh.engine.send([message("once")], txn)
    assert len({o.event_id for [o] in (first, second, third) if isinstance(o, Accepted)}) == 1
    other = await hub.engine.send([message("once")], ClientTxn(ALICE, "OTHER", "t1"))
    assert other != first


async def test_b1_a_full_pdu_is_not_accepted_by_the_hub(hub: EngineKit) -> None:
    from lmserver.protocol import hub as hub_rules

    view = await hub.engine.view(ROOM)
    assert view is not None
    pdu = hub_rules.complete_draft(message(sender=BOB), view, key_of(PARTICIPANT))
    [outcome] = await hub.engine.accept_pdus(ROOM, [pdu])
    assert isinstance(outcome, Rejected)


async def test_a23_a_ban_that_waits_before_a_message_stops_it(hub: EngineKit) -> None:
    await hub.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    ban, said = await asyncio.gather(
        hub.engine.send([member("ban", target=BOB)]),
        hub.engine.accept_lpdus(ROOM, [lpdu(message(sender=BOB))]),
    )
    assert isinstance(ban[0], Accepted) and isinstance(said[0], Rejected)


async def test_a7_self_demotion_counts_for_the_next_event(hub: EngineKit) -> None:
    await hub.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    lower = draft("m.room.power_levels", {"users": {ALICE: 0}}, state_key="")
    outcomes = await hub.engine.send([lower, member("ban", target=BOB)])
    assert [type(o) for o in outcomes] == [Accepted, Rejected]


async def test_ranges_follow_who_is_in_the_room(hub: EngineKit) -> None:
    await hub.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    carol = f"@carol:{PARTICIPANT}"
    await hub.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=carol))])
    await hub.engine.accept_lpdus(ROOM, [lpdu(member("leave", sender=BOB))])
    await hub.engine.accept_lpdus(ROOM, [lpdu(member("leave", sender=carol))])
    await hub.engine.send([member("ban", target=MALLORY)])
    rows = await hub.db.fetch("SELECT * FROM outbound_ranges ORDER BY from_position")
    found = [(r["destination"], r["from_position"], r["until_position"], r["acked_position"]) for r in rows]
    assert found == [(PARTICIPANT, 4, 7, 4), (EVIL, 8, 8, 7)]
    assert hub.listener.woken == {PARTICIPANT, EVIL}


async def test_state_at_every_position_is_what_replay_says(hub: EngineKit) -> None:
    await hub.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    await hub.engine.send([draft("m.room.name", {"name": str(n)}, state_key="") for n in range(5)])
    await hub.engine.send([message()])
    rows = await room_log.events_between(hub.db, ROOM, -1, 100, 100, newest_first=False)
    from lmserver.protocol import canonical_json

    replayed: dict[tuple[str, str], str] = {}
    for row in rows:
        assert row.position is not None
        stored = await room_state.state_at(hub.db, ROOM, row.position)
        found = {}
        for event in stored:
            fields = canonical_json.parse_object(event.pdu)
            found[fields["type"], fields["state_key"]] = event.event_id
        assert found == replayed
        fields = canonical_json.parse_object(row.pdu)
        if "state_key" in fields:
            replayed[fields["type"], fields["state_key"]] = row.event_id


async def test_publish_comes_with_the_transaction_that_committed(hub: EngineKit) -> None:
    hub.listener.published.clear()
    await hub.engine.send([member("invite", target=f"@carol:{HUB}")])
    [(keys, xid)] = hub.listener.published
    assert keys == [ROOM, f"@carol:{HUB}"]
    stored = await hub.db.fetchval("SELECT max(stream_xid::text::bigint) FROM events")
    assert xid == stored


async def test_redaction_by_the_sender_and_by_a_moderator_count_and_others_do_not(hub: EngineKit) -> None:
    await hub.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=u)) for u in (BOB, MALLORY)])
    [own] = await hub.engine.accept_lpdus(ROOM, [lpdu(message("own", sender=BOB))])
    [other] = await hub.engine.accept_lpdus(ROOM, [lpdu(message("other", sender=BOB))])
    [third] = await hub.engine.accept_lpdus(ROOM, [lpdu(message("third", sender=BOB))])
    assert isinstance(own, Accepted) and isinstance(other, Accepted) and isinstance(third, Accepted)
    view = await hub.engine.view(ROOM)
    create = view.get("m.room.create") if view else None
    assert create is not None
    await hub.engine.accept_lpdus(
        ROOM,
        [
            lpdu(draft("m.room.redaction", {"redacts": own.event_id}, sender=BOB)),
            lpdu(draft("m.room.redaction", {"redacts": other.event_id}, sender=MALLORY)),
        ],
    )
    await hub.engine.send(
        [
            draft("m.room.redaction", {"redacts": third.event_id}),
            draft("m.room.redaction", {"redacts": create.event_id}),
        ]
    )
    redacted = {
        row.event_id
        for row in await room_log.events_between(hub.db, ROOM, -1, 100, 100, newest_first=False)
        if row.redacted_by is not None
    }
    assert redacted == {own.event_id, third.event_id}


async def test_too_many_waiting_are_told_so(hub: EngineKit) -> None:
    with pytest.raises(RoomBusy):
        await hub.turns.submit(ROOM, [Proposal(message())] * (MAX_WAITING + 1))
    assert isinstance((await hub.engine.send([message()]))[0], Accepted)


async def test_an_unknown_room_is_not_found(hub: EngineKit) -> None:
    [outcome] = await hub.engine.accept_lpdus(f"!other:{HUB}", [lpdu(message(sender=BOB))])
    assert outcome == Rejected("M_NOT_FOUND", "room not known")


async def test_another_process_may_append_at_any_moment(hub: EngineKit) -> None:
    """A snapshot of an old head is brought up to date under the room's row."""
    other = engine_kit(hub.db, HUB)
    for n in range(10):
        kit = (hub, other)[n % 2]
        name = draft("m.room.name", {"name": str(n)}, state_key="")
        assert isinstance((await kit.engine.send([name, message(str(n))]))[0], Accepted)
    assert await hub.problems(ROOM) == []


async def test_ranges_are_applied_in_order(db: Database) -> None:
    changes: list[fanout.RangeChange] = [
        fanout.OpenRange("a.test", 5), fanout.CloseRange("a.test", 7), fanout.OpenRange("a.test", 9),
    ]  # fmt: skip
    await db.run(lambda c: fanout.apply_changes(c, ROOM, changes[:2]))
    rows = await db.fetch("SELECT from_position, until_position FROM outbound_ranges ORDER BY 1")
    assert [tuple(r.values()) for r in rows] == [(5, 7)]
    # The answer to the next join gives all there was: nothing of before is sent after it.
    await db.run(lambda c: fanout.apply_changes(c, ROOM, changes[2:]))
    rows = await db.fetch("SELECT from_position, until_position FROM outbound_ranges ORDER BY 1")
    assert [tuple(r.values()) for r in rows] == [(9, None)]


# -- messages in one statement ----------------------------------------------------------------------------


@pytest.fixture
def transactions(hub: EngineKit, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each transaction of several statements."""
    seen: list[str] = []
    run = hub.db.run

    async def noted(work: Any) -> Any:
        seen.append("transaction")
        return await run(work)

    monkeypatch.setattr(hub.db, "run", noted)
    return seen


async def test_messages_are_one_statement(hub: EngineKit, transactions: list[str]) -> None:
    await asyncio.gather(
        *(hub.engine.send([message(str(n))], ClientTxn(ALICE, "D", str(n))) for n in range(20))
    )
    assert transactions == []
    assert await hub.problems(ROOM) == []
    assert await positions(hub) == list(range(24))


async def test_a_client_that_repeats_itself_gets_the_first_event(
    hub: EngineKit, transactions: list[str]
) -> None:
    txn = ClientTxn(ALICE, "D", "t1")
    [first] = await hub.engine.send([message("a")], txn)
    again, other = await asyncio.gather(
        hub.engine.send([message("a")], txn), hub.engine.send([message("b")], ClientTxn(ALICE, "D", "t2"))
    )
    assert isinstance(first, Accepted)
    assert isinstance(again[0], Accepted)
    assert again[0].event_id == first.event_id
    assert isinstance(other[0], Accepted)
    assert transactions == ["transaction"]  # of the repetition and what came with it
    assert len(await positions(hub)) == 6


async def test_what_another_process_appended_is_followed(hub: EngineKit, transactions: list[str]) -> None:
    other = engine_kit(hub.db, HUB)
    await hub.engine.send([message("ours")])
    await other.engine.send([message("theirs")])
    transactions.clear()
    [outcome] = await hub.engine.send([message("ours again")])
    assert isinstance(outcome, Accepted)
    assert outcome.position == 6
    assert transactions == ["transaction"]
    assert await hub.problems(ROOM) == []


async def test_what_memory_would_allow_is_decided_at_the_head(hub: EngineKit) -> None:
    """Another process has banned the sender; memory does not know it yet."""
    await hub.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    other = engine_kit(hub.db, HUB)
    await other.engine.send([member("ban", sender=ALICE, target=BOB)])
    [outcome] = await hub.engine.accept_lpdus(ROOM, [lpdu(message(sender=BOB))])
    assert isinstance(outcome, Rejected)
    assert await hub.problems(ROOM) == []


async def test_b6_a_repetition_is_answered_though_its_sender_may_not_speak_any_more(
    hub: EngineKit, transactions: list[str]
) -> None:
    """It was taken when it was allowed. It comes beside a message, whose turn might be decided by memory."""
    carol = f"@carol:{HUB}"
    await hub.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    await hub.engine.send([member("join", sender=carol)])
    sent, txn = lpdu(message(sender=BOB)), ClientTxn(carol, "D", "t1")
    firsts = [*await hub.engine.accept_lpdus(ROOM, [sent])]
    firsts += await hub.engine.send([message(sender=carol)], txn)
    quiet = {"users": {ALICE: 100}, "events_default": 50}
    await hub.engine.send([draft("m.room.power_levels", quiet, state_key="")])
    outcomes = await hub.turns.submit(
        ROOM, [Proposal(sent), Proposal(message(sender=carol), txn), Proposal(message())]
    )
    assert all(isinstance(o, Accepted) for o in [*firsts, *outcomes])
    ids = [o.event_id for o in [*outcomes[:2], *firsts] if isinstance(o, Accepted)]
    assert ids[:2] == ids[2:]
    assert await hub.problems(ROOM) == []


async def test_b21_a_turn_that_fails_is_taken_again_one_by_one(hub: EngineKit) -> None:
    """Two transactions that are kept under the same text, in one turn: only who sent them may suffer."""
    odd = ClientTxn(ALICE, "D", "\x1f$x\x1ft"), ClientTxn(ALICE, "D", "t", redacts="$x")
    assert odd[0].stored == odd[1].stored
    outcomes = await asyncio.gather(
        hub.engine.send([draft("m.room.redaction", {"redacts": "$x"})], odd[1]),
        hub.engine.send([message("odd")], odd[0]),
        hub.engine.send([message("innocent")]),
    )
    assert all(isinstance(o, Accepted) for [o] in outcomes)
    assert len({o.event_id for [o] in outcomes if isinstance(o, Accepted)}) == 2
    assert await hub.problems(ROOM) == []


async def test_a_room_that_its_operator_released_is_like_any_other(
    hub: EngineKit, transactions: list[str]
) -> None:
    assert await holds.hold(hub.db, ROOM, holds.RESTORED)
    assert await hub.engine.send([message()]) == [HELD]
    assert await holds.release(hub.db, ROOM, decided=True)
    transactions.clear()
    [outcome] = await hub.engine.send([message()])
    assert isinstance(outcome, Accepted)
    assert transactions == []
