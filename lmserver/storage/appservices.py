"""Application services: which users are theirs, what they have been told, and what is on its way to them.

Of each room a service is in, the position is kept up to which it has been told. A transaction and the
positions it moves are written together, and the transaction stays, byte for byte, until it is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lmserver.storage.database import Connection, Executor


@dataclass(frozen=True, slots=True)
class Told:
    """Up to which position a service was told of a room, and whether a user of it was joined there."""

    position: int
    present: bool


@dataclass(frozen=True, slots=True)
class Witness:
    """A user of a service in a room, since a position."""

    user_id: str
    membership: str
    from_position: int


@dataclass(frozen=True, slots=True)
class OutsideNews:
    """An invite, or the end of one, in a room this server is not in; canonical bytes."""

    user_id: str
    room_id: str
    event_id: str
    event: bytes
    stripped_state: bytes
    stream_xid: int


@dataclass(frozen=True, slots=True)
class Waiting:
    txn_id: int
    body: bytes


# -- users ------------------------------------------------------------------------------------------


async def add_user(db: Executor, user_id: str, service: str) -> None:
    await db.execute(
        "INSERT INTO appservice_users (user_id, service) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        user_id,
        service,
    )


async def set_users(db: Executor, service: str, user_ids: Sequence[str]) -> None:
    """Exactly these users are the service's."""
    await db.execute(
        "DELETE FROM appservice_users WHERE service = $1 AND NOT user_id = ANY($2::text[])",
        service,
        list(user_ids),
    )
    await db.execute(
        "INSERT INTO appservice_users (user_id, service) SELECT u, $1 FROM unnest($2::text[]) AS u"
        " ON CONFLICT DO NOTHING",
        service,
        list(user_ids),
    )


async def accounts_after(db: Executor, user_id: str, limit: int) -> list[str]:
    """User IDs of all accounts, a page at a time."""
    rows = await db.fetch(
        "SELECT user_id FROM accounts WHERE user_id > $1 ORDER BY user_id LIMIT $2", user_id, limit
    )
    return [row["user_id"] for row in rows]


# -- rooms ------------------------------------------------------------------------------------------


async def rooms_of_interest(db: Executor, service: str) -> list[str]:
    """Rooms a user of the service is in or invited to, and those left that it was not told all of."""
    rows = await db.fetch(
        "SELECT s.room_id FROM appservice_users AS u JOIN room_state AS s ON s.state_key = u.user_id"
        " AND s.type = 'm.room.member' AND s.to_position IS NULL"
        " AND s.membership IN ('join', 'invite', 'knock')"
        " WHERE u.service = $1 UNION SELECT room_id FROM appservice_rooms WHERE service = $1 AND present",
        service,
    )
    return [row["room_id"] for row in rows]


async def told(db: Executor, service: str, room_id: str) -> Told | None:
    row = await db.fetchrow(
        "SELECT position, present FROM appservice_rooms WHERE service = $1 AND room_id = $2", service, room_id
    )
    return None if row is None else Told(row["position"], row["present"])


async def witness(db: Executor, room_id: str, user_id: str) -> Witness | None:
    """One user's membership."""
    row = await db.fetchrow(
        "SELECT state_key, membership, from_position FROM room_state WHERE room_id = $1"
        " AND type = 'm.room.member' AND state_key = $2 AND to_position IS NULL",
        room_id,
        user_id,
    )
    return None if row is None else Witness(row["state_key"], row["membership"], row["from_position"])


async def any_witness(db: Executor, service: str, room_id: str) -> Witness | None:
    """A user of the service in the room: joined if there is one, else whose membership changed last."""
    row = await db.fetchrow(
        "SELECT s.state_key, s.membership, s.from_position FROM appservice_users AS u"
        " JOIN room_state AS s ON s.state_key = u.user_id AND s.room_id = $2 AND s.type = 'm.room.member'"
        " AND s.to_position IS NULL WHERE u.service = $1"
        " ORDER BY (s.membership = 'join') DESC, s.from_position DESC LIMIT 1",
        service,
        room_id,
    )
    return None if row is None else Witness(row["state_key"], row["membership"], row["from_position"])


