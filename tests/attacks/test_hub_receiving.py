"""Single events of a hostile hub that are wrong in one thing: dropped, refused or kept harmless."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest

from lmserver.protocol import canonical_json, hub
from lmserver.protocol.events import EventDraft, Pdu, parse_pdu
from lmserver.protocol.hashes import pdu_content_hash
from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.outcomes import Rejected
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.rooms.reading import Reading
from lmserver.storage import room_log
from tests.evilpeer.peer import UNSTABLE
from tests.evilpeer.prey import Prey
from tests.kit.engines import engine_kit
from tests.kit.rooms import (
    ALICE,
    BOB,
    HUB,
    MALLORY,
    PARTICIPANT,
    ROOM,
    draft,
    key_of,
    lpdu,
    member,
    message,
    now,
)  # fmt: skip

Fields = dict[str, Any]


def signed_by_hub(fields: Fields) -> Fields:
    """Everything a hub can make right made right: its hash and its signature."""
    changed = copy.deepcopy(fields)
    changed["hashes"] = {**changed.get("hashes", {}), "sha256": pdu_content_hash(changed)}
    pdu = Pdu(changed, LM_02)
    key = key_of(HUB)
    changed["signatures"] = {
        **changed["signatures"],
        HUB: {key.key_id: key.sign_base64(pdu.reference_bytes)},
    }
    return changed


def of_alice(prey: Prey, **changes: Any) -> Fields:
    pdu = hub.complete_draft(message("evil"), prey.hub.room.view, key_of(HUB))
    return signed_by_hub({**pdu.fields, **changes})


def of_bob(prey: Prey, **changes: Any) -> Fields:
    pdu = hub.complete_lpdu(lpdu(message("evil", sender=BOB)), prey.hub.room.view, key_of(HUB))
    return signed_by_hub({**pdu.fields, **changes})


def signed_as_a_whole(prey: Prey) -> Fields:
    """Bob's server's key over the full event, where it has to be over the LPDU."""
    fields = of_bob(prey)
    key = key_of(PARTICIPANT)
    whole = key.sign_base64(Pdu(fields, LM_02).reference_bytes)
    return {**fields, "signatures": {**fields["signatures"], PARTICIPANT: {key.key_id: whole}}}


def hub_signs_the_lpdu(prey: Prey) -> Fields:
    fields = of_bob(prey)
    key = key_of(HUB)
    part = key.sign_base64(Pdu(fields, LM_02).lpdu_reference_bytes)
    return {**fields, "signatures": {**fields["signatures"], HUB: {key.key_id: part}}}


def without(fields: Fields, *names: str) -> Fields:
    return {key: value for key, value in fields.items() if key not in names}


def twice_the_same(prey: Prey) -> Fields:
    head = prey.hub.room.view.head_event_id
    return of_bob(prey, prev_events=[head, head])


DROPPED: dict[str, Any] = {
    "b13_no_predecessor": lambda p: of_alice(p, prev_events=[]),
    "b13_no_predecessor_through_a_hub": lambda p: of_bob(p, prev_events=[]),
    "b13_one_named_twice": twice_the_same,
    "b13_a_predecessor_that_is_no_id": lambda p: of_alice(p, prev_events=["x"]),
    "b13_predecessors_that_are_none": lambda p: of_alice(p, prev_events=5),
    "b13_twenty_one": lambda p: of_alice(p, prev_events=[f"${n}" for n in range(21)]),
    "h4_no_lpdu_hash": lambda p: {**of_bob(p), "hashes": {"sha256": "A" * 43}},
    "h4_lpdu_hash_without_a_hub": lambda p: without(of_bob(p), "hub_server"),
    "h4_no_pdu_hash": lambda p: {**of_bob(p), "hashes": {"lpdu": of_bob(p)["hashes"]["lpdu"]}},
    "h4_md5": lambda p: {**of_alice(p), "hashes": {"md5": "x"}},
    "s4_the_sender_signed_the_whole": signed_as_a_whole,
    "s4_the_hub_signed_the_part": hub_signs_the_lpdu,
    "s1_no_signature_of_the_sender": lambda p: {
        **of_bob(p), "signatures": {HUB: of_bob(p)["signatures"][HUB]}},
    "s1_no_signature_of_the_hub": lambda p: {
        **of_bob(p), "signatures": {PARTICIPANT: of_bob(p)["signatures"][PARTICIPANT]}},
}  # fmt: skip


@pytest.mark.parametrize("name", list(DROPPED))
async def test_b13_h4_s4_what_is_no_event_of_the_list_is_dropped(prey: Prey, name: str) -> None:
    """No trace of it, and an event beside it in the transaction is taken."""
    await prey.join()
    fields = DROPPED[name](prey)
    honest = prey.hub.room.add(message("honest"))
    status, answer = await prey.hub.send(PARTICIPANT, "t", [fields, honest.fields])
    assert (status, answer["failed_pdus"]) == (200, {})
    row = await room_log.room(prey.db, ROOM)
    assert row is not None and row.head_event_id == honest.event_id
    assert await prey.db.fetchval("SELECT count(*) FROM evidence") == 0
    assert await prey.victim.problems(ROOM) == []


@pytest.mark.parametrize("number", [b"9007199254740992", b"-9223372036854775808", b"1e999", b"1.5", b"NaN"])
async def test_j5_a_number_no_event_may_have_is_not_stored(prey: Prey, number: bytes) -> None:
    """The hub's own bytes, signed for the request: nothing of them comes in, and nothing could go out."""
    await prey.join()
    body = canonical_json.encode({"pdus": [of_alice(prey, content={"x": 424242})]})
    body = body.replace(b"424242", number)
    path = f"{UNSTABLE}/send/t"
    header = prey.hub.authorization("PUT", path, PARTICIPANT, body)
    status, _ = await prey.hub.ask_raw(PARTICIPANT, "PUT", path, body, header)
    assert status in (200, 400)
    assert await prey.db.fetchval("SELECT count(*) FROM events WHERE type = 'm.room.message'") == 0
    honest = prey.hub.room.add(message("honest"))
    assert await prey.hub.deliver(PARTICIPANT, "t2", honest) == {}


