"""Relations between events of a room, and threads: written with the events, gone when those are redacted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.storage.database import Executor
from lmserver.storage.room_batches import in_lists
from lmserver.storage.room_log import StoredEvent

MAX_REFERENCES: Final = 100
"""References to one event that are told with it."""
MAX_FOLLOWED: Final = 5_000
"""Relations that are followed to find those of relations."""


@dataclass(frozen=True, slots=True)
class NewRelation:
    """An event that relates to `parent_id`; `ts` is its origin_server_ts, `key` an annotation's."""

    event_id: str
    position: int
    parent_id: str
    rel_type: str
    type: str
    sender: str
    ts: int
    key: str | None


@dataclass(frozen=True, slots=True)
class Parent:
    """An event whose relations are asked for; of ignored users' nothing is told."""

    room_id: str
    event_id: str
    sender: str
    type: str
    ignored: Collection[str]


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread as one user sees it."""

    replies: int
    participated: bool
    latest: StoredEvent


@dataclass(frozen=True, slots=True)
class ThreadPlace:
    """A thread's root, and the position of its last reply."""

    root_id: str
    last_position: int


def _event(row: Any) -> StoredEvent:
    return StoredEvent(*(row[name] for name in StoredEvent._fields))


async def add(db: Executor, room_id: str, found: Sequence[NewRelation]) -> None:
    """In the transaction that places the events; what is known already stays."""
    await db.execute(
        "WITH new AS (INSERT INTO event_relations (room_id, event_id, position, parent_id, rel_type, type,"
        " sender, ts, key) SELECT $1, n.* FROM unnest($2::text[], $3::bigint[], $4::text[], $5::text[],"
        " $6::text[], $7::text[], $8::bigint[], $9::text[]) AS n ON CONFLICT DO NOTHING"
        " RETURNING parent_id, rel_type, position)"
        " INSERT INTO threads AS t (room_id, root_id, replies, last_position) SELECT $1, parent_id, count(*),"
        " max(position) FROM new WHERE rel_type = 'm.thread' GROUP BY parent_id"
        " ON CONFLICT (room_id, root_id) DO UPDATE SET replies = t.replies + excluded.replies,"
        " last_position = greatest(t.last_position, excluded.last_position)",
        room_id,
        *([getattr(r, name) for r in found] for name in NewRelation.__slots__),
    )


async def remove(db: Executor, room_id: str, event_ids: Sequence[str]) -> None:
    """What these events related to, they relate to no more: they are redacted."""
    await db.execute(
        "WITH gone AS (DELETE FROM event_relations WHERE room_id = $1 AND event_id = ANY($2::text[])"
        " RETURNING parent_id, rel_type)"
        " UPDATE threads AS t SET replies = t.replies - g.replies, last_position = coalesce((SELECT"
        " position FROM event_relations AS l WHERE l.room_id = $1 AND l.parent_id = t.root_id"
        " AND l.rel_type = 'm.thread' AND l.event_id <> ALL($2::text[]) ORDER BY position DESC LIMIT 1),"
        " t.last_position) FROM (SELECT parent_id, count(*) AS replies"
        " FROM gone WHERE rel_type = 'm.thread' GROUP BY parent_id) AS g"
        " WHERE t.room_id = $1 AND t.root_id = g.parent_id",
        room_id,
        list(event_ids),
    )


async def related(db: Executor, events: Sequence[tuple[str, str]]) -> set[str]:
    """Of these (room ID, event ID) the events that others relate to."""
    rows = await db.fetch(
        "SELECT p.event_id FROM unnest($1::text[], $2::text[]) AS w (room_id, event_ids)"
        " CROSS JOIN unnest(string_to_array(w.event_ids, ' ')) AS p (event_id) WHERE EXISTS"
        " (SELECT 1 FROM event_relations AS r WHERE r.room_id = w.room_id AND r.parent_id = p.event_id)",
        *in_lists(events),
    )
    return {r["event_id"] for r in rows}


async def replacements(db: Executor, parents: Sequence[Parent]) -> dict[str, StoredEvent]:
    """The newest edit of each event by its own sender, by their clock (CS API §Event replacements)."""
    rows = await db.fetch(
        "SELECT p.event_id AS parent, e.room_id, e.event_id, e.position, e.pdu, e.soft_failed,"
        " e.redacted_by, e.received_ts, e.stream_xid::text::bigint AS stream_xid"
        " FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS p (room_id, event_id, sender, type)"
        " CROSS JOIN LATERAL (SELECT event_id FROM event_relations AS r WHERE r.room_id = p.room_id"
        " AND r.parent_id = p.event_id AND r.rel_type = 'm.replace' AND r.sender = p.sender"
        " AND r.type = p.type ORDER BY r.ts DESC, r.event_id DESC LIMIT 1) AS r"
        " JOIN events AS e ON e.event_id = r.event_id AND e.room_id = p.room_id",
        [p.room_id for p in parents],
        [p.event_id for p in parents],
        [p.sender for p in parents],
        [p.type for p in parents],
    )
    return {r["parent"]: _event(r) for r in rows}