async def first_position(db: Executor, service: str, room_id: str, after: int) -> int | None:
    """Where a user of the service first comes up in the room, after a position."""
    position: int | None = await db.fetchval(
        "SELECT min(s.from_position) FROM appservice_users AS u JOIN room_state AS s"
        " ON s.state_key = u.user_id AND s.room_id = $2 AND s.type = 'm.room.member'"
        " WHERE u.service = $1 AND s.from_position > $3",
        service,
        room_id,
        after,
    )
    return position


async def interested_since(db: Executor, service: str, namespaces: str, now_ms: int) -> int:
    """Since when (ms) the service is interested in the rooms of these namespaces: now, unless they are the
    same as before."""
    since: int = await db.fetchval(
        "INSERT INTO appservice_interests AS i (service, namespaces, since_ts) VALUES ($1, $2, $3)"
        " ON CONFLICT (service) DO UPDATE SET namespaces = excluded.namespaces, since_ts ="
        " CASE WHEN i.namespaces = excluded.namespaces THEN i.since_ts ELSE excluded.since_ts END"
        " RETURNING since_ts",
        service,
        namespaces,
        now_ms,
    )
    return since


async def rooms_behind(db: Executor, service: str, since_ms: int) -> list[str]:
    """Rooms with something newer than the service was told of them, if it ever was, and than a time."""
    rows = await db.fetch(
        "SELECT r.room_id FROM rooms AS r JOIN events AS h ON h.event_id = r.head_event_id"
        " AND h.room_id = r.room_id LEFT JOIN appservice_rooms AS t ON t.service = $1"
        " AND t.room_id = r.room_id WHERE h.received_ts >= $2"
        " AND (t.position IS NULL OR t.position < r.head_position)",
        service,
        since_ms,
    )
    return [row["room_id"] for row in rows]


async def position_before(db: Executor, room_id: str, since_ms: int) -> int:
    """The last position that was filled before a time (ms); -1 without one."""
    position: int | None = await db.fetchval(
        "SELECT position FROM events WHERE room_id = $1 AND position IS NOT NULL AND received_ts < $2"
        " ORDER BY position DESC LIMIT 1",
        room_id,
        since_ms,
    )
    return -1 if position is None else position


async def outside_news(db: Executor, service: str, limit: int) -> list[OutsideNews]:
    """Memberships in rooms this server is not in that the service has not been told of."""
    rows = await db.fetch(
        "SELECT o.user_id, o.room_id, o.event_id, o.event, o.stripped_state,"
        " o.stream_xid::text::bigint AS stream_xid FROM outside_memberships AS o"
        " JOIN appservice_users AS u ON u.user_id = o.user_id AND u.service = $1"
        " LEFT JOIN appservice_invites AS t ON t.service = $1 AND t.user_id = o.user_id"
        " AND t.room_id = o.room_id"
        " WHERE o.event IS NOT NULL AND o.event_id IS NOT NULL AND o.tell_at IS NULL"
        " AND (t.told_xid IS NULL OR t.told_xid < o.stream_xid::text::bigint)"
        " ORDER BY o.stream_xid, o.room_id LIMIT $2",
        service,
        limit,
    )
    return [OutsideNews(*(row[name] for name in OutsideNews.__slots__)) for row in rows]


# -- devices ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TakenMessage:
    """A message for a device of a service's user, as it stood in the device's queue."""

    user_id: str
    device_id: str
    message: bytes


async def take_to_device(db: Connection, service: str, limit: int) -> list[TakenMessage]:
    """The oldest messages for devices of the service's users, which are in their queues no more."""
    rows = await db.fetch(
        "DELETE FROM to_device_messages AS t USING (SELECT m.user_id, m.device_id, m.seq"
        " FROM appservice_users AS u JOIN to_device_messages AS m ON m.user_id = u.user_id"
        " WHERE u.service = $1 ORDER BY m.seq LIMIT $2) AS n WHERE t.user_id = n.user_id"
        " AND t.device_id = n.device_id AND t.seq = n.seq RETURNING t.user_id, t.device_id, t.message, t.seq",
        service,
        limit,
    )
    rows.sort(key=lambda row: row["seq"])
    return [TakenMessage(row["user_id"], row["device_id"], row["message"]) for row in rows]


