"""What counting a user's unread notifications reads, for many users and rooms at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class Question:
    """A user and a room. Of receipts in threads those at or after `threads_from` matter; `saved` asks for
    the tally that was saved as well."""

    user_id: str
    room_id: str
    threads_from: int
    saved: bool


@dataclass(frozen=True, slots=True)
class Basis:
    """How far the room goes, how far the user has read each thread ("" for all of them, "main" for what is
    in none), and the tally saved: the position it goes to and its marks."""

    head: int
    read: dict[str, int]
    counted_to: int | None
    marks: bytes | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Positions (after, upto] of a room."""

    room_id: str
    after: int
    upto: int


@dataclass(frozen=True, slots=True)
class Heard:
    """An event as counting needs it."""

    position: int
    sender: str
    pdu: bytes
    redacted: bool


@dataclass(frozen=True, slots=True)
class Noticed:
    """Where and when there was something to notify of."""

    room_id: str
    event_id: str
    position: int
    received_ts: int


async def bases(db: Executor, questions: Sequence[Question]) -> list[Basis | None]:
    """An answer for each question, None for a room we do not hold."""
    rows = await db.fetch(
        "SELECT q.n, r.head_position, p.threads, p.positions, t.counted_to, t.marks"
        " FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[]) WITH ORDINALITY"
        " AS q (user_id, room_id, threads_from, saved, n)"
        " JOIN rooms AS r ON r.room_id = q.room_id"
        " LEFT JOIN LATERAL (SELECT array_agg(thread_id) AS threads, array_agg(position) AS positions"
        " FROM receipts WHERE room_id = q.room_id AND user_id = q.user_id"
        " AND (thread_id IN ('', 'main') OR position >= q.threads_from)) AS p ON true"
        " LEFT JOIN unread_tallies AS t ON t.user_id = q.user_id AND t.room_id = q.room_id AND q.saved",
        [q.user_id for q in questions],
        [q.room_id for q in questions],
        [q.threads_from for q in questions],
        [q.saved for q in questions],
    )
    found: list[Basis | None] = [None] * len(questions)
    for r in rows:
        read: dict[str, int] = {}
        for thread, position in zip(r["threads"] or (), r["positions"] or (), strict=True):
            read[thread] = max(position, read.get(thread, position))
        marks = None if r["marks"] is None else bytes(r["marks"])
        found[r["n"] - 1] = Basis(r["head_position"], read, r["counted_to"], marks)
    return found


async def joined_since(db: Executor, user_id: str, room_ids: Sequence[str]) -> dict[str, int]:
    """Where the user's present stay in each room began; changes of a profile begin none."""
    rows = await db.fetch(
        "SELECT room_id, coalesce(max(to_position) FILTER (WHERE membership <> 'join'),"
        " min(from_position)) AS since FROM room_state WHERE room_id = ANY($2::text[])"
        " AND type = 'm.room.member' AND state_key = $1 GROUP BY room_id",
        user_id,
        list(room_ids),
    )
    return {r["room_id"]: r["since"] for r in rows}


async def heard(db: Executor, stretches: Sequence[Stretch], limit: int) -> list[list[Heard]]:
    """The events of each stretch, at most `limit` from its beginning."""
    rows = await db.fetch(
        "SELECT s.n, e.position, e.sender, e.pdu, e.redacted_by IS NOT NULL AS redacted"
        " FROM unnest($1::text[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS s (room_id, after, upto, n)"
        " CROSS JOIN LATERAL (SELECT position, sender, pdu, redacted_by FROM events"
        " WHERE room_id = s.room_id AND position > s.after AND position <= s.upto AND soft_failed IS NULL"
        " ORDER BY position LIMIT $4) AS e ORDER BY s.n, e.position",
        [s.room_id for s in stretches],
        [s.after for s in stretches],
        [s.upto for s in stretches],
        limit,
    )
    found: list[list[Heard]] = [[] for _ in stretches]
    for r in rows:
        found[r["n"] - 1].append(Heard(r["position"], r["sender"], bytes(r["pdu"]), r["redacted"]))
    return found


async def redacted_positions(db: Executor, room_id: str, event_ids: Sequence[str]) -> set[int]:
    """Where those of these events stand that are redacted."""
    rows = await db.fetch(
        "SELECT position FROM events WHERE event_id = ANY($2::text[]) AND room_id = $1"
        " AND redacted_by IS NOT NULL AND position IS NOT NULL",
        room_id,
        list(event_ids),
    )
    return {r["position"] for r in rows}


async def noticed(
    db: Executor, places: Sequence[tuple[str, int]], before: tuple[int, int] | None, limit: int
) -> list[Noticed]:
    """Of the events at these (room ID, position) the newest, those before a (time, position)."""
    rows = await db.fetch(
        "SELECT e.room_id, e.event_id, e.position, e.received_ts"
        " FROM unnest($1::text[], $2::bigint[]) AS p (room_id, position)"
        " JOIN events AS e ON e.room_id = p.room_id AND e.position = p.position"
        " WHERE $3::bigint IS NULL OR (e.received_ts, e.position) < ($3, $4)"
        " ORDER BY e.received_ts DESC, e.position DESC LIMIT $5",
        [room_id for room_id, _ in places],
        [position for _, position in places],
        *(before or (None, None)),
        limit,
    )
    return [Noticed(*(r[name] for name in Noticed.__slots__)) for r in rows]


async def save(db: Executor, user_id: str, room_id: str, counted_to: int, marks: bytes) -> None:
    """Keep a tally; an older one does not replace a newer one."""
    await db.execute(
        "INSERT INTO unread_tallies (user_id, room_id, counted_to, marks) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (user_id, room_id) DO UPDATE SET counted_to = excluded.counted_to,"
        " marks = excluded.marks WHERE unread_tallies.counted_to <= excluded.counted_to",
        user_id,
        room_id,
        counted_to,
        marks,
    )
