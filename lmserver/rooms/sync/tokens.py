"""Tokens clients hold: of the stream ("s12_3", after a restore "s12_3_4711") and of one room's
list ("p7").

`p7` is the gap after position 7: reading backwards from it begins with event 7, reading forwards
with event 8. Tokens come back from clients, so parsing trusts nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SYNC = re.compile(r"s([0-9]{1,18})_([0-9]{1,18})(?:_([0-9]{1,18}))?")
_ROOM = re.compile(r"p(-?[0-9]{1,18})")


class BadToken(ValueError):
    """Not a token of ours: 400 M_INVALID_PARAM."""


@dataclass(frozen=True, slots=True)
class SyncToken:
    """Everything below `stream` and every typing change up to `typing` has been seen, in the epoch
    that began with the last restore of the database."""

    stream: int
    typing: int
    epoch: int = 0

    def __str__(self) -> str:
        return f"s{self.stream}_{self.typing}" + (f"_{self.epoch}" if self.epoch else "")


@dataclass(frozen=True, slots=True)
class RoomToken:
    """The gap after a position of one room."""

    position: int

    def __str__(self) -> str:
        return f"p{self.position}"


def parse_sync(text: str) -> SyncToken:
    """Raises BadToken."""
    match = _SYNC.fullmatch(text)
    if match is None:
        raise BadToken("not a sync token")
    return SyncToken(int(match[1]), int(match[2]), int(match[3] or 0))


def parse(text: str) -> SyncToken | RoomToken:
    """A token of either kind, as /messages takes; raises BadToken."""
    match = _ROOM.fullmatch(text)
    return RoomToken(int(match[1])) if match is not None else parse_sync(text)
