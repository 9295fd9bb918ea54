"""What waits to be sent to a destination, and the one transaction that is being sent.

Events are read from the rooms' lists by range; only EDUs and our own LPDUs have rows of their
own. A transaction is stored before it is sent the first time (drill D2): to the byte, or, where
it has nothing but events of rooms' lists, which never change, as where they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor
from lmserver.storage.destinations import LONGEST_PAUSE_MS

MAX_WAITING = 10_000
"""EDUs of one kind for one destination."""


@dataclass(frozen=True, slots=True)
class OutboundTransaction:
    """`contents` is the sender's own note of what the body holds; it suffices where `body` is None."""

    txn_id: str
    body: bytes | None
    contents: bytes


@dataclass(frozen=True, slots=True)
class DueEvent:
    """An event a destination has not acknowledged, and the range it belongs to."""

    room_id: str
    from_position: int
    position: int
    pdu: bytes


@dataclass(frozen=True, slots=True)
class DueLpdu:
    """An LPDU of ours its hub has not answered."""

    room_id: str
    lpdu_id: str
    lpdu: bytes
    seq: int


@dataclass(frozen=True, slots=True)
class DueEdu:
    seq: int
    edu: bytes


@dataclass(frozen=True, slots=True)
class Due:
    """What waits for a destination, each list in the order in which it is to be sent."""

    events: list[DueEvent]
    lpdus: list[DueLpdu]
    edus: list[DueEdu]


async def transaction(db: Executor, destination: str) -> OutboundTransaction | None:
    row = await db.fetchrow(
        "SELECT txn_id, body, contents FROM outbound_transactions WHERE destination = $1", destination
    )
    return None if row is None else OutboundTransaction(row["txn_id"], row["body"], row["contents"])