async def devices_position(db: Executor, service: str, now: int) -> int:
    """Up to which stream position the service was told of device lists: `now` for one that never was."""
    position: int = await db.fetchval(
        "INSERT INTO appservice_transactions AS t (service, txn_id, devices_position) VALUES ($1, 0, $2)"
        " ON CONFLICT (service) DO UPDATE"
        " SET devices_position = coalesce(t.devices_position, excluded.devices_position)"
        " RETURNING devices_position",
        service,
        now,
    )
    return position


async def set_devices_position(db: Connection, service: str, position: int) -> None:
    await db.execute(
        "UPDATE appservice_transactions SET devices_position = $2 WHERE service = $1", service, position
    )


async def users_near(db: Executor, service: str, user_ids: Iterable[str]) -> set[str]:
    """Of these users those who are joined to a room that users of the service are in."""
    rows = await db.fetch(
        "SELECT DISTINCT s.state_key FROM unnest($2::text[]) AS n (user_id)"
        " JOIN room_state AS s ON s.state_key = n.user_id AND s.type = 'm.room.member'"
        " AND s.membership = 'join' AND s.to_position IS NULL"
        " JOIN appservice_rooms AS r ON r.service = $1 AND r.room_id = s.room_id AND r.present",
        service,
        list(user_ids),
    )
    return {row["state_key"] for row in rows}


async def devices_with_keys(db: Executor, user_id: str) -> set[tuple[str, str]]:
    rows = await db.fetch("SELECT user_id, device_id FROM device_keys WHERE user_id = $1", user_id)
    return {(row["user_id"], row["device_id"]) for row in rows}


# -- transactions -----------------------------------------------------------------------------------


async def waiting(db: Executor, service: str) -> Waiting | None:
    """What has been put together and not been taken yet."""
    row = await db.fetchrow(
        "SELECT txn_id, body FROM appservice_transactions WHERE service = $1 AND body IS NOT NULL", service
    )
    return None if row is None else Waiting(row["txn_id"], row["body"])


async def put(
    db: Connection,
    service: str,
    body: bytes | None,
    positions: Mapping[str, Told],
    news: Sequence[OutsideNews],
    now_ms: int,
) -> Waiting | None:
    """Store the next transaction, if there is anything in it, with what the service knows thereby. It is
    numbered by the time, so that no number comes again when the database is restored from a backup."""
    rooms = list(positions)
    await db.execute(
        "INSERT INTO appservice_rooms (service, room_id, position, present)"
        " SELECT $1, n.* FROM unnest($2::text[], $3::bigint[], $4::boolean[]) AS n"
        " ON CONFLICT (service, room_id) DO UPDATE"
        " SET position = excluded.position, present = excluded.present",
        service,
        rooms,
        [positions[room].position for room in rooms],
        [positions[room].present for room in rooms],
    )
    await db.execute(
        "INSERT INTO appservice_invites (service, user_id, room_id, told_xid)"
        " SELECT $1, n.* FROM unnest($2::text[], $3::text[], $4::bigint[]) AS n"
        " ON CONFLICT (service, user_id, room_id) DO UPDATE SET told_xid = excluded.told_xid",
        service,
        [n.user_id for n in news],
        [n.room_id for n in news],
        [n.stream_xid for n in news],
    )
    if body is None:
        return None
    txn_id = await db.fetchval(
        "INSERT INTO appservice_transactions (service, txn_id, body) VALUES ($1, $3, $2)"
        " ON CONFLICT (service) DO UPDATE SET"
        " txn_id = greatest(appservice_transactions.txn_id + 1, excluded.txn_id), body = excluded.body"
        " RETURNING txn_id",
        service,
        body,
        now_ms,
    )
    return Waiting(txn_id, body)


async def settle(db: Executor, service: str, txn_id: int) -> None:
    """The service has taken it; its number is never used again."""
    await db.execute(
        "UPDATE appservice_transactions SET body = NULL WHERE service = $1 AND txn_id = $2", service, txn_id
    )
