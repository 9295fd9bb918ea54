"""Who may do what: levels and what they are compared with (D04 §Calculating Power Levels)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmserver.protocol.room_view import RoomView

ACTION_DEFAULTS = {"ban": 50, "kick": 50, "redact": 50, "invite": 0}
CREATOR_LEVEL = 100


def is_level(value: object) -> bool:
    """An integer within canonical JSON's range; a bool is none (protocol decision 3)."""
    return type(value) is int and abs(value) < 2**53


def _level(content: Mapping[str, Any], field: str, default: int) -> int:
    value = content.get(field)
    return value if is_level(value) and isinstance(value, int) else default


def _map(content: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = content.get(field)
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class PowerLevels:
    """The levels in force; `content` is None before the first m.room.power_levels."""

    content: Mapping[str, Any] | None
    creator: str

    @classmethod
    def from_view(cls, view: RoomView) -> PowerLevels:
        event = view.get("m.room.power_levels")
        return cls(None if event is None else event.content, view.creator)

    def user(self, user_id: str) -> int:
        if self.content is None:
            return CREATOR_LEVEL if user_id == self.creator else 0
        return _level(_map(self.content, "users"), user_id, _level(self.content, "users_default", 0))

    def action(self, name: str) -> int:
        """The level needed to ban, kick, redact or invite."""
        return _level(self.content or {}, name, ACTION_DEFAULTS[name])

    def allows(self, user_id: str, action: str) -> bool:
        """Whether the user has the level that an action needs."""
        return self.user(user_id) >= self.action(action)

    def event(self, type_: str, is_state: bool) -> int:
        """The level needed to send an event of this type."""
        content = self.content or {}
        default = ("state_default", 50) if is_state else ("events_default", 0)
        return _level(_map(content, "events"), type_, _level(content, *default))

    def notification(self, key: str) -> int:
        """The level needed to notify everybody at once, such as by "@room" (CS API
        §m.room.power_levels, notifications)."""
        return _level(_map(self.content or {}, "notifications"), key, 50)
