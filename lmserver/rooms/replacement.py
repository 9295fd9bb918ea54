"""What a room's replacement begins with, and what the old room is left with (CS API §Room Upgrades).

Pure: a view of the old room goes in, drafts come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from lmserver.protocol.events import EventDraft
from lmserver.protocol.power_levels import PowerLevels, is_level
from lmserver.protocol.room_versions import RoomVersion
from lmserver.protocol.room_view import RoomView

CARRIED: Final = (
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.encryption",
    "m.room.server_acl",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.related_groups",
)
SPACE_TYPES: Final = ("m.space.child", "m.space.parent")
MAX_BANS: Final = 5_000
MAX_SPACE_ENTRIES: Final = 1_000
_NOT_COPIED: Final = ("creator", "room_version", "predecessor", "additional_creators")


def new_room(
    view: RoomView,
    version: RoomVersion,
    room_id: str,
    user_id: str,
    profile: Mapping[str, Any],
    aliases: Iterable[str],
    now_ms: int,
) -> list[EventDraft]:
    """The first events of the replacement `room_id`. The power levels come last: until they are
    there, who upgrades may do everything. `aliases` are those that move along."""
    old = view.get("m.room.create")
    create = {k: v for k, v in ({} if old is None else old.content).items() if k not in _NOT_COPIED}
    create["room_version"] = version.id
    create["predecessor"] = {"room_id": view.room_id, "event_id": view.head_event_id}
    events: list[tuple[str, str, dict[str, Any]]] = [
        ("m.room.create", "", create),
        ("m.room.member", user_id, {**profile, "membership": "join"}),
    ]
    carried = [view.get(type_) for type_ in CARRIED]
    events += [(e.type, e.state_key, e.content) for e in carried if e is not None]
    events += _spaces(view) + _bans(view)
    named = canonical_alias(view, frozenset(aliases))
    if named:
        events.append(("m.room.canonical_alias", "", named))
    levels = view.get("m.room.power_levels")
    if levels is not None:
        events.append((levels.type, "", levels.content))
    return [EventDraft(room_id, t, user_id, content, now_ms, key) for t, key, content in events]


def _spaces(view: RoomView) -> list[tuple[str, str, dict[str, Any]]]:
    found = [
        (type_, key, event.content)
        for (type_, key), event in view.state.items()
        if type_ in SPACE_TYPES and event.content
    ]
    return found[:MAX_SPACE_ENTRIES]


def _bans(view: RoomView) -> list[tuple[str, str, dict[str, Any]]]:
    banned = (
        (user_id, event.content)
        for (type_, user_id), event in view.state.items()
        if type_ == "m.room.member" and event.content.get("membership") == "ban"
    )
    found = [
        (
            "m.room.member",
            user_id,
            {k: v for k, v in content.items() if k == "membership" or (k == "reason" and isinstance(v, str))},
        )
        for user_id, content in banned
    ]
    return found[:MAX_BANS]


def canonical_alias(view: RoomView, aliases: frozenset[str]) -> dict[str, Any]:
    """The room's canonical aliases among these."""
    event = view.get("m.room.canonical_alias")
    if event is None:
        return {}
    alias, others = event.content.get("alias"), event.content.get("alt_aliases")
    kept = {"alias": alias} if isinstance(alias, str) and alias in aliases else {}
    alternatives = (
        [a for a in others if isinstance(a, str) and a in aliases] if isinstance(others, list) else []
    )
    return kept | ({"alt_aliases": alternatives} if alternatives else {})


def tombstone(view: RoomView, replacement: str, user_id: str, now_ms: int) -> EventDraft:
    """CS API §m.room.tombstone."""
    content = {"body": "This room has been replaced", "replacement_room": replacement}
    return EventDraft(view.room_id, "m.room.tombstone", user_id, content, now_ms, "")


def silenced(view: RoomView) -> dict[str, Any] | None:
    """Power levels under which only moderators may speak and invite; None where that is so already."""
    event = view.get("m.room.power_levels")
    content: Mapping[str, Any] = {} if event is None else event.content
    default = content.get("users_default", 0)
    floor = max(50, (default if is_level(default) else 0) + 1)
    levels = PowerLevels.from_view(view)
    raised = {
        name: floor
        for name, level in (("events_default", levels.event("", False)), ("invite", levels.action("invite")))
        if level < floor
    }
    return {**content, **raised} if raised else None
