"""A participant trusts the hub with order, never with content."""

from __future__ import annotations

from typing import Any

import pytest

from lmserver.protocol import hub, participant
from lmserver.protocol.events import Pdu, parse_lpdu
from lmserver.protocol.room_versions import LM_02
from lmserver.protocol.room_view import RoomView
from lmserver.protocol.signatures import check_event_signatures
from tests.kit.rooms import (
    ALICE,
    BOB,
    HUB,
    KEYS,
    PARTICIPANT,
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


def decide(pdu: Pdu, view: RoomView, seen: set[tuple[str, str]] | None = None) -> participant.Decision:
    return participant.decide(pdu, view, seen_lpdus=seen or set())


def test_every_event_of_an_honest_hub_applies() -> None:
    built = RoomBuilder()
    view = built.view
    for event in (member("join", sender=BOB), message(sender=BOB), message()):
        pdu = built.add(event)
        assert isinstance(decide(pdu, view), participant.Apply)
        view = hub.advance(view, pdu)


def test_b11_an_event_after_a_hole_is_a_gap_and_never_applied(room: RoomBuilder) -> None:
    before = room.view
    room.add(message("missing"))
    later = room.add(message("later"))
    assert decide(later, before) == participant.Gap(later.prev_events[0])


def test_b5_the_same_lpdu_again_is_soft_failed(room: RoomBuilder) -> None:
    sent = lpdu(message(sender=BOB))
    room.add(sent)
    again = hub.complete_lpdu(sent, room.view, key_of(HUB))
    decision = decide(again, room.view, {(sent.lpdu_hash or "", BOB)})
    assert isinstance(decision, participant.SoftFail) and decision.kind == "replay"


def test_an_event_the_rules_forbid_is_soft_failed(room: RoomBuilder) -> None:
    forbidden = hub.complete_draft(message(sender=f"@nobody:{HUB}"), room.view, key_of(HUB))
    decision = decide(forbidden, room.view)
    assert isinstance(decision, participant.SoftFail) and decision.kind == "auth"


def test_b2_a_participants_own_pdu_without_the_hub_is_refused(room: RoomBuilder) -> None:
    own = hub.complete_draft(message(sender=BOB), room.view, key_of(PARTICIPANT))
    assert isinstance(decide(own, room.view), participant.Refuse)


def test_s9_another_hub_in_hub_server_is_refused(room: RoomBuilder) -> None:
    foreign = hub.complete_lpdu(
        lpdu(message(sender=BOB), hub_server="evil.test"), room.view, key_of("evil.test")
    )
    assert isinstance(decide(foreign, room.view), participant.Refuse)


@pytest.mark.parametrize("prev", [[], ["$a" * 5, "$b" * 5]])
def test_b13_prev_events_that_are_not_exactly_one_are_refused(room: RoomBuilder, prev: list[str]) -> None:
    pdu = room.add(message())
    odd = Pdu({**pdu.fields, "prev_events": prev}, LM_02)
    assert isinstance(decide(odd, room.view), participant.Refuse)


def test_a8_a_second_create_is_refused(room: RoomBuilder) -> None:
    create: dict[str, Any] = {"room_version": LM_02.id}
    second = hub.complete_draft(draft("m.room.create", create, state_key=""), room.view, key_of(HUB))
    assert isinstance(decide(second, room.view), participant.Refuse)


def test_our_lpdu_is_what_a_hub_accepts() -> None:
    made = participant.build_lpdu(message(sender=BOB), LM_02, HUB, key_of(PARTICIPANT))
    parsed = parse_lpdu(made.fields, LM_02)
    check_event_signatures(parsed, KEYS)
    assert set(parsed.fields) == {
        "room_id", "type", "sender", "origin_server_ts", "content", "hub_server", "hashes", "signatures",
    }  # fmt: skip


def test_b5_a_hash_claimed_by_another_sender_is_no_replay(room: RoomBuilder) -> None:
    """An LPDU is the same one if the same sender signed it: a hash is only a claim."""
    pdu = hub.complete_lpdu(lpdu(message(sender=BOB)), room.view, key_of(HUB))
    assert pdu.lpdu_hash is not None
    assert isinstance(decide(pdu, room.view, {(pdu.lpdu_hash, ALICE)}), participant.Apply)
    assert isinstance(decide(pdu, room.view, {(pdu.lpdu_hash, BOB)}), participant.SoftFail)
