"""The hub completes LPDUs without touching what their senders signed."""

from __future__ import annotations

import pytest

from lmserver.protocol import hashes, hub
from lmserver.protocol.errors import SignatureError, TooLarge
from lmserver.protocol.events import MAX_LPDU_BYTES, Lpdu, Pdu, parse_lpdu, parse_pdu
from lmserver.protocol.room_versions import LM_02, MAX_EVENT_BYTES
from lmserver.protocol.signatures import check_event_signatures, required_signers
from tests.kit.rooms import BOB, HUB, KEYS, PARTICIPANT, RoomBuilder, draft, key_of, lpdu, member, message


@pytest.fixture
def room() -> RoomBuilder:
    built = RoomBuilder()
    built.add(member("join", sender=BOB))
    return built


def test_completed_lpdu_keeps_every_field_and_both_signatures_verify(room: RoomBuilder) -> None:
    sent = lpdu(message(sender=BOB))
    pdu = room.add(sent)
    for key in ("room_id", "type", "sender", "content", "origin_server_ts", "hub_server"):
        assert pdu.fields[key] == sent.fields[key]
    assert required_signers(pdu) == (PARTICIPANT, HUB)
    check_event_signatures(parse_pdu(pdu.fields, LM_02), KEYS)
    assert hashes.check_hashes(pdu)
    assert pdu.lpdu_hash == sent.lpdu_hash


def test_hubs_own_event_has_no_hub_server_and_one_signature(room: RoomBuilder) -> None:
    pdu = room.add(message())
    assert pdu.hub_server is None
    assert "lpdu" not in pdu.fields["hashes"]
    assert set(pdu.fields["signatures"]) == {HUB}
    check_event_signatures(pdu, KEYS)


def test_chain_has_one_prev_event_each(room: RoomBuilder) -> None:
    for text in ("a", "b", "c"):
        room.add(message(text))
    for before, after in zip(room.pdus, room.pdus[1:], strict=False):
        assert after.prev_events == [before.event_id]


def test_b3_hub_server_of_another_server_is_refused(room: RoomBuilder) -> None:
    decision = room.decide(lpdu(message(sender=BOB), hub_server="other.test"))
    assert isinstance(decision, hub.Reject)


def test_h1_altered_content_becomes_the_redacted_copy_under_the_same_signature(room: RoomBuilder) -> None:
    sent = lpdu(message("true", sender=BOB))
    altered = parse_lpdu({**sent.fields, "content": {"msgtype": "m.text", "body": "false"}}, LM_02)
    check_event_signatures(altered, KEYS)
    decision = room.decide(altered)
    assert isinstance(decision, hub.Append)
    assert decision.pdu.content == {}
    check_event_signatures(decision.pdu, KEYS)
    assert parse_pdu(decision.pdu.fields, LM_02).event_id == decision.pdu.event_id


def test_h2_altered_top_level_of_a_pdu_leaves_the_redacted_copy_with_the_same_id(room: RoomBuilder) -> None:
    pdu = room.add(message())
    altered = parse_pdu({**pdu.fields, "extra": "from a hostile relay"}, LM_02)
    check_event_signatures(altered, KEYS)
    kept = hashes.with_hashes_enforced(altered)
    assert kept.event_id == pdu.event_id
    assert kept.content == {} and "extra" not in kept.fields
    assert hashes.with_hashes_enforced(pdu) is pdu


def test_a8_second_create_is_refused(room: RoomBuilder) -> None:
    again = draft("m.room.create", {"room_version": LM_02.id}, state_key="")
    assert isinstance(room.decide(again), hub.Reject)


def test_j9_reserve_lets_every_lpdu_within_its_limit_be_completed(room: RoomBuilder) -> None:
    empty = len(lpdu(draft("m.x", {"body": ""}, sender=BOB)).canonical)
    largest = lpdu(draft("m.x", {"body": "x" * (MAX_LPDU_BYTES - empty)}, sender=BOB))
    assert len(largest.canonical) == MAX_LPDU_BYTES
    assert isinstance(parse_lpdu(largest.fields, LM_02), Lpdu)
    decision = room.decide(largest)
    assert isinstance(decision, hub.Append)
    assert len(decision.pdu.canonical) <= MAX_EVENT_BYTES
    larger = lpdu(draft("m.x", {"body": "x" * (MAX_LPDU_BYTES - empty + 1)}, sender=BOB))
    with pytest.raises(TooLarge):
        parse_lpdu(larger.fields, LM_02)


def test_j9_pdu_of_65536_bytes_is_accepted_and_one_more_is_not(room: RoomBuilder) -> None:
    pdu = room.add(message("x"))
    room_left = MAX_EVENT_BYTES - len(pdu.canonical)
    padded = {**pdu.fields, "content": {**pdu.content, "body": "x" * (1 + room_left)}}
    assert isinstance(parse_pdu(padded, LM_02), Pdu)
    padded["content"] = {**pdu.content, "body": "x" * (2 + room_left)}
    with pytest.raises(TooLarge):
        parse_pdu(padded, LM_02)


def test_s4_signature_over_the_full_pdu_is_not_one_over_the_lpdu(room: RoomBuilder) -> None:
    pdu = room.add(message(sender=BOB))
    bob = key_of(PARTICIPANT)
    wrong = {
        **pdu.fields,
        "signatures": {
            **pdu.fields["signatures"],
            PARTICIPANT: {bob.key_id: bob.sign_base64(pdu.reference_bytes)},
        },
    }
    with pytest.raises(SignatureError):
        check_event_signatures(parse_pdu(wrong, LM_02), KEYS)
