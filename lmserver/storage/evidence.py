"""What is held against rooms' hubs: kind, words, and the bytes that prove it.

Bounded for each room and kind: the first cases stay, so a flood of one kind neither fills the
database nor hides another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lmserver.storage.database import Executor

MAX_FOR_EACH_KIND: Final = 50
"""Rows of one kind in one room."""


@dataclass(frozen=True, slots=True)
class NewEvidence:
    """One case; `pdu` is what the hub sent, as it sent it. What it contradicts is given as bytes
    (`related`) or as an event of the room (`related_event_id`)."""

    event_id: str
    kind: str
    detail: str
    pdu: bytes
    related: bytes | None = None
    related_event_id: str | None = None


@dataclass(frozen=True, slots=True)
class StoredEvidence:
    """One case with the hub it is held against; `created_ts` in ms."""

    room_id: str
    hub_server: str
    event_id: str
    kind: str
    detail: str
    pdu: bytes
    related: bytes | None
    created_ts: int


async def add(db: Executor, room_id: str, new: NewEvidence, now_ms: int) -> bool:
    """Whether it was stored: False for a case known already or one too many of its kind."""
    stored = await db.fetchval(
        "INSERT INTO evidence (room_id, event_id, kind, detail, pdu, related, created_ts)"
        " SELECT $1, $2, $3, $4, $5, coalesce($6::bytea,"
        " (SELECT pdu FROM events WHERE event_id = $7 AND room_id = $1)), $8"
        " WHERE (SELECT count(*) FROM evidence WHERE room_id = $1 AND kind = $3) < $9"
        " ON CONFLICT DO NOTHING RETURNING true",
        room_id,
        new.event_id,
        new.kind,
        new.detail,
        new.pdu,
        new.related,
        new.related_event_id,
        now_ms,
        MAX_FOR_EACH_KIND,
    )
    return bool(stored)


async def rooms(db: Executor) -> list[str]:
    """The rooms whose hub something is held against."""
    rows = await db.fetch("SELECT DISTINCT room_id FROM evidence ORDER BY room_id")
    return [r["room_id"] for r in rows]


async def page(db: Executor, room_id: str | None, start: int, limit: int) -> list[StoredEvidence]:
    """Cases of a room, or of all, the newest first, behind the first `start` of them."""
    rows = await db.fetch(
        "SELECT e.room_id, coalesce(r.hub_server, '') AS hub_server, e.event_id, e.kind, e.detail, e.pdu,"
        " e.related, e.created_ts FROM evidence AS e LEFT JOIN rooms AS r ON r.room_id = e.room_id"
        " WHERE $1::text IS NULL OR e.room_id = $1"
        " ORDER BY e.created_ts DESC, e.room_id, e.event_id, e.kind OFFSET $2 LIMIT $3",
        room_id,
        start,
        limit,
    )
    return [StoredEvidence(*(r[name] for name in StoredEvidence.__slots__)) for r in rows]


async def of_room(db: Executor, room_id: str) -> list[StoredEvidence]:
    """Everything held against one room's hub, oldest first."""
    rows = await db.fetch(
        "SELECT e.room_id, coalesce(r.hub_server, '') AS hub_server, e.event_id, e.kind, e.detail, e.pdu,"
        " e.related, e.created_ts FROM evidence AS e LEFT JOIN rooms AS r ON r.room_id = e.room_id"
        " WHERE e.room_id = $1 ORDER BY e.created_ts, e.event_id, e.kind",
        room_id,
    )
    return [StoredEvidence(*(r[name] for name in StoredEvidence.__slots__)) for r in rows]
