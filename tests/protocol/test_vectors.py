"""The golden vectors of the two existing implementations, made with fixed throw-away keys.

eigen.json is eigen-server's own output; what it does differently from our decisions is named in
the vector (DIVERGENT_*) and decided in the test. synapse.json is the Linearized Matrix branch of
Synapse given the same inputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmserver.protocol import canonical_json, hashes, unpadded_base64
from lmserver.protocol.errors import InvalidJson, SignatureError
from lmserver.protocol.events import Lpdu, Pdu, parse_lpdu, parse_pdu
from lmserver.protocol.hub import complete_lpdu
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import I_1, LM_02
from lmserver.protocol.room_view import RoomView
from lmserver.protocol.signatures import SigningKey, VerifyKey, check_event_signatures

VECTORS = Path(__file__).parent.parent / "vectors"
EIGEN = json.loads((VECTORS / "eigen.json").read_text(encoding="utf-8"))
SYNAPSE = json.loads((VECTORS / "synapse.json").read_text(encoding="utf-8"))

FLOAT = "DIVERGENT_float_hub_rfc8785"
WE_FOLLOW_EIGEN = [v for v in EIGEN["vectors"] if v["name"] != FLOAT]
# Where Synapse keeps more on redaction or sorts keys by code point, its event IDs are its own.
SYNAPSE_DIVERGES = {
    "DIVERGENT_utf16_key_order",
    "DIVERGENT_redaction_participant",
    "DIVERGENT_redaction_hub",
    "DIVERGENT_member_authorised_via",
    FLOAT,
}

KEYS = {
    server: SigningKey.from_seed(server, key["key_id"], unpadded_base64.decode(key["seed_b64"]))
    for server, key in EIGEN["keys"].items()
}
KEY_SET = {server: {key.key_id: key.verify_key} for server, key in KEYS.items()}


def by_name(vectors: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("vector", vectors, ids=[v["name"] for v in vectors])


def test_all_eighteen_are_here() -> None:
    assert len(EIGEN["vectors"]) == len(SYNAPSE["vectors"]) == 18


@pytest.mark.parametrize("server", list(EIGEN["keys"]))
def test_public_keys(server: str) -> None:
    assert unpadded_base64.encode(KEYS[server].verify_key.key_bytes) == EIGEN["keys"][server]["public_b64"]


@by_name(WE_FOLLOW_EIGEN)
def test_pdu(vector: dict[str, Any]) -> None:
    pdu = parse_pdu(vector["pdu"], LM_02)
    assert hashes.pdu_content_hash(pdu.fields) == vector["pdu_content_hash"]
    redacted = redact(pdu.fields, LM_02)
    redacted.pop("signatures")
    assert redacted == vector["pdu_redacted_no_signatures"]
    assert pdu.reference_bytes.decode() == vector["pdu_signing_input"]
    assert pdu.event_id == vector["event_id"]
    assert hashes.check_hashes(pdu)
    check_event_signatures(pdu, KEY_SET)


@by_name(WE_FOLLOW_EIGEN)
def test_signing_again_gives_the_same_signatures(vector: dict[str, Any]) -> None:
    pdu = parse_pdu(vector["pdu"], LM_02)
    hub = KEYS["hub.example.org"]
    assert pdu.fields["signatures"][hub.server_name][hub.key_id] == hub.sign_base64(pdu.reference_bytes)


@by_name([v for v in WE_FOLLOW_EIGEN if v["origin"] == "participant"])
def test_lpdu(vector: dict[str, Any]) -> None:
    lpdu = parse_lpdu(vector["lpdu_as_sent"], LM_02)
    assert lpdu.lpdu_hash == hashes.lpdu_content_hash(lpdu.fields) == vector["lpdu_content_hash"]
    assert lpdu.reference_bytes.decode() == vector["lpdu_signing_input"]
    assert lpdu.event_id == vector["lpdu_event_id"]
    check_event_signatures(lpdu, KEY_SET)


@by_name([v for v in WE_FOLLOW_EIGEN if v["origin"] == "participant"])
def test_completing_the_lpdu_gives_the_pdu(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lpdu = parse_lpdu(vector["lpdu_as_sent"], LM_02)
    pdu = vector["pdu"]
    view = RoomView(lpdu.room_id, LM_02, "hub.example.org", pdu["prev_events"][0], 7, {})
    # The vectors cite auth events of a room that is not in the file.
    monkeypatch.setattr("lmserver.protocol.hub.select_auth_events", lambda *_: pdu["auth_events"])
    made = complete_lpdu(lpdu, view, KEYS["hub.example.org"])
    assert made.fields == pdu
    assert made.event_id == vector["event_id"]


@by_name([v for v in WE_FOLLOW_EIGEN if v["origin"] == "participant"])
def test_the_lpdu_inside_the_pdu_is_what_was_signed(vector: dict[str, Any]) -> None:
    pdu = parse_pdu(vector["pdu"], LM_02)
    lpdu = parse_lpdu(vector["lpdu_as_sent"], LM_02)
    assert pdu.lpdu_reference_bytes == lpdu.reference_bytes


def test_invitee_signature_changes_nothing_but_signatures() -> None:
    [vector] = [v for v in EIGEN["vectors"] if "pdu_after_invitee_signed" in v]
    before = parse_pdu(vector["pdu"], LM_02)
    after = parse_pdu(vector["pdu_after_invitee_signed"], LM_02)
    invitee = KEYS["participant.example.org"]
    signed = before.with_signature(
        invitee.server_name, invitee.key_id, invitee.sign_base64(before.reference_bytes)
    )
    assert signed.fields == after.fields
    assert signed.event_id == before.event_id == after.event_id


def test_float_is_refused_everywhere() -> None:
    """eigen-server serialises floats; we refuse them on sight, as decided."""
    [vector] = [v for v in EIGEN["vectors"] if v["name"] == FLOAT]
    with pytest.raises(InvalidJson):
        canonical_json.parse(json.dumps(vector["pdu"]).encode())
    with pytest.raises(InvalidJson):
        canonical_json.encode(vector["pdu"])


@by_name([v for v in SYNAPSE["vectors"] if v["name"] not in SYNAPSE_DIVERGES])
def test_synapse_agrees(vector: dict[str, Any]) -> None:
    pdu = parse_pdu(vector["pdu"], LM_02)
    assert pdu.event_id == vector["event_id"]
    assert hashes.check_hashes(pdu)


@by_name([v for v in SYNAPSE["vectors"] if v["name"] in SYNAPSE_DIVERGES - {FLOAT}])
def test_synapse_diverges_where_decided(vector: dict[str, Any]) -> None:
    """If one of these agreed, the decision in the room-version table would be stale."""
    pdu = parse_pdu(vector["pdu"], LM_02)
    assert pdu.event_id != vector["event_id"] or not hashes.check_hashes(pdu)


def test_join_rules_allow_is_kept_in_02_and_stripped_in_i_1() -> None:
    [vector] = [v for v in EIGEN["vectors"] if v["name"] == "join_rules_restricted_allow"]
    assert parse_pdu(vector["pdu"], LM_02).event_id == vector["event_id"]
    assert parse_pdu(vector["pdu"], I_1).event_id != vector["event_id"]


@by_name([v for v in WE_FOLLOW_EIGEN if v["origin"] == "participant"])
def test_a_changed_byte_is_noticed(vector: dict[str, Any]) -> None:
    """Positive control of this file: hashes and signatures do fail."""
    changed = {**vector["pdu"], "origin_server_ts": vector["pdu"]["origin_server_ts"] + 1}
    pdu = parse_pdu(changed, LM_02)
    assert not hashes.check_hashes(pdu)
    with pytest.raises(SignatureError):
        check_event_signatures(pdu, KEY_SET)


def test_types_are_distinct() -> None:
    participant = next(v for v in WE_FOLLOW_EIGEN if v["origin"] == "participant")
    assert isinstance(parse_lpdu(participant["lpdu_as_sent"], LM_02), Lpdu)
    assert isinstance(parse_pdu(participant["pdu"], LM_02), Pdu)
    assert VerifyKey.from_base64(EIGEN["keys"]["hub.example.org"]["public_b64"])
