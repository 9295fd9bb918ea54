"""The suite's own algorithms against vectors made by another implementation."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from lmserver.conformance import draft

VECTORS = json.loads((Path(__file__).parent.parent / "vectors/eigen.json").read_text(encoding="utf-8"))
VERSION = VECTORS["room_version"]
# The suite sends no floats.
WITHOUT_FLOATS = [vector for vector in VECTORS["vectors"] if "float" not in vector["name"]]


def keys() -> dict[str, draft.Key]:
    return {
        server: draft.Key.make(server, entry["key_id"], base64.b64decode(entry["seed_b64"] + "="))
        for server, entry in VECTORS["keys"].items()
    }


@pytest.mark.parametrize("vector", WITHOUT_FLOATS, ids=lambda v: v["name"])
def test_hashes_ids_and_signatures_are_those_of_another_implementation(vector: dict[str, Any]) -> None:
    pdu = vector["pdu"]
    assert draft.pdu_hash(pdu) == vector["pdu_content_hash"]
    assert draft.event_id(pdu, VERSION) == vector["event_id"]
    assert draft.reference(pdu, VERSION).decode() == vector["pdu_signing_input"]
    for server, by_key in pdu["signatures"].items():
        key = keys()[server]
        signed = draft.lpdu_of(pdu) if "hub_server" in pdu and server != pdu["hub_server"] else pdu
        message = draft.reference(signed, VERSION)
        assert by_key[key.key_id] == key.sign(message)
        assert draft.has_signature(pdu, server, {key.key_id: key.public}, message)
        assert not draft.has_signature(pdu, server, {key.key_id: key.public}, message + b" ")
    if vector["origin"] == "participant":
        assert draft.lpdu_hash(vector["lpdu_as_sent"]) == vector["lpdu_content_hash"]
        assert draft.lpdu_hash(pdu) == vector["lpdu_content_hash"]


def test_keys_sort_by_utf16_code_units() -> None:
    """RFC 8785 §3.2.3."""
    value = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\xf6": 7}
    assert list(json.loads(draft.canonical(value))) == [
        "\r", "1", "\x80", "\xf6", "\u20ac", "\U0001f600", "\ufb33",
    ]  # fmt: skip


def test_what_is_not_base64_does_not_verify() -> None:
    key = draft.Key.make("a.example.org", "ed25519:1")
    assert not draft.verifies(key.public, b"x", "not base64")
    assert not draft.verifies("AAAA", b"x", key.sign(b"x"))
    assert draft.verifies(key.public + "=", b"x", key.sign(b"x") + "==")
