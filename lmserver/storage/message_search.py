"""Full text of messages in rooms that are not encrypted, for search.

Written in the append transaction, removed in the one that applies a redaction. Only words are kept,
as PostgreSQL's `simple` configuration makes them of a text: no language is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.storage.database import Executor

SEARCHED: Final = {
    "m.room.message": "content.body",
    "m.room.name": "content.name",
    "m.room.topic": "content.topic",
}
"""Event types to the key whose text is found (CS API §Server side search, `keys`)."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text at its place in a room."""

    event_id: str
    position: int
    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a search goes on: behind the hit of this order key (ms, or rank) and event ID."""

    key: float
    event_id: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A text that has the words; nothing is said of who may see it."""

    room_id: str
    event_id: str
    position: int
    key: float
    rank: float

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.key, self.event_id)


def _hit(row: Any) -> Hit:
    return Hit(*(row[name] for name in Hit.__slots__))


async def add(db: Executor, room_id: str, texts: Sequence[Text], now_ms: int) -> None:
    await db.execute(
        "INSERT INTO message_search (room_id, event_id, position, received_ts, key, words)"
        " SELECT $1, n.event_id, n.position, $2, n.key, to_tsvector('simple', n.text)"
        " FROM unnest($3::text[], $4::bigint[], $5::text[], $6::text[]) AS n (event_id, position, key, text)"
        " ON CONFLICT (room_id, event_id) DO NOTHING",
        room_id,
        now_ms,
        [t.event_id for t in texts],
        [t.position for t in texts],
        [t.key for t in texts],
        [t.text for t in texts],
    )


async def remove(db: Executor, room_id: str, event_ids: Iterable[str]) -> None:
    """What was redacted is found by nobody."""
    await db.execute(
        "DELETE FROM message_search WHERE room_id = $1 AND event_id = ANY($2::text[])",
        room_id,
        list(event_ids),
    )


async def searchable_rooms(db: Executor, user_id: str) -> list[str]:
    """Rooms the user is or was in that are not encrypted now."""
    rows = await db.fetch(
        "SELECT m.room_id FROM room_state AS m WHERE m.state_key = $1 AND m.type = 'm.room.member'"
        " AND m.to_position IS NULL AND m.membership IN ('join', 'leave', 'ban')"
        " AND NOT EXISTS (SELECT 1 FROM room_state AS c WHERE c.room_id = m.room_id"
        " AND c.type = 'm.room.encryption' AND c.state_key = '' AND c.to_position IS NULL)",
        user_id,
    )
    return [r["room_id"] for r in rows]


async def newest(
    db: Executor, rooms: Sequence[str], term: str, keys: Sequence[str], after: Cursor | None, limit: int
) -> list[Hit]:
    """Texts with all words of the term, those received last first."""
    rows = await db.fetch(
        "SELECT room_id, event_id, position, received_ts::float8 AS key,"
        " ts_rank_cd(words, plainto_tsquery('simple', $2))::float8 AS rank FROM message_search"
        " WHERE room_id = ANY($1::text[]) AND words @@ plainto_tsquery('simple', $2)"
        " AND key = ANY($3::text[]) AND ($4::bigint IS NULL OR (received_ts, event_id) < ($4, $5))"
        " ORDER BY received_ts DESC, event_id DESC LIMIT $6",
        list(rooms),
        term,
        list(keys),
        None if after is None else int(after.key),
        "" if after is None else after.event_id,
        limit,
    )
    return [_hit(r) for r in rows]


async def best(
    db: Executor, rooms: Sequence[str], term: str, keys: Sequence[str], after: Cursor | None, limit: int
) -> list[Hit]:
    """The same, those first in which the words stand closest and most often."""
    rows = await db.fetch(
        "SELECT room_id, event_id, position, rank AS key, rank FROM (SELECT room_id, event_id, position,"
        " ts_rank_cd(words, plainto_tsquery('simple', $2))::float8 AS rank FROM message_search"
        " WHERE room_id = ANY($1::text[]) AND words @@ plainto_tsquery('simple', $2)"
        " AND key = ANY($3::text[])) AS m WHERE $4::float8 IS NULL OR (rank, event_id) < ($4, $5)"
        " ORDER BY rank DESC, event_id DESC LIMIT $6",
        list(rooms),
        term,
        list(keys),
        None if after is None else after.key,
        "" if after is None else after.event_id,
        limit,
    )
    return [_hit(r) for r in rows]
