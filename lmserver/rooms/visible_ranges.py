"""Which positions of a room one user may see, as a few intervals computed once per request.

A room is linear, so a user's membership and the history visibility are each a handful of spans
of positions; crossing them gives the answer for every event at once, and reading backwards can
jump over what is hidden instead of filtering it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import orjson

from lmserver.storage.room_state import StateSpan

FOREVER: Final = 2**62
"""Later than any position."""

_KNOWN = frozenset({"world_readable", "shared", "invited", "joined"})


class Span(NamedTuple):
    """A value set by the event at `start` and replaced by the one at `end` (None: still valid)."""

    start: int
    end: int | None
    value: str


@dataclass(frozen=True, slots=True)
class Ranges:
    """Sorted closed intervals of positions that do not touch."""

    intervals: tuple[tuple[int, int], ...]

    def __contains__(self, position: int) -> bool:
        index = bisect_right(self.intervals, (position, FOREVER)) - 1
        return index >= 0 and position <= self.intervals[index][1]

    def within(self, first: int, last: int) -> list[tuple[int, int]]:
        """The parts between two positions, both included, oldest first."""
        return [(max(a, first), min(b, last)) for a, b in self.intervals if a <= last and b >= first]

    def state_from(self, position: int) -> int | None:
        """The first place at or after `position` whose state may be seen: before or after an event
        that may be. None when there is none."""
        return next((max(position, a) for a, b in self.intervals if position <= b + 1), None)


EVERYTHING = Ranges(((-FOREVER, FOREVER),))
NOTHING = Ranges(())


def spans_of(history: Sequence[StateSpan], field: str) -> list[Span]:
    """An entry's history as spans of a text field of its content ("" for what is no text).

    An entry known only from the state that came with a join began somewhere before: everything we
    have of that time, fetched backwards from the join, came after it.
    """
    spans: list[Span] = []
    for life in history:
        value = orjson.loads(life.pdu)["content"].get(field)
        start = life.from_position
        if life.event_position is None:
            start = -FOREVER if life.lived_before is None else life.lived_before + 1
            if spans and (spans[-1].end is None or spans[-1].end > start):
                spans[-1] = Span(spans[-1].start, start, spans[-1].value)
        spans.append(Span(start, life.to_position, value if isinstance(value, str) else ""))
    return spans


def visibility_spans(history: Sequence[StateSpan], *, complete: bool) -> list[Span]:
    """The history visibility; `complete` says that we have the room from its beginning. Otherwise
    the first setting we know may have replaced a stricter one, so nothing before it is shown."""
    spans = spans_of(history, "history_visibility")
    if spans and not complete and spans[0].start > -FOREVER:
        return [Span(-FOREVER, spans[0].start, "joined"), *spans]
    return spans


def last_joined(memberships: Sequence[Span]) -> int | None:
    """The last position the user was joined at: the end of the last join, FOREVER if joined now."""
    ends = [FOREVER if s.end is None else s.end for s in memberships if s.value == "join"]
    return max(ends, default=None)


def visible_to_user(memberships: Sequence[Span], visibilities: Sequence[Span]) -> Ranges:
    """CS API §Server behaviour of room history visibility, rules 1-5.

    An event that changes a membership or the visibility is seen under the old or the new value,
    whichever shows more, so spans count with both of their ends.
    """
    until = last_joined(memberships)
    joined_until = -FOREVER - 1 if until is None else until
    members = _with_default(memberships, "leave")
    intervals: list[tuple[int, int]] = []
    for setting in _with_default(visibilities, "shared"):
        end = _end(setting)
        for member in members:
            left = _end(member)
            if setting.start <= left and member.start <= end and _allowed(setting.value, member.value):
                intervals.append((max(setting.start, member.start), min(end, left)))
        if setting.value not in ("joined", "invited") and setting.start <= joined_until:
            intervals.append((setting.start, min(end, joined_until)))
    return Ranges(tuple(_merged(intervals)))


def _allowed(visibility: str, membership: str) -> bool:
    """Whether an event under this visibility is shown to one who had this membership then."""
    return (
        visibility == "world_readable"
        or membership == "join"
        or (visibility == "invited" and membership == "invite")
    )


def _end(span: Span) -> int:
    return FOREVER if span.end is None else span.end


def _with_default(spans: Sequence[Span], default: str) -> list[Span]:
    """Spans for all positions: `default` before the first and between those that do not meet.

    Unknown visibilities count as shared (protocol decision 7), never as more (attack A26).
    """
    known = _KNOWN if default == "shared" else None
    filled: list[Span] = []
    at = -FOREVER
    for span in spans:
        if span.start > at:
            filled.append(Span(at, span.start, default))
        value = span.value if known is None or span.value in known else default
        filled.append(Span(span.start, span.end, value))
        at = _end(span)
    if at < FOREVER:
        filled.append(Span(at, None, default))
    return filled


def _merged(intervals: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    current: tuple[int, int] | None = None
    for start, end in sorted(intervals):
        if current is None:
            current = (start, end)
        elif start <= current[1] + 1:
            current = (current[0], max(current[1], end))
        else:
            yield current
            current = (start, end)
    if current is not None:
        yield current
