"""History from before a participant's join, put below what it has lived through.

Such events are `backfilled`: placed by their links, never judged by the rules of a state we have not
got. Their positions go down from the join's; numbers may be left free between two stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.storage.database import Executor
from lmserver.storage.room_log import NewEvent
from lmserver.storage.room_state import NewState

UNVERIFIED: Final = "unverified: a signature could not be checked"
"""Why an event is shown to nobody until the keys of its server can be had."""
MAX_LOOKED_BACK: Final = 10_000


@dataclass(frozen=True, slots=True)
class Link:
    """An event's place and the event before it; `prev_event_id` is None for m.room.create."""

    position: int
    event_id: str
    prev_event_id: str | None


@dataclass(frozen=True, slots=True)
class Life:
    """One life of a state entry; `event_position` is None where its event has no place yet."""

    type: str
    state_key: str
    from_position: int
    to_position: int | None
    event_id: str
    event_position: int | None


@dataclass(frozen=True, slots=True)
class Unverified:
    event_id: str
    position: int
    pdu: bytes


@dataclass(frozen=True, slots=True)
class Redaction:
    """A redaction whose target was not here when it came."""

    redacts: str
    event_id: str
    by_moderator: bool
    sender: str


async def links_below(db: Executor, room_id: str, start: int, limit: int) -> list[Link]:
    """The links at and below a position, newest first."""
    rows = await db.fetch(
        "SELECT position, event_id, prev_event_id FROM events WHERE room_id = $1 AND position <= $2"
        " ORDER BY position DESC LIMIT $3",
        room_id,
        start,
        limit + 1,
    )
    return [_link(row, below) for row, below in itertools.zip_longest(rows[:limit], rows[1:])]


def _link(row: Any, below: Any) -> Link:
    """Without a predecessor of its own an event follows the one a position below (room_log.append)."""
    prev = row["prev_event_id"]
    if prev is None and below is not None and below["position"] == row["position"] - 1:
        prev = below["event_id"]
    return Link(row["position"], row["event_id"], prev)


async def lived_from(db: Executor, room_id: str, position: int) -> int | None:
    """The first position at or above this one that we have lived through: our join."""
    found: int | None = await db.fetchval(
        "SELECT position FROM events WHERE room_id = $1 AND position >= $2 AND NOT backfilled"
        " ORDER BY position LIMIT 1",
        room_id,
        position,
    )
    return found


async def add(db: Executor, room_id: str, events: Sequence[NewEvent], times: Sequence[int]) -> None:
    """Insert events, or give those known from a join their place; the caller holds the head. `times`
    (ms) stand where others have the moment they came, so that what is ordered by time has history where
    it belongs."""
    await db.execute(
        "INSERT INTO events (room_id, event_id, position, prev_event_id, lpdu_hash, type, state_key,"
        " sender, pdu, soft_failed, received_ts, words, backfilled)"
        " SELECT $1, n.event_id, n.position, n.prev_event_id, n.lpdu_hash, n.type, n.state_key,"
        " n.sender, n.pdu, n.soft_failed, n.sent, to_tsvector('simple', n.text), true"
        " FROM unnest($2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[],"
        " $8::text[], $9::text[], $10::bytea[], $11::text[], $12::text[])"
        " AS n (sent, event_id, position, prev_event_id, lpdu_hash, type, state_key, sender, pdu,"
        " soft_failed, text) ON CONFLICT (event_id, room_id) DO UPDATE SET position = EXCLUDED.position,"
        " prev_event_id = EXCLUDED.prev_event_id, backfilled = true, received_ts = EXCLUDED.received_ts,"
        " words = CASE WHEN events.redacted_by IS NULL AND events.soft_failed IS NULL THEN EXCLUDED.words END"
        " WHERE events.position IS NULL",
        room_id,
        list(times),
        [e.event_id for e in events],
        [e.position for e in events],
        [e.prev_event_id for e in events],
        [e.lpdu_hash for e in events],
        [e.type for e in events],
        [e.state_key for e in events],
        [e.sender for e in events],
        [e.pdu for e in events],
        [e.soft_failed for e in events],
        [e.text for e in events],
    )
    await db.execute(
        "UPDATE rooms SET min_position = least(min_position, $2) WHERE room_id = $1",
        room_id,
        min(e.position or 0 for e in events),
    )


