"""What the specification says of who may see what, written down once more, event by event and slowly.

Matrix CS API §Server behaviour of room history visibility. Nothing here is the server's code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

VISIBILITY = "m.room.history_visibility"
MEMBER = "m.room.member"


@dataclass(frozen=True)
class Entry:
    """One event of the room's list. `mark` is a word that stands in nothing else."""

    event_id: str
    type: str
    state_key: str | None
    content: dict[str, Any]
    sender: str

    @property
    def mark(self) -> str:
        content = self.content
        return str(content.get("body") or content.get("topic") or content.get("displayname") or self.event_id)


class Oracle:
    """A room's whole list and one reader."""

    def __init__(self, entries: Sequence[Entry], reader: str) -> None:
        self._entries = entries
        self._reader = reader
        self._own = [self._value(entry, MEMBER, reader, "membership") for entry in entries]
        self._hv = [self._value(entry, VISIBILITY, "", "history_visibility") for entry in entries]

    @staticmethod
    def _value(entry: Entry, type_: str, key: str, field: str) -> str | None:
        return entry.content.get(field) if (entry.type, entry.state_key) == (type_, key) else None

    @staticmethod
    def _upto(values: Sequence[str | None], end: int, default: str) -> str:
        """The last value set before index `end`."""
        return next((v for v in reversed(values[:end]) if v is not None), default)

    def sees(self, index: int) -> bool:
        """Rules 1 to 5, and the events that change the visibility or the reader's membership: shown
        when what was before or what is after them would show them."""
        return any(
            self._allowed(
                index, self._upto(self._hv, hv_end, "shared"), self._upto(self._own, own_end, "leave")
            )
            for hv_end in {index, index + 1}
            for own_end in {index, index + 1}
        )

    def _allowed(self, index: int, visibility: str, membership: str) -> bool:
        if visibility == "world_readable" or membership == "join":
            return True
        if visibility == "shared" and "join" in self._own[index + 1 :]:
            return True
        return visibility == "invited" and membership == "invite"

    @property
    def membership(self) -> str:
        return self._upto(self._own, len(self._own), "never")

    @property
    def was_joined(self) -> bool:
        return "join" in self._own

    @property
    def world_readable(self) -> bool:
        """Now."""
        return self._upto(self._hv, len(self._hv), "shared") == "world_readable"

    @property
    def may_preview(self) -> bool:
        """Of a room that only the invited may join."""
        return self.world_readable or self.membership in ("join", "invite")

    def visible(self) -> list[Entry]:
        return [entry for index, entry in enumerate(self._entries) if self.sees(index)]

    def state_marks(self) -> set[str]:
        """Marks of all state that was current at a moment before or after an event that is seen."""
        marks: set[str] = set()
        for index, state in enumerate(self._states()):
            if (index and self.sees(index - 1)) or (index < len(self._entries) and self.sees(index)):
                marks |= {entry.mark for entry in state.values()}
        return marks

    def invitation_marks(self) -> set[str]:
        """Marks of the state that an invite which stands came with."""
        if self.membership != "invite":
            return set()
        invited = max(i for i, value in enumerate(self._own) if value == "invite")
        return {entry.mark for entry in list(self._states())[invited].values()}

    def topic_at_the_end(self) -> str:
        """The topic when the reader was joined last; that of now for who may still see what is."""
        states = list(self._states())
        if self.membership == "join" or self.world_readable:
            return states[-1]["m.room.topic", ""].mark
        ended = max(
            i for i in range(len(self._own)) if self._own[i] and self._upto(self._own, i, "") == "join"
        )
        return states[ended]["m.room.topic", ""].mark

    def _states(self) -> Iterator[dict[tuple[str, str], Entry]]:
        """The state before each event and, last, after all."""
        state: dict[tuple[str, str], Entry] = {}
        yield dict(state)
        for entry in self._entries:
            if entry.state_key is not None:
                state[entry.type, entry.state_key] = entry
            yield dict(state)
