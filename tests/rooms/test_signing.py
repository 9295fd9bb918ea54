"""The hub's signatures of a turn: made after the events are decided, by two threads when there are many."""

from __future__ import annotations

from typing import Any

import pytest

from lmserver.protocol.signatures import LaterSignatures, SigningKey, check_json_signature, sign_json
from lmserver.rooms.signing import MIN_SHARED, Signing

NAME = "hub.test"
KEY = SigningKey.from_seed(NAME, "ed25519:1", b"s" * 32)
OTHER = SigningKey.from_seed(NAME, "ed25519:2", b"t" * 32)


@pytest.mark.parametrize("number", [0, 1, MIN_SHARED - 1, MIN_SHARED, MIN_SHARED + 1, 256])
async def test_every_place_gets_its_own_signature(number: int) -> None:
    later, signing = LaterSignatures(KEY), Signing()
    messages = [b"message %d" % n for n in range(number)]
    places: list[dict[str, Any]] = [{"elsewhere.test": {"ed25519:x": "kept"}} for _ in messages]
    for place, message in zip(places, messages, strict=True):
        later.sign_into(place, message)
    lengths = [len(place[NAME]["ed25519:1"]) for place in places]
    await signing.finish(later)
    signing.close()
    for place, message in zip(places, messages, strict=True):
        assert place == {
            "elsewhere.test": {"ed25519:x": "kept"},
            NAME: {"ed25519:1": KEY.sign_base64(message)},
        }
    assert lengths == [len(place[NAME]["ed25519:1"]) for place in places]


async def test_a_key_rotated_in_between_signs_what_bears_its_id() -> None:
    key = SigningKey.from_seed(NAME, "ed25519:1", b"s" * 32)
    later, signing = LaterSignatures(key), Signing()
    signed = sign_json({"a": 1}, key)
    place: dict[str, Any] = {}
    later.sign_into(place, b'{"a":1}')
    key.become(OTHER)
    await signing.finish(later)
    signing.close()
    assert place == signed["signatures"]
    check_json_signature({"a": 1, "signatures": place}, NAME, {"ed25519:1": KEY.verify_key})
