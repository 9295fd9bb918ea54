"""Full text of messages in rooms that are not encrypted, for search.

Their words stand in the events' rows, written with them and removed in the transaction that applies a
redaction, as PostgreSQL's `simple` configuration makes them of a text: no language is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.storage.database import Executor

SEARCHED: Final = {
    "m.room.message": "content.body",
    "m.room.name": "content.name",
    "m.room.topic": "content.topic",
}
"""Event types to the key whose text is found (CS API §Server side search, `keys`)."""


def searched_text(type_: str, content: Mapping[str, Any]) -> str | None:
    """What an event of an unencrypted room is found by."""
    key = SEARCHED.get(type_)
    text = None if key is None else content.get(key.removeprefix("content."))
    return text.replace("\0", " ") if isinstance(text, str) and text else None


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


def _types(keys: Sequence[str]) -> list[str]:
    return [type_ for type_, key in SEARCHED.items() if key in keys]


def _hit(row: Any) -> Hit:
    return Hit(*(row[name] for name in Hit.__slots__))


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
        " ts_rank_cd(words, plainto_tsquery('simple', $2))::float8 AS rank FROM events"
        " WHERE room_id = ANY($1::text[]) AND words @@ plainto_tsquery('simple', $2)"
        " AND type = ANY($3::text[]) AND ($4::bigint IS NULL OR (received_ts, event_id) < ($4, $5))"
        " ORDER BY received_ts DESC, event_id DESC LIMIT $6",
        list(rooms),
        term,
        _types(keys),
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
        " ts_rank_cd(words, plainto_tsquery('simple', $2))::float8 AS rank FROM events"
        " WHERE room_id = ANY($1::text[]) AND words @@ plainto_tsquery('simple', $2)"
        " AND type = ANY($3::text[])) AS m WHERE $4::float8 IS NULL OR (rank, event_id) < ($4, $5)"
        " ORDER BY rank DESC, event_id DESC LIMIT $6",
        list(rooms),
        term,
        _types(keys),
        None if after is None else after.key,
        "" if after is None else after.event_id,
        limit,
    )
    return [_hit(r) for r in rows]
