"""Events that are wrong in one thing, and right in all that a sender can make right."""

from __future__ import annotations

import copy
from hashlib import sha256
from typing import Any

from lmserver.protocol import canonical_json, unpadded_base64
from lmserver.protocol.events import Lpdu
from lmserver.protocol.room_versions import LM_02
from tests.kit.rooms import EVIL, MALLORY, key_of, lpdu, message

Fields = dict[str, Any]


def evil(text: str = "evil") -> Fields:
    """A valid LPDU of the hostile server's user."""
    return copy.deepcopy(lpdu(message(text, sender=MALLORY)).fields)


def resigned(fields: Fields, **changes: Any) -> Fields:
    """The LPDU with fields changed and everything a sender can make made anew: hash and signature."""
    changed = {**copy.deepcopy(fields), **changes}
    key = key_of(EVIL)
    bare = {k: v for k, v in changed.items() if k not in ("signatures", "hashes")}
    digest = unpadded_base64.encode(sha256(canonical_json.encode(bare)).digest())
    changed["hashes"] = changes.get("hashes", {"lpdu": {"sha256": digest}})
    try:
        reference = Lpdu(changed, LM_02).reference_bytes
    except (TypeError, KeyError, AttributeError):
        reference = b""  # no reference bytes can be made of this; it must not come that far either
    changed["signatures"] = changes.get("signatures", {EVIL: {key.key_id: key.sign_base64(reference)}})
    return changed
