"""A second reading of D04 §Event Redactions and §Reference Hash Calculation, written from the text.

Deliberately unlike the code under test: it deletes what may not stay, member by member, and makes
canonical JSON with the standard library, which is right for keys in the Basic Multilingual Plane.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from typing import Any

STAY = [
    "type",
    "room_id",
    "sender",
    "state_key",
    "content",
    "origin_server_ts",
    "hashes",
    "signatures",
    "prev_events",
    "auth_events",
    "hub_server",
]

LEVELS = "ban events events_default invite kick redact state_default users users_default"


def expected(event: dict[str, Any], version: str) -> dict[str, Any]:
    """The redacted event and its ID in room version `I.1` or `.02`."""
    left = copy.deepcopy(event)
    for name in event:
        if name not in STAY:
            del left[name]
    content = left["content"]
    match event["type"]:
        case "m.room.create":
            keep = list(content)
        case "m.room.member":
            keep = ["membership"]
        case "m.room.join_rules":
            keep = ["join_rule"] + ["allow"] * (version == ".02")
        case "m.room.power_levels":
            keep = LEVELS.split()
        case "m.room.history_visibility":
            keep = ["history_visibility"]
        case _:
            keep = []
    for name in list(content):
        if name not in keep:
            del content[name]
    unsigned = {name: value for name, value in left.items() if name != "signatures"}
    text = json.dumps(unsigned, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).digest()
    event_id = "$" + base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return {"redacted": left, "event_id": event_id}
