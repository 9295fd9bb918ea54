"""Stripped state: what someone who is not in a room may know of it (D04 §Stripped State)."""

from __future__ import annotations

from typing import Any

from lmserver.protocol import canonical_json, ids
from lmserver.protocol.room_view import RoomView

SHOWN = (
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
)
MAX_EVENTS = 32
MAX_BYTES = 64 * 1024


def of_view(view: RoomView, sender: str | None = None) -> list[dict[str, Any]]:
    """The stripped state of a room, with the inviting member's own event if named."""
    entries = [view.get(type_) for type_ in SHOWN]
    if sender is not None:
        entries.append(view.get("m.room.member", sender))
    return [
        {"type": e.type, "state_key": e.state_key, "sender": e.sender, "content": e.content}
        for e in entries
        if e is not None
    ]


def clean(value: object) -> list[dict[str, Any]]:
    """What a peer calls stripped state, without anything that is not: bad entries are dropped,
    and no more than 32 events or 64 KiB are kept (attack I3)."""
    if not isinstance(value, list):
        return []
    kept: list[dict[str, Any]] = []
    size = 0
    for entry in value[: 4 * MAX_EVENTS]:
        if not _is_stripped(entry) or len(kept) == MAX_EVENTS:
            continue
        event = {key: entry[key] for key in ("type", "state_key", "sender", "content")}
        size += len(canonical_json.encode(event))
        if size > MAX_BYTES:
            break
        kept.append(event)
    return kept


def _is_stripped(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("type"), str)
        and isinstance(entry.get("state_key"), str)
        and isinstance(entry.get("content"), dict)
        and ids.is_user_id(entry.get("sender"))
    )
