"""Pushers, the rooms of users who have some, and what waits for their gateways."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmserver.storage.database import Connection, Executor
from lmserver.storage.room_log import StoredEvent

MAX_QUEUED = 200
"""Notifications that wait for one pusher; the oldest go first."""


@dataclass(frozen=True, slots=True)
class PusherKey:
    """What names a pusher."""

    user_id: str
    app_id: str
    pushkey: str


@dataclass(frozen=True, slots=True)
class Pusher:
    """`shown` is what GET /pushers tells of it, JSON; `retry_at` (ms) is when its gateway is asked next."""

    key: PusherKey
    shown: bytes
    url: str
    set_ts: int
    failures: int
    retry_at: int


@dataclass(frozen=True, slots=True)
class Recipient:
    """A user with pushers who is joined to a room, since a position."""

    user_id: str
    since: int


@dataclass(frozen=True, slots=True)
class Queued:
    """A notification that waits; `tweaks` is JSON."""

    seq: int
    room_id: str
    event_id: str
    tweaks: bytes
    created_ts: int


@dataclass(frozen=True, slots=True)
class NewNotification:
    user_id: str
    room_id: str
    event_id: str
    tweaks: bytes


# -- pushers ----------------------------------------------------------------------------------------


async def put(db: Connection, pusher: Pusher, device_id: str) -> None:
    """Add a pusher, or replace the user's own of the same key."""
    await db.execute(
        "INSERT INTO pushers (user_id, app_id, pushkey, device_id, shown, url, set_ts)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET"
        " device_id = excluded.device_id, shown = excluded.shown, url = excluded.url,"
        " set_ts = excluded.set_ts, failures = 0, retry_at = 0",
        pusher.key.user_id,
        pusher.key.app_id,
        pusher.key.pushkey,
        device_id,
        pusher.shown,
        pusher.url,
        pusher.set_ts,
    )


async def remove(db: Connection, key: PusherKey) -> None:
    """Remove a pusher and what waits for it."""
    for query in (
        "DELETE FROM push_queue WHERE user_id = $1 AND app_id = $2 AND pushkey = $3",
        "DELETE FROM pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3",
    ):
        await db.execute(query, key.user_id, key.app_id, key.pushkey)


async def others_of_key(db: Executor, key: PusherKey) -> list[PusherKey]:
    """Other users' pushers of the same application and push key."""
    rows = await db.fetch(
        "SELECT user_id FROM pushers WHERE app_id = $2 AND pushkey = $3 AND user_id <> $1",
        key.user_id,
        key.app_id,
        key.pushkey,
    )
    return [PusherKey(r["user_id"], key.app_id, key.pushkey) for r in rows]


async def of_user(db: Executor, user_id: str) -> list[Pusher]:
    rows = await db.fetch(
        "SELECT user_id, app_id, pushkey, shown, url, set_ts, failures, retry_at FROM pushers"
        " WHERE user_id = $1 ORDER BY app_id, pushkey",
        user_id,
    )
    return [
        Pusher(
            PusherKey(r["user_id"], r["app_id"], r["pushkey"]),
            bytes(r["shown"]),
            r["url"],
            r["set_ts"],
            r["failures"],
            r["retry_at"],
        )
        for r in rows
    ]


async def of_users(db: Executor, user_ids: Sequence[str]) -> dict[PusherKey, int]:
    """The pushers of these users, and when (ms) their gateways may be asked."""
    rows = await db.fetch(
        "SELECT user_id, app_id, pushkey, retry_at FROM pushers WHERE user_id = ANY($1::text[])",
        list(user_ids),
    )
    return {PusherKey(r["user_id"], r["app_id"], r["pushkey"]): r["retry_at"] for r in rows}


async def users(db: Executor) -> list[str]:
    """Everybody with a pusher."""
    return [r["user_id"] for r in await db.fetch("SELECT DISTINCT user_id FROM pushers")]


async def settle(db: Executor, key: PusherKey, failures: int, retry_at: int) -> None:
    """How the gateway has done, and when it is asked again."""
    await db.execute(
        "UPDATE pushers SET failures = $4, retry_at = $5 WHERE user_id = $1 AND app_id = $2 AND pushkey = $3",
        key.user_id,
        key.app_id,
        key.pushkey,
        failures,
        retry_at,
    )


# -- rooms ------------------------------------------------------------------------------------------


async def follow_rooms(db: Executor, user_id: str, room_ids: Sequence[str] | None = None) -> list[str]:
    """Look at the rooms a user is joined or invited to from now on: an invite itself is looked at.
    Of these rooms, which the user has just come to, so that what was said since is not missed, or of all;
    those that are followed since now."""
    rows = await db.fetch(
        "INSERT INTO push_rooms (room_id, looked_to) SELECT s.room_id, CASE WHEN s.membership = 'invite'"
        " THEN s.from_position - 1 WHEN $2::text[] IS NOT NULL THEN s.from_position ELSE r.head_position END"
        " FROM room_state AS s"
        " JOIN rooms AS r ON r.room_id = s.room_id WHERE s.state_key = $1 AND s.type = 'm.room.member'"
        " AND s.to_position IS NULL AND s.membership IN ('join', 'invite')"
        " AND ($2::text[] IS NULL OR s.room_id = ANY($2::text[])) ON CONFLICT DO NOTHING RETURNING room_id",
        user_id,
        None if room_ids is None else list(room_ids),
    )
    return [r["room_id"] for r in rows]