async def lives(db: Executor, room_id: str, keys: Iterable[tuple[str, str]]) -> list[Life]:
    """Every life of these entries (type, state key), in order."""
    wanted = list(dict.fromkeys(keys))
    rows = await db.fetch(
        "SELECT s.type, s.state_key, s.from_position, s.to_position, s.event_id,"
        " e.position AS event_position FROM unnest($2::text[], $3::text[]) AS k (type, state_key)"
        " JOIN room_state AS s ON s.room_id = $1 AND s.type = k.type AND s.state_key = k.state_key"
        " JOIN events AS e ON e.event_id = s.event_id AND e.room_id = s.room_id"
        " ORDER BY s.type, s.state_key, s.from_position",
        room_id,
        [type_ for type_, _ in wanted],
        [state_key for _, state_key in wanted],
    )
    return [Life(*(r[name] for name in Life.__slots__)) for r in rows]


async def weave(db: Executor, room_id: str, begin: Sequence[NewState], end: Sequence[Life]) -> None:
    """Insert lives that have ended and end others earlier than they did."""
    await db.execute(
        "UPDATE room_state AS s SET to_position = n.to_position"
        " FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[])"
        " AS n (type, state_key, from_position, to_position)"
        " WHERE s.room_id = $1 AND s.type = n.type AND s.state_key = n.state_key"
        " AND s.from_position = n.from_position",
        room_id,
        [e.type for e in end],
        [e.state_key for e in end],
        [e.from_position for e in end],
        [e.to_position for e in end],
    )
    await db.execute(
        "INSERT INTO room_state (room_id, type, state_key, event_id, membership, from_position, to_position)"
        " SELECT $1, n.* FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],"
        " $7::bigint[]) AS n",
        room_id,
        [e.type for e in begin],
        [e.state_key for e in begin],
        [e.event_id for e in begin],
        [e.membership for e in begin],
        [e.from_position for e in begin],
        [e.to_position for e in begin],
    )


async def redactions_of(db: Executor, room_id: str, event_ids: Iterable[str]) -> list[Redaction]:
    """What was remembered for these events before they came."""
    rows = await db.fetch(
        "SELECT redacts, event_id, by_moderator, sender FROM redactions"
        " WHERE room_id = $1 AND redacts = ANY($2::text[]) ORDER BY event_id",
        room_id,
        list(event_ids),
    )
    return [Redaction(*(r[name] for name in Redaction.__slots__)) for r in rows]


async def unverified(db: Executor, room_id: str, lowest: int, highest: int, limit: int) -> list[Unverified]:
    """Events between two positions whose signatures could not be checked when they came. State that
    we have lived through stays as it is: what came after was judged without it."""
    rows = await db.fetch(
        "SELECT event_id, position, pdu FROM events WHERE room_id = $1 AND position BETWEEN $2 AND $3"
        " AND soft_failed = $4 AND (backfilled OR state_key IS NULL) ORDER BY position DESC LIMIT $5",
        room_id,
        lowest,
        highest,
        UNVERIFIED,
        limit,
    )
    return [Unverified(r["event_id"], r["position"], r["pdu"]) for r in rows]


async def verified(db: Executor, room_id: str, events: Sequence[tuple[str, str | None, str | None]]) -> None:
    """The signatures of these (event ID, LPDU hash, text to find it by) hold after all."""
    await db.execute(
        "UPDATE events AS e SET soft_failed = NULL, lpdu_hash = n.lpdu_hash,"
        " words = CASE WHEN e.redacted_by IS NULL THEN to_tsvector('simple', n.text) END"
        " FROM unnest($2::text[], $3::text[], $5::text[]) AS n (event_id, lpdu_hash, text)"
        " WHERE e.event_id = n.event_id AND e.room_id = $1 AND e.soft_failed = $4",
        room_id,
        [event_id for event_id, _, _ in events],
        [lpdu_hash for _, lpdu_hash, _ in events],
        UNVERIFIED,
        [text for _, _, text in events],
    )


async def has_unverified_state(db: Executor, room_id: str) -> bool:
    """Whether there is such a state event among the last ones."""
    found: bool = await db.fetchval(
        "SELECT EXISTS (SELECT 1 FROM (SELECT soft_failed, state_key FROM events WHERE room_id = $1"
        " AND position IS NOT NULL ORDER BY position DESC LIMIT $3) AS e"
        " WHERE e.soft_failed = $2 AND e.state_key IS NOT NULL)",
        room_id,
        UNVERIFIED,
        MAX_LOOKED_BACK,
    )
    return found