async def events_in(db: Executor, spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """The events of spans (room, first position, last), in their order."""
    rows = await db.fetch(
        "SELECT e.pdu FROM unnest($1::text[], $2::bigint[], $3::bigint[]) WITH ORDINALITY"
        " AS n (room_id, first, last, place) CROSS JOIN LATERAL (SELECT position, pdu FROM events"
        " WHERE events.room_id = n.room_id AND position BETWEEN n.first AND n.last ORDER BY position) AS e"
        " ORDER BY n.place, e.position",
        [room_id for room_id, _, _ in spans],
        [first for _, first, _ in spans],
        [last for _, _, last in spans],
    )
    return [r["pdu"] for r in rows]


async def discard(db: Executor, destination: str, fence: int, txn_id: str) -> None:
    """Forget a transaction whose events are not here any more; what is left is due as before."""
    await db.execute(
        "DELETE FROM outbound_transactions WHERE destination = $1 AND txn_id = $3"
        " AND EXISTS (SELECT 1 FROM destinations WHERE destination = $1 AND lease_fence = $2)",
        destination,
        fence,
        txn_id,
    )


async def store_transaction(
    db: Executor, destination: str, fence: int, txn: OutboundTransaction, now_ms: int
) -> bool:
    """False when the lease is no longer ours or another transaction is there: nothing is stored."""
    stored = await db.fetchval(
        "INSERT INTO outbound_transactions (destination, txn_id, body, contents, created_ts)"
        " SELECT d.destination, $3, $4, $5, $6 FROM destinations AS d"
        " WHERE d.destination = $1 AND d.lease_fence = $2 FOR UPDATE"
        " ON CONFLICT (destination) DO NOTHING RETURNING true",
        destination,
        fence,
        txn.txn_id,
        txn.body,
        txn.contents,
        now_ms,
    )
    return bool(stored)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a destination took: `ranges` (room, from position, last), `lpdus` (room, LPDU ID), `edus`.

    An LPDU is sent again, if neither answer nor echo comes, after `resend_first_ms`, doubled with
    each time up to `resend_most_ms`.
    """

    ranges: Sequence[tuple[str, int, int]]
    lpdus: Sequence[tuple[str, str]]
    edus: Sequence[int]
    resend_first_ms: int
    resend_most_ms: int


async def settle(
    db: Executor, destination: str, fence: int, txn_id: str, taken: Settlement, now_ms: int
) -> bool:
    """Record in one statement that a transaction was taken; False when the lease is no longer ours.

    Settling what was settled before changes nothing. Ranges that have ended and are acknowledged
    to their end disappear. Nothing waits for the disk: what a crash of the database forgets of it is
    sent again, to the byte, and settled again.
    """
    held = await db.fetchval(
        "WITH held AS (SELECT 1 FROM destinations WHERE destination = $1 AND lease_fence = $2 FOR UPDATE),"
        " removed AS (DELETE FROM outbound_transactions WHERE destination = $1 AND txn_id = $3"
        " AND EXISTS (SELECT 1 FROM held) RETURNING true),"
        " acked AS (SELECT * FROM unnest($4::text[], $5::bigint[], $6::bigint[])"
        " AS n (room_id, from_position, position) WHERE EXISTS (SELECT 1 FROM removed)),"
        " advanced AS (UPDATE outbound_ranges AS o"
        " SET acked_position = greatest(o.acked_position, n.position)"
        " FROM acked AS n WHERE o.destination = $1 AND o.room_id = n.room_id"
        " AND o.from_position = n.from_position"
        " AND (o.until_position IS NULL OR n.position < o.until_position)),"
        " finished AS (DELETE FROM outbound_ranges AS o USING acked AS n WHERE o.destination = $1"
        " AND o.room_id = n.room_id AND o.from_position = n.from_position"
        " AND n.position >= o.until_position),"
        # What is locked has its echo coming, and is not sent again.
        " free AS (SELECT o.room_id, o.lpdu_id FROM outbound_lpdus AS o JOIN unnest($7::text[], $8::text[])"
        " AS n (room_id, lpdu_id) ON o.room_id = n.room_id AND o.lpdu_id = n.lpdu_id"
        " WHERE o.status = 'pending' AND EXISTS (SELECT 1 FROM removed) FOR UPDATE OF o SKIP LOCKED),"
        " sent AS (UPDATE outbound_lpdus AS o SET sends = o.sends + 1,"
        " resend_at = $10 + least($11 * (1::bigint << least(o.sends, 20)), $12)"
        " FROM free AS n WHERE o.room_id = n.room_id AND o.lpdu_id = n.lpdu_id),"
        " delivered AS (DELETE FROM outbound_edus WHERE destination = $1 AND seq = ANY($9::bigint[])"
        " AND EXISTS (SELECT 1 FROM removed))"
        " SELECT set_config('synchronous_commit', 'off', true) IS NOT NULL FROM held",
        destination,
        fence,
        txn_id,
        [r[0] for r in taken.ranges],
        [r[1] for r in taken.ranges],
        [r[2] for r in taken.ranges],
        [room for room, _ in taken.lpdus],
        [lpdu_id for _, lpdu_id in taken.lpdus],
        list(taken.edus),
        now_ms,
        taken.resend_first_ms,
        taken.resend_most_ms,
    )
    return bool(held)


async def destinations_signed_with(db: Executor, key_ids: Sequence[str]) -> list[str]:
    """Destinations whose stored transaction has an event in which one of these key IDs occurs."""
    rows = await db.fetch(
        "SELECT destination FROM outbound_transactions WHERE EXISTS"
        " (SELECT FROM unnest($1::bytea[]) AS k (id) WHERE position(k.id IN body) > 0) ORDER BY destination",
        [f'"{key_id}"'.encode() for key_id in key_ids],
    )
    return [r["destination"] for r in rows]


async def replace_body(db: Executor, destination: str, txn_id: str, body: bytes) -> None:
    """Send these bytes from now on, under the same ID."""
    await db.execute(
        "UPDATE outbound_transactions SET body = $3 WHERE destination = $1 AND txn_id = $2",
        destination,
        txn_id,
        body,
    )


async def due(db: Executor, destination: str, now_ms: int, max_pdus: int, max_edus: int) -> Due:
    """What may go into the next transaction, at most so many of each, read in one statement.

    Events: the next ones of every room that has some, each room in order and with an equal share, the rooms
    in another order each time: none waits for ever behind others that are always busy.
    LPDUs: unanswered ones, in the order they were made; those sent lately wait for the echo.
    """
    rows = await db.fetch(
        "WITH ranges AS (SELECT q.*, count(*) OVER () AS number FROM ("
        "SELECT hashtextextended(o.room_id, $2) AS turn, o.room_id, o.from_position, o.acked_position,"
        " least(m.head_position, o.until_position) AS last_position"
        " FROM outbound_ranges AS o JOIN rooms AS m ON m.room_id = o.room_id"
        " WHERE o.destination = $1 AND o.acked_position < least(m.head_position, o.until_position)"
        " ORDER BY turn, o.room_id, o.from_position LIMIT $3) AS q),"
        " events AS (SELECT r.turn, r.room_id, r.from_position, e.position, e.pdu FROM ranges AS r"
        " CROSS JOIN LATERAL (SELECT position, pdu FROM events WHERE events.room_id = r.room_id"
        " AND position > r.acked_position AND position <= r.last_position"
        " ORDER BY position LIMIT greatest(1, $3 / r.number)) AS e"
        " ORDER BY r.turn, r.room_id, e.position LIMIT $3),"
        " lpdus AS (SELECT seq, room_id, lpdu_id, lpdu FROM outbound_lpdus WHERE destination = $1"
        " AND status = 'pending' AND (resend_at <= $2 OR resend_at > $5) ORDER BY seq LIMIT $3),"
        " edus AS (SELECT seq, edu FROM outbound_edus WHERE destination = $1 ORDER BY seq LIMIT $4)"
        " SELECT 'event' AS kind, turn, room_id, position AS place, from_position, NULL AS lpdu_id,"
        " pdu AS data FROM events UNION ALL SELECT 'lpdu', NULL, room_id, seq, NULL, lpdu_id, lpdu FROM lpdus"
        " UNION ALL SELECT 'edu', NULL, NULL, seq, NULL, NULL, edu FROM edus"
        " ORDER BY kind, turn, room_id, place",
        destination,
        now_ms,
        max_pdus,
        max_edus,
        now_ms + LONGEST_PAUSE_MS,
    )
    found = Due([], [], [])
    for row in rows:
        match row["kind"]:
            case "event":
                place = row["room_id"], row["from_position"], row["place"]
                found.events.append(DueEvent(*place, row["data"]))
            case "lpdu":
                found.lpdus.append(DueLpdu(row["room_id"], row["lpdu_id"], row["data"], row["place"]))
            case _:
                found.edus.append(DueEdu(row["place"], row["data"]))
    found.lpdus.sort(key=lambda lpdu: lpdu.seq)
    return found


@dataclass(frozen=True, slots=True)
class NewEdu:
    """An EDU for one destination; a newer one of the same `key` takes the older one's place."""

    destination: str
    kind: str
    edu: bytes
    key: str | None = None


async def queue_edus(db: Executor, edus: Sequence[NewEdu], now_ms: int) -> int:
    """Queue EDUs in order; no two of the same destination and key. How many had to give way:
    where more than MAX_WAITING of a kind wait for a destination, the oldest go.

    What replaces another gets a new number: the acknowledgement of the old one does not remove it.
    Each destination gets its row in `destinations`, by which the waiting EDUs are found: to look for
    them among themselves would mean to read them all.
    """
    await db.execute(
        "INSERT INTO destinations (destination) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING",
        sorted({e.destination for e in edus}),
    )
    await db.execute(
        "INSERT INTO outbound_edus (destination, kind, key, edu, created_ts)"
        " SELECT n.destination, n.kind, n.key, n.edu, $5 FROM unnest($1::text[], $2::text[], $3::text[],"
        " $4::bytea[]) WITH ORDINALITY AS n (destination, kind, key, edu, place) ORDER BY n.place"
        " ON CONFLICT (destination, key) WHERE key IS NOT NULL DO UPDATE"
        " SET seq = excluded.seq, edu = excluded.edu",
        [e.destination for e in edus],
        [e.kind for e in edus],
        [e.key for e in edus],
        [e.edu for e in edus],
        now_ms,
    )
    queues = sorted({(e.destination, e.kind) for e in edus})
    dropped: int = await db.fetchval(
        "WITH gone AS (DELETE FROM outbound_edus AS o USING unnest($1::text[], $2::text[]) AS n (destination,"
        " kind) WHERE o.destination = n.destination AND o.kind = n.kind AND o.seq <= (SELECT w.seq FROM"
        " outbound_edus AS w WHERE w.destination = n.destination AND w.kind = n.kind"
        " ORDER BY w.seq DESC OFFSET $3 LIMIT 1) RETURNING 1) SELECT count(*) FROM gone",
        [destination for destination, _ in queues],
        [kind for _, kind in queues],
        MAX_WAITING,
    )
    return dropped


async def waiting_edus(db: Executor) -> dict[str, int]:
    """Kind to the number that wait, for all destinations together."""
    rows = await db.fetch("SELECT kind, count(*) AS n FROM outbound_edus GROUP BY kind")
    return {r["kind"]: r["n"] for r in rows}


async def purge_edus(db: Executor, before_ms: int) -> None:
    """Give up on what no destination has taken for very long."""
    await db.execute("DELETE FROM outbound_edus WHERE created_ts < $1", before_ms)