async def test_j9_65536_bytes_are_taken_and_one_more_is_refused_by_name(prey: Prey) -> None:
    await prey.join()
    pad = 65536 - len(canonical_json.encode(of_alice(prey, content={"body": ""})))
    edge = parse_pdu(of_alice(prey, content={"body": "x" * pad}), LM_02)
    assert len(edge.canonical) == 65536
    assert await prey.hub.deliver(PARTICIPANT, "t1", prey.hub.room.force(edge)) == {}
    over = of_alice(prey, content={"body": "x" * (pad + 1)})
    status, answer = await prey.hub.send(PARTICIPANT, "t2", [over])
    assert status == 200
    [failed] = answer["failed_pdus"].values()
    assert failed == {"error": "the event is too large"}
    row = await room_log.room(prey.db, ROOM)
    assert row is not None and row.head_event_id == edge.event_id


@pytest.mark.parametrize("when", [0, -(2**53 - 1), 2**53 - 1, -1])
async def test_b25_a_time_that_cannot_be_orders_nothing(prey: Prey, when: int) -> None:
    await prey.join()
    first = prey.hub.room.add(message("first"))
    liar = prey.hub.room.add(EventDraft(ROOM, "m.room.message", ALICE, {"body": "liar"}, when))
    last = prey.hub.room.add(message("last"))
    assert await prey.hub.deliver(PARTICIPANT, "t", last, liar, first) == {}
    reading = Reading(prey.db, now)
    access = await reading.access(BOB, ROOM)
    assert access is not None
    page = await reading.backwards(access, 2**62, 3, lambda event: True)
    assert [e.event_id for e in page.events] == [last.event_id, liar.event_id, first.event_id]
    for rendered in await reading.render(access, prey_reader(), page.events):
        assert abs(rendered["unsigned"]["age"]) < 2**53
        orjson.dumps(rendered)


def prey_reader() -> Any:
    from lmserver.rooms.access import Reader

    return Reader(BOB)


# -- redactions (A24) -------------------------------------------------------------------------------


def redaction(target: Any, sender: str = ALICE) -> EventDraft:
    return draft("m.room.redaction", {"redacts": target}, sender=sender)


async def redacted(prey: Prey) -> set[str]:
    rows = await prey.db.fetch("SELECT event_id FROM events WHERE redacted_by IS NOT NULL")
    return {r["event_id"] for r in rows}


async def test_a24_a_redaction_counts_for_own_events_and_for_moderators_only(prey: Prey) -> None:
    """The hub appends them all: what they do is each server's to decide (protocol decision 8)."""
    await prey.join()
    room = prey.hub.room
    said = [room.add(message(str(n), sender=sender)) for n, sender in enumerate((ALICE, BOB, BOB, BOB))]
    room.add(redaction(said[0].event_id, BOB))
    room.add(redaction(said[1].event_id, BOB))
    room.add(redaction(said[2].event_id, ALICE))
    create = room.pdus[0].event_id
    room.add(redaction(create))
    room.add(redaction(create, BOB))
    assert await prey.hub.deliver(PARTICIPANT, "t", *room.pdus[-9:]) == {}
    assert await redacted(prey) == {said[1].event_id, said[2].event_id}
    assert await prey.victim.problems(ROOM) == []


