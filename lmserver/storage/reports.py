"""What users report to whoever runs this server: rooms, events, other users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class Report:
    """One report. `event_id` is set for events, `reported` for events (their sender) and users;
    `score` is from -100 (worst) to 0, where the client gave one. `created_ts` in ms."""

    reporter: str
    kind: str
    room_id: str | None
    event_id: str | None
    reported: str | None
    reason: str
    score: int | None
    created_ts: int


@dataclass(frozen=True, slots=True)
class FiledReport:
    """A report under the number it was filed under."""

    id: int
    report: Report


def _filed(row: Any) -> FiledReport:
    return FiledReport(row["id"], Report(*(row[name] for name in Report.__slots__)))


async def file(db: Executor, report: Report) -> int:
    """Keep a report; returns its number."""
    number: int = await db.fetchval(
        "INSERT INTO reports (reporter, kind, room_id, event_id, reported, reason, score, created_ts)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id",
        report.reporter,
        report.kind,
        report.room_id,
        report.event_id,
        report.reported,
        report.reason,
        report.score,
        report.created_ts,
    )
    return number


async def newest(db: Executor, before: int | None, limit: int) -> list[FiledReport]:
    """Reports below a number, the newest first."""
    rows = await db.fetch(
        "SELECT id, reporter, kind, room_id, event_id, reported, reason, score, created_ts FROM reports"
        " WHERE $1::bigint IS NULL OR id < $1 ORDER BY id DESC LIMIT $2",
        before,
        limit,
    )
    return [_filed(r) for r in rows]


async def page(
    db: Executor, room_id: str | None, reporter: str | None, start: int, limit: int, *, oldest_first: bool
) -> list[FiledReport]:
    """Reports of a room and by a user, where those are given, behind the first `start` of them."""
    rows = await db.fetch(
        "SELECT id, reporter, kind, room_id, event_id, reported, reason, score, created_ts FROM reports"
        " WHERE ($1::text IS NULL OR room_id = $1) AND ($2::text IS NULL OR reporter = $2)"
        " ORDER BY CASE WHEN $5 THEN id ELSE -id END OFFSET $3 LIMIT $4",
        room_id,
        reporter,
        start,
        limit,
        oldest_first,
    )
    return [_filed(r) for r in rows]


async def count(db: Executor, room_id: str | None, reporter: str | None) -> int:
    """How many there are on all pages."""
    found: int = await db.fetchval(
        "SELECT count(*) FROM reports"
        " WHERE ($1::text IS NULL OR room_id = $1) AND ($2::text IS NULL OR reporter = $2)",
        room_id,
        reporter,
    )
    return found


async def one(db: Executor, number: int) -> FiledReport | None:
    row = await db.fetchrow(
        "SELECT id, reporter, kind, room_id, event_id, reported, reason, score, created_ts FROM reports"
        " WHERE id = $1",
        number,
    )
    return None if row is None else _filed(row)


async def remove(db: Executor, number: int) -> bool:
    """Whether there was one."""
    return await db.fetchval("DELETE FROM reports WHERE id = $1 RETURNING true", number) is True