async def references(db: Executor, parents: Sequence[Parent]) -> dict[str, list[tuple[str, int, str]]]:
    """(event ID, position, sender) of the first references to each event."""
    rows = await db.fetch(
        "SELECT p.event_id AS parent, r.event_id, r.position, r.sender FROM unnest($1::text[], $2::text[])"
        " AS p (room_id, event_id) CROSS JOIN LATERAL (SELECT event_id, position, sender"
        " FROM event_relations AS r WHERE r.room_id = p.room_id AND r.parent_id = p.event_id"
        " AND r.rel_type = 'm.reference' ORDER BY position LIMIT $3) AS r ORDER BY r.position",
        [p.room_id for p in parents],
        [p.event_id for p in parents],
        MAX_REFERENCES,
    )
    found: dict[str, list[tuple[str, int, str]]] = {}
    for r in rows:
        found.setdefault(r["parent"], []).append((r["event_id"], r["position"], r["sender"]))
    return found


async def threads(db: Executor, user_id: str, parents: Sequence[Parent]) -> dict[str, Thread]:
    """The threads that begin with these events, for a user who may see all of them. All parents come with
    the same ignored users."""
    ignored = list(parents[0].ignored) if parents else []
    rows = await db.fetch(
        "SELECT p.event_id AS parent, t.replies - (SELECT count(*) FROM event_relations AS i"
        " WHERE i.room_id = p.room_id AND i.parent_id = p.event_id AND i.rel_type = 'm.thread'"
        " AND i.sender = ANY($4::text[])) AS replies, p.sender = $5 OR EXISTS (SELECT 1"
        " FROM event_relations AS m WHERE m.room_id = p.room_id AND m.parent_id = p.event_id"
        " AND m.rel_type = 'm.thread' AND m.sender = $5) AS participated, e.room_id, e.event_id, e.position,"
        " e.pdu, e.soft_failed, e.redacted_by, e.received_ts, e.stream_xid::text::bigint AS stream_xid"
        " FROM unnest($1::text[], $2::text[], $3::text[]) AS p (room_id, event_id, sender)"
        " JOIN threads AS t ON t.room_id = p.room_id AND t.root_id = p.event_id CROSS JOIN LATERAL"
        " (SELECT event_id FROM event_relations AS r WHERE r.room_id = p.room_id AND r.parent_id = p.event_id"
        " AND r.rel_type = 'm.thread' AND r.sender <> ALL($4::text[]) ORDER BY position DESC LIMIT 1) AS r"
        " JOIN events AS e ON e.event_id = r.event_id AND e.room_id = p.room_id",
        [p.room_id for p in parents],
        [p.event_id for p in parents],
        [p.sender for p in parents],
        ignored,
        user_id,
    )
    return {r["parent"]: Thread(r["replies"], r["participated"], _event(r)) for r in rows}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Relations of one event, of a kind and an event type where those are given, at positions in
    (after, upto]."""

    room_id: str
    parent_id: str
    rel_type: str | None
    type: str | None
    after: int
    upto: int
    limit: int
    newest_first: bool


async def children(db: Executor, wanted: Wanted) -> list[StoredEvent]:
    """Events that relate to one, in the order asked for."""
    query = (
        (
            "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
            " e.stream_xid::text::bigint AS stream_xid FROM event_relations AS r"
            " JOIN events AS e ON e.event_id = r.event_id AND e.room_id = r.room_id"
            " WHERE r.room_id = $1 AND r.parent_id = $2 AND r.rel_type = $3"
            " AND ($4::text IS NULL OR r.type = $4) AND r.position > $5 AND r.position <= $6"
            " ORDER BY r.position DESC LIMIT $7"
            if wanted.newest_first
            else "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by,"
            " e.received_ts, e.stream_xid::text::bigint AS stream_xid FROM event_relations AS r"
            " JOIN events AS e ON e.event_id = r.event_id AND e.room_id = r.room_id"
            " WHERE r.room_id = $1 AND r.parent_id = $2 AND r.rel_type = $3"
            " AND ($4::text IS NULL OR r.type = $4) AND r.position > $5 AND r.position <= $6"
            " ORDER BY r.position LIMIT $7"
        )
        if wanted.rel_type is not None
        else (
            "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
            " e.stream_xid::text::bigint AS stream_xid FROM event_relations AS r"
            " JOIN events AS e ON e.event_id = r.event_id AND e.room_id = r.room_id"
            " WHERE r.room_id = $1 AND r.parent_id = $2 AND $3::text IS NULL"
            " AND ($4::text IS NULL OR r.type = $4) AND r.position > $5 AND r.position <= $6"
            " ORDER BY r.position DESC LIMIT $7"
            if wanted.newest_first
            else "SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by,"
            " e.received_ts, e.stream_xid::text::bigint AS stream_xid FROM event_relations AS r"
            " JOIN events AS e ON e.event_id = r.event_id AND e.room_id = r.room_id"
            " WHERE r.room_id = $1 AND r.parent_id = $2 AND $3::text IS NULL"
            " AND ($4::text IS NULL OR r.type = $4) AND r.position > $5 AND r.position <= $6"
            " ORDER BY r.position LIMIT $7"
        )
    )
    rows = await db.fetch(
        query,
        wanted.room_id,
        wanted.parent_id,
        wanted.rel_type,
        wanted.type,
        wanted.after,
        wanted.upto,
        wanted.limit,
    )
    return [_event(r) for r in rows]


async def descendants(db: Executor, wanted: Wanted, depth: int) -> list[StoredEvent]:
    """The same with relations of relations, down to `depth` and at most MAX_FOLLOWED in all."""
    rows = await db.fetch(
        "WITH RECURSIVE found AS (SELECT event_id, position, rel_type, type, 1 AS depth FROM event_relations"
        " WHERE room_id = $1 AND parent_id = $2"
        " UNION ALL SELECT r.event_id, r.position, r.rel_type, r.type, f.depth + 1 FROM found AS f"
        " JOIN event_relations AS r ON r.room_id = $1 AND r.parent_id = f.event_id WHERE f.depth < $8)"
        " SELECT e.room_id, e.event_id, e.position, e.pdu, e.soft_failed, e.redacted_by, e.received_ts,"
        " e.stream_xid::text::bigint AS stream_xid FROM (SELECT * FROM found LIMIT $9) AS f"
        " JOIN events AS e ON e.event_id = f.event_id AND e.room_id = $1"
        " WHERE ($3::text IS NULL OR f.rel_type = $3) AND ($4::text IS NULL OR f.type = $4)"
        " AND f.position > $5 AND f.position <= $6"
        " ORDER BY CASE WHEN $10 THEN -f.position ELSE f.position END LIMIT $7",
        wanted.room_id,
        wanted.parent_id,
        wanted.rel_type,
        wanted.type,
        wanted.after,
        wanted.upto,
        wanted.limit,
        depth,
        MAX_FOLLOWED,
        wanted.newest_first,
    )
    return [_event(r) for r in rows]


async def newest_threads(
    db: Executor, room_id: str, before: int, limit: int, participant: str | None
) -> list[ThreadPlace]:
    """Threads by their last reply, newest first; of one user those they said something in."""
    rows = await db.fetch(
        "SELECT root_id, last_position FROM threads AS t WHERE room_id = $1 AND last_position < $2"
        " AND replies > 0 AND ($4::text IS NULL OR EXISTS (SELECT 1 FROM event_relations AS r"
        " WHERE r.room_id = $1 AND r.parent_id = t.root_id AND r.rel_type = 'm.thread' AND r.sender = $4)"
        " OR EXISTS (SELECT 1 FROM events AS e WHERE e.event_id = t.root_id AND e.room_id = $1"
        " AND e.sender = $4)) ORDER BY last_position DESC LIMIT $3",
        room_id,
        before,
        limit,
        participant,
    )
    return [ThreadPlace(r["root_id"], r["last_position"]) for r in rows]


async def annotated(db: Executor, room_id: str, parent_id: str, sender: str, type_: str, key: str) -> bool:
    """Whether a user has annotated an event with this key before."""
    found: bool = await db.fetchval(
        "SELECT EXISTS (SELECT 1 FROM event_relations WHERE room_id = $1 AND parent_id = $2"
        " AND rel_type = 'm.annotation' AND sender = $3 AND type = $4 AND key = $5)",
        room_id,
        parent_id,
        sender,
        type_,
        key,
    )
    return found
