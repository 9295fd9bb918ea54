"""What goes into one transaction (D04 §Sending Events), and a note of what that was.

A body is built from stored canonical bytes and is canonical itself, so what is signed, stored and
sent is the same to the byte however often it is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

import orjson

from lmserver.storage.outbound import Due, DueEvent

MAX_EVENTS: Final = 50
MAX_EDUS: Final = 100
MAX_BODY: Final = 90_000
"""One known peer refuses bodies over 100 kB; only a single larger event goes beyond this."""


@dataclass(frozen=True, slots=True)
class Contents:
    """`ranges` are (room, from position, last position), `lpdus` (room, LPDU ID).

    Of a body that is not stored, `spans` (room, first position, last position) say which events it
    is made of, and `digest` is its SHA-256 in hexadecimal.
    """

    ranges: tuple[tuple[str, int, int], ...] = ()
    lpdus: tuple[tuple[str, str], ...] = ()
    edus: tuple[int, ...] = ()
    spans: tuple[tuple[str, int, int], ...] = ()
    digest: str = ""

    def encode(self) -> bytes:
        note = {"ranges": self.ranges, "lpdus": self.lpdus, "edus": self.edus}
        return orjson.dumps(note | {"spans": self.spans, "digest": self.digest} if self.spans else note)

    @classmethod
    def decode(cls, data: bytes) -> Contents:
        note = orjson.loads(data)
        return cls(
            tuple((room, start, last) for room, start, last in note["ranges"]),
            tuple((room, lpdu_id) for room, lpdu_id in note["lpdus"]),
            tuple(note["edus"]),
            tuple((room, first, last) for room, first, last in note.get("spans", ())),
            note.get("digest", ""),
        )


LatestTaker = Callable[[int, int], list[bytes]]
"""(count, size): at most so many EDUs that count only now, with at most so many bytes together."""


@dataclass(frozen=True, slots=True)
class Built:
    """A transaction's body; `more` when more is due than is in it, or may be. `full` when a busy
    destination gets the next one without a pause."""

    body: bytes
    contents: Contents
    more: bool
    full: bool


def build(due: Due, latest: LatestTaker) -> Built | None:
    """A transaction of what is due, or None when nothing is.

    Our own LPDUs go first, because clients wait for them, but leave half to the events if there
    are any; one EDU always finds a place, so that a busy room cannot hold up keys. What counts only
    now fills what is left.
    """
    events, edus = due.events, due.edus
    lpdus = due.lpdus[: MAX_EVENTS // 2 if events else MAX_EVENTS]
    budget = MAX_BODY - (len(edus[0].edu) if edus else 0)
    sent_lpdus, used = _fitting([lpdu.lpdu for lpdu in lpdus], budget, 0)
    room_left = MAX_EVENTS - sent_lpdus
    sent_events, used = _fitting([event.pdu for event in events[:room_left]], budget, used)
    sent_edus, used = _fitting([edu.edu for edu in edus[:MAX_EDUS]], MAX_BODY, used)
    sent_edus = max(sent_edus, min(1, len(edus)))
    passing = latest(MAX_EDUS - sent_edus, MAX_BODY - used)
    contents = Contents(
        _ranges(events[:sent_events]),
        tuple((lpdu.room_id, lpdu.lpdu_id) for lpdu in lpdus[:sent_lpdus]),
        tuple(edu.seq for edu in edus[:sent_edus]),
    )
    if contents == Contents() and not passing:
        return None
    items = [lpdu.lpdu for lpdu in lpdus[:sent_lpdus]] + [event.pdu for event in events[:sent_events]]
    left = len(due.lpdus) > sent_lpdus or len(events) > sent_events or len(edus) > sent_edus
    all_edus = [*(edu.edu for edu in edus[:sent_edus]), *passing]
    full = len(items) >= MAX_EVENTS or len(all_edus) >= MAX_EDUS
    # A room may have more than its share of what was read; passing EDUs are taken, not read.
    more = left or len(passing) + sent_edus >= MAX_EDUS or (full and len(contents.ranges) > 1)
    body = _body(items, all_edus)
    if not all_edus and not sent_lpdus:
        spans = _spans(events[:sent_events])
        contents = replace(contents, spans=spans, digest=sha256(body).hexdigest())
    return Built(body, contents, more, full)


def rebuild(contents: Contents, events: Sequence[bytes]) -> bytes | None:
    """The body that was not stored, from the events of its spans; None if they are others now."""
    body = _body(events, [])
    return body if sha256(body).hexdigest() == contents.digest else None


def _fitting(items: Sequence[bytes], budget: int, used: int) -> tuple[int, int]:
    """How many of the items fit, in order, and the size then; the very first always fits."""
    for index, item in enumerate(items):
        if used and used + len(item) + 1 > budget:
            return index, used
        used += len(item) + 1
    return len(items), used


def _ranges(events: Sequence[DueEvent]) -> tuple[tuple[str, int, int], ...]:
    last: dict[tuple[str, int], int] = {}
    for event in events:
        last[event.room_id, event.from_position] = event.position
    return tuple((room_id, start, position) for (room_id, start), position in last.items())


def _spans(events: Sequence[DueEvent]) -> tuple[tuple[str, int, int], ...]:
    first: dict[tuple[str, int], int] = {}
    for event in events:
        first.setdefault((event.room_id, event.from_position), event.position)
    return tuple((room, first[room, start], last) for room, start, last in _ranges(events))


def _body(pdus: Sequence[bytes], edus: Sequence[bytes]) -> bytes:
    """Canonical JSON: the keys stand in order, the items are canonical already."""
    pdu_list = b'"pdus":[' + b",".join(pdus) + b"]}"
    return b"{" + (b'"edus":[' + b",".join(edus) + b"]," if edus else b"") + pdu_list