async def followed(db: Executor) -> list[tuple[str, bool]]:
    """Every room followed, and whether it has something new."""
    rows = await db.fetch(
        "SELECT p.room_id, r.head_position > p.looked_to AS behind FROM push_rooms AS p"
        " JOIN rooms AS r ON r.room_id = p.room_id"
    )
    return [(r["room_id"], r["behind"]) for r in rows]


async def unfollow(db: Executor, room_id: str) -> None:
    await db.execute("DELETE FROM push_rooms WHERE room_id = $1", room_id)


async def recipients(db: Executor, room_id: str) -> list[Recipient]:
    """Users with pushers who are joined or invited; one who is invited has been there since no time."""
    rows = await db.fetch(
        "SELECT s.state_key AS user_id, CASE WHEN s.membership = 'join' THEN (SELECT"
        " coalesce(max(h.to_position) FILTER (WHERE h.membership <> 'join'), min(h.from_position))"
        " FROM room_state AS h WHERE h.room_id = $1 AND h.type = 'm.room.member'"
        " AND h.state_key = s.state_key) END AS since FROM room_state AS s WHERE s.room_id = $1"
        " AND s.type = 'm.room.member' AND s.to_position IS NULL AND s.membership IN ('join', 'invite')"
        " AND EXISTS (SELECT 1 FROM pushers AS p WHERE p.user_id = s.state_key)",
        room_id,
    )
    return [Recipient(r["user_id"], 2**62 if r["since"] is None else r["since"]) for r in rows]


async def lock_room(db: Connection, room_id: str) -> int | None:
    """How far the room has been looked at, held for the rest of the transaction; None when nobody
    follows it."""
    found: int | None = await db.fetchval(
        "SELECT looked_to FROM push_rooms WHERE room_id = $1 FOR UPDATE", room_id
    )
    return found


async def looked_to(db: Connection, room_id: str, position: int) -> None:
    await db.execute("UPDATE push_rooms SET looked_to = $2 WHERE room_id = $1", room_id, position)


# -- the queue --------------------------------------------------------------------------------------


async def enqueue(db: Connection, found: Iterable[NewNotification], now_ms: int) -> None:
    """For each pusher of the users; of what waits too long the oldest goes."""
    new = list(found)
    await db.execute(
        "INSERT INTO push_queue (user_id, app_id, pushkey, room_id, event_id, tweaks, created_ts)"
        " SELECT p.user_id, p.app_id, p.pushkey, n.room_id, n.event_id, n.tweaks, $5"
        " FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[]) WITH ORDINALITY"
        " AS n (user_id, room_id, event_id, tweaks, number)"
        " JOIN pushers AS p ON p.user_id = n.user_id ORDER BY n.number",
        [n.user_id for n in new],
        [n.room_id for n in new],
        [n.event_id for n in new],
        [n.tweaks for n in new],
        now_ms,
    )
    await db.execute(
        "DELETE FROM push_queue AS q USING (SELECT p.user_id, p.app_id, p.pushkey, (SELECT seq"
        " FROM push_queue WHERE user_id = p.user_id AND app_id = p.app_id AND pushkey = p.pushkey"
        " ORDER BY seq DESC OFFSET $2 LIMIT 1) AS last FROM pushers AS p WHERE p.user_id = ANY($1::text[]))"
        " AS o WHERE q.user_id = o.user_id AND q.app_id = o.app_id AND q.pushkey = o.pushkey"
        " AND q.seq <= o.last",
        [n.user_id for n in new],
        MAX_QUEUED,
    )


async def waiting(db: Executor, now_ms: int, user_ids: Sequence[str] | None = None) -> list[PusherKey]:
    """Pushers for which something waits and whose gateways may be asked now; of these users or of all."""
    rows = await db.fetch(
        "SELECT user_id, app_id, pushkey FROM pushers AS p WHERE retry_at <= $1"
        " AND ($2::text[] IS NULL OR user_id = ANY($2::text[])) AND EXISTS (SELECT 1 FROM push_queue AS q"
        " WHERE q.user_id = p.user_id AND q.app_id = p.app_id AND q.pushkey = p.pushkey)",
        now_ms,
        None if user_ids is None else list(user_ids),
    )
    return [PusherKey(r["user_id"], r["app_id"], r["pushkey"]) for r in rows]


async def next_for(db: Executor, key: PusherKey) -> Queued | None:
    """The oldest that waits."""
    row = await db.fetchrow(
        "SELECT seq, room_id, event_id, tweaks, created_ts FROM push_queue"
        " WHERE user_id = $1 AND app_id = $2 AND pushkey = $3 ORDER BY seq LIMIT 1",
        key.user_id,
        key.app_id,
        key.pushkey,
    )
    if row is None:
        return None
    return Queued(row["seq"], row["room_id"], row["event_id"], bytes(row["tweaks"]), row["created_ts"])


async def done(db: Executor, key: PusherKey, seq: int) -> None:
    await db.execute(
        "DELETE FROM push_queue WHERE user_id = $1 AND app_id = $2 AND pushkey = $3 AND seq = $4",
        key.user_id,
        key.app_id,
        key.pushkey,
        seq,
    )


async def events_after(db: Executor, room_id: str, after: int, limit: int) -> list[StoredEvent]:
    """The next events of a room's list."""
    rows = await db.fetch(
        "SELECT room_id, event_id, position, pdu, soft_failed, redacted_by, received_ts,"
        " stream_xid::text::bigint AS stream_xid FROM events WHERE room_id = $1 AND position > $2"
        " ORDER BY position LIMIT $3",
        room_id,
        after,
        limit,
    )
    return [StoredEvent(*(r[name] for name in StoredEvent._fields)) for r in rows]
