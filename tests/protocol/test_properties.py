"""Laws that hold for every event: redaction, IDs, signatures, hashes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserver.protocol import canonical_json, hashes, hub, participant
from lmserver.protocol.errors import ProtocolError, SignatureError
from lmserver.protocol.events import EventDraft, Lpdu, parse_lpdu, parse_pdu
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import SUPPORTED, RoomVersion
from lmserver.protocol.room_view import RoomView
from lmserver.protocol.signatures import check_event_signatures
from tests.kit.rooms import ALICE, BOB, HUB, KEYS, ROOM, key_of, lpdu

text = st.text(st.characters(codec="utf-8"), max_size=12)
value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
name = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
types = st.sampled_from(
    [
        "m.room.member",
        "m.room.power_levels",
        "m.room.join_rules",
        "m.room.history_visibility",
        "m.room.redaction",
    ]
)
fields = ["membership", "ban", "users", "join_rule", "allow", "history_visibility", "redacts"]
contents = st.dictionaries(st.sampled_from(fields) | text, value, max_size=5)
versions = st.sampled_from(list(SUPPORTED.values()))


@st.composite
def drafts(draw: Any, sender: str) -> EventDraft:
    state_key = draw(st.none() | name)
    type_ = draw(types | name.filter(lambda t: t != "m.room.create"))
    at = draw(st.integers(-(2**53) + 1, 2**53 - 1))
    return EventDraft(ROOM, type_, sender, draw(contents), at, state_key)


def view(version: RoomVersion) -> RoomView:
    return RoomView(ROOM, version, HUB, "$head", 3, {})


@given(drafts(ALICE), versions)
def test_redaction_is_idempotent_and_keeps_the_event_id(event: EventDraft, version: RoomVersion) -> None:
    pdu = hub.complete_draft(event, view(version), key_of(HUB))
    once = redact(pdu.fields, version)
    assert redact(once, version) == once
    assert hashes.event_id(once, version) == pdu.event_id == pdu.redacted().event_id
    check_event_signatures(pdu.redacted(), KEYS)


@given(drafts(BOB), versions)
def test_an_lpdu_survives_the_hub_and_the_wire(event: EventDraft, version: RoomVersion) -> None:
    sent = lpdu(event, version=version)
    received = parse_lpdu(canonical_json.parse_object(sent.canonical), version)
    assert received.event_id == sent.event_id
    check_event_signatures(received, KEYS)
    made = hub.complete_lpdu(received, view(version), key_of(HUB))
    pdu = parse_pdu(canonical_json.parse_object(made.canonical), version)
    assert pdu.event_id == made.event_id
    assert pdu.canonical == made.canonical
    assert hashes.check_hashes(pdu)
    check_event_signatures(pdu, KEYS)
    assert hashes.lpdu_content_hash(pdu.fields) == sent.lpdu_hash


@given(drafts(BOB), versions, st.data())
def test_whatever_is_changed_is_noticed(event: EventDraft, version: RoomVersion, data: Any) -> None:
    """Every change of a completed event breaks a hash, a signature, or the schema."""
    made = hub.complete_lpdu(lpdu(event, version=version), view(version), key_of(HUB))
    key = data.draw(st.sampled_from(["content", "origin_server_ts", "type", "extra", "prev_events"]))
    other: dict[str, Any] = {
        "content": {**made.content, "added": 1},
        "origin_server_ts": 0 if made.origin_server_ts else 1,
        "type": made.type + "x",
        "extra": True,
        "prev_events": ["$other"],
    }
    changed = parse_pdu({**made.fields, key: other[key]}, version)
    if not hashes.check_hashes(changed):
        return
    with pytest.raises(SignatureError):
        check_event_signatures(changed, KEYS)


@given(drafts(ALICE), versions)
def test_unsigned_and_event_id_never_count(event: EventDraft, version: RoomVersion) -> None:
    pdu = hub.complete_draft(event, view(version), key_of(HUB))
    with_extras = parse_pdu({**pdu.fields, "unsigned": {"age": 5}, "event_id": "$x"}, version)
    assert with_extras.event_id == pdu.event_id
    assert with_extras.canonical == pdu.canonical


EVENT_FIELDS = ["auth_events", "content", "hashes", "hub_server", "origin_server_ts", "prev_events", "room_id",
                "sender", "signatures", "state_key", "type", "unsigned", "event_id", "depth", "redacts"]  # fmt: skip
nearly = st.sampled_from([{"lpdu": {"sha256": "A"}}, {"sha256": None}, {HUB: None}, {HUB: {"ed25519:t1": 1}},
                          ["$x"], [None], "", "@", "!", "$", True, 0, -1, {}, [], None])  # fmt: skip


@given(drafts(ALICE), st.dictionaries(st.sampled_from(EVENT_FIELDS), nearly | value, min_size=1, max_size=3),
       st.sets(st.sampled_from(EVENT_FIELDS), max_size=2), versions)  # fmt: skip
def test_j14_any_json_in_any_field_is_refused_or_an_event(
    event: EventDraft, changed: dict[str, Any], missing: set[str], version: RoomVersion
) -> None:
    """What a peer sends ends in a ProtocolError or in an event that everything can be asked of."""
    good = [lpdu(event, version=version).fields, hub.complete_draft(event, view(version), key_of(HUB)).fields]
    for fields_of, parse in zip(good, (parse_lpdu, parse_pdu), strict=True):
        raw = {k: v for k, v in {**fields_of, **changed}.items() if k not in missing}
        try:
            parsed = parse(canonical_json.parse_object(canonical_json.encode(raw)), version)
        except ProtocolError:
            continue
        assert parsed.event_id == hashes.event_id(redact(parsed.fields, version), version)
        hashes.check_hashes(parsed)
        assert parsed.membership is None or isinstance(parsed.membership, str)
        with suppress(ProtocolError):
            check_event_signatures(parsed, KEYS)
        if isinstance(parsed, Lpdu):
            hub.decide(parsed, view(version), key_of(HUB))
        else:
            participant.decide(parsed, view(version), seen_lpdus=set())
