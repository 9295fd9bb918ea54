"""Redaction: the fields of an event that hashes and signatures protect (D04 §Event Redactions).

Redaction defines what an event ID means, so it is a pure function of the event and the room
version's table; it must give the same result on every server for ever.
"""

from __future__ import annotations

from typing import Any

from lmserver.protocol.room_versions import RoomVersion

_NOTHING: frozenset[str] = frozenset()


def redact(fields: dict[str, Any], version: RoomVersion) -> dict[str, Any]:
    """A redacted copy of an event that has passed its schema.

    The copy is shallow: sub-objects that survive are shared with the original, so neither may be
    changed in place.
    """
    keep = version.redacted_top_level
    redacted = {key: value for key, value in fields.items() if key in keep}
    allowed = version.redacted_content.get(fields["type"], _NOTHING)
    if allowed is not None:
        content = fields["content"]
        redacted["content"] = {key: content[key] for key in allowed if key in content}
    return redacted
