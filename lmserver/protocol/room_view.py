"""A room as the rules see it: who is hub, what the head is, and the state there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmserver.protocol.room_versions import RoomVersion

StateKey = tuple[str, str]
"""(type, state_key)"""


@dataclass(frozen=True, slots=True)
class StateEvent:
    """What rules need of a state event."""

    event_id: str
    type: str
    state_key: str
    sender: str
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RoomView:
    """The room before the event in question; shared, never changed in place."""

    room_id: str
    version: RoomVersion
    hub: str
    head_event_id: str
    head_position: int
    state: Mapping[StateKey, StateEvent]

    def get(self, type_: str, state_key: str = "") -> StateEvent | None:
        return self.state.get((type_, state_key))

    def membership(self, user_id: str) -> str:
        """A user's membership; "leave" without a member event (D04 §m.room.member)."""
        event = self.state.get(("m.room.member", user_id))
        value = None if event is None else event.content.get("membership")
        return value if isinstance(value, str) else "leave"

    def join_rule(self) -> str:
        """The join rule; "invite" when there is none (protocol decision 4)."""
        return self._text("m.room.join_rules", "join_rule", "invite")

    def history_visibility(self) -> str:
        """Unknown values count as shared (protocol decision 7)."""
        value = self._text("m.room.history_visibility", "history_visibility", "shared")
        return value if value in ("world_readable", "shared", "invited", "joined") else "shared"

    def is_public(self) -> bool:
        """Whether anybody may join, or read without joining."""
        return self.join_rule() == "public" or self.history_visibility() == "world_readable"

    def _text(self, type_: str, field: str, default: str) -> str:
        event = self.get(type_)
        value = default if event is None else event.content.get(field, default)
        return value if isinstance(value, str) else default

    @property
    def creator(self) -> str:
        create = self.get("m.room.create")
        return "" if create is None else create.sender