async def test_a24_redactions_in_a_circle_and_of_nothing_end(prey: Prey) -> None:
    await prey.join()
    room = prey.hub.room
    first = room.add(redaction("$not-yet"))
    second = room.add(redaction(first.event_id))
    room.add(redaction(second.event_id))
    for odd in (None, 5, [], {"a": 1}, "x" * 10_000, "\0", "", room.view.head_event_id):
        room.add(redaction(odd))
    assert await prey.hub.deliver(PARTICIPANT, "t", *room.pdus[-11:]) == {}
    assert {first.event_id, second.event_id} <= await redacted(prey)
    assert await prey.victim.problems(ROOM) == []


async def test_a24_an_event_of_another_room_is_not_redacted(prey: Prey) -> None:
    await prey.join()
    await prey.db.execute(
        "INSERT INTO events (room_id, event_id, position, type, sender, pdu, received_ts)"
        " VALUES ('!other:x', '$elsewhere', 1, 'm.room.message', $1, '{}', 0)",
        ALICE,
    )
    assert await prey.hub.deliver(PARTICIPANT, "t", prey.hub.room.add(redaction("$elsewhere"))) == {}
    assert await redacted(prey) == set()


async def test_a24_who_had_the_level_when_it_was_sent_counts_and_not_who_has_it_later(prey: Prey) -> None:
    await prey.join()
    room = prey.hub.room
    said = room.add(message("x"))
    room.add(redaction(said.event_id, BOB))
    room.add(draft("m.room.power_levels", {"users": {ALICE: 100, BOB: 100}}, state_key=""))
    assert await prey.hub.deliver(PARTICIPANT, "t", *room.pdus[-3:]) == {}
    assert await redacted(prey) == set()


# -- our own LPDUs ----------------------------------------------------------------------------------


async def test_b7_equal_messages_in_one_millisecond_are_two_lpdus(prey: Prey) -> None:
    await prey.join()
    kit = engine_kit(prey.db, PARTICIPANT, clock=lambda: 5, answer_seconds=0.01)
    same = EventDraft(ROOM, "m.room.message", BOB, {"body": "same"}, 5)
    for _ in range(3):
        with pytest.raises(Exception, match=ROOM):
            await kit.engine.send([same])
    rows = await prey.db.fetch("SELECT lpdu_id, lpdu_hash FROM outbound_lpdus")
    assert len({r["lpdu_id"] for r in rows}) == len({r["lpdu_hash"] for r in rows}) == 3


async def test_b7_a_time_that_a_bridge_says_is_kept_and_moves_no_other_event(prey: Prey) -> None:
    """Of the past as of the future, up to the end of time: only what would be the same LPDU moves on."""
    await prey.join()
    kit = engine_kit(prey.db, PARTICIPANT, answer_seconds=0.01)
    times = [5_000, 2**53 - 1, 1_000, 5_001]
    for at in times:
        with pytest.raises(HubSilent):
            await kit.engine.send([EventDraft(ROOM, "m.room.message", BOB, {"body": "x"}, at)])
    [refused] = await kit.engine.send([EventDraft(ROOM, "m.room.message", BOB, {"body": "x"}, times[1])])
    assert isinstance(refused, Rejected)
    rows = await prey.db.fetch("SELECT lpdu FROM outbound_lpdus ORDER BY seq")
    assert [orjson.loads(r["lpdu"])["origin_server_ts"] for r in rows] == times


async def test_b3_an_lpdu_or_an_event_without_a_place_is_not_taken_by_a_participant(prey: Prey) -> None:
    await prey.join()
    prey.hub.room.add(member("join", sender=MALLORY))
    await prey.hub.deliver(PARTICIPANT, "t0", prey.hub.room.pdus[-1])
    loose = lpdu(message(sender=MALLORY))
    for peer in (prey.hub, prey.evil):
        status, answer = await peer.send(PARTICIPANT, f"t-{peer.name}", [loose.fields])
        assert status == 200 and not answer.get("org.lmserver.accepted")
    assert await prey.db.fetchval("SELECT count(*) FROM events WHERE type = 'm.room.message'") == 0
