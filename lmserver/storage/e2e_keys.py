"""Device keys, one-time keys, fallback keys: opaque JSON to us, stored as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmserver.storage.database import Executor


async def put_device_keys(db: Executor, user_id: str, device_id: str, keys: bytes) -> bool:
    """Whether anything changed."""
    changed = await db.fetchval(
        "INSERT INTO device_keys (user_id, device_id, keys) VALUES ($1, $2, $3)"
        " ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys"
        " WHERE device_keys.keys <> excluded.keys RETURNING true",
        user_id,
        device_id,
        keys,
    )
    return bool(changed)


async def device_keys(
    db: Executor, wanted: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, tuple[bytes, str | None]]]:
    """User ID to device ID to (keys, display name); all devices of a user for whom none is named."""
    pairs = [(user, device) for user, devices in wanted.items() for device in devices or (None,)]
    rows = await db.fetch(
        "SELECT k.user_id, k.device_id, k.keys, d.display_name"
        " FROM unnest($1::text[], $2::text[]) AS n (user_id, device_id)"
        " JOIN device_keys AS k ON k.user_id = n.user_id"
        " AND (n.device_id IS NULL OR k.device_id = n.device_id)"
        " JOIN devices AS d ON d.user_id = k.user_id AND d.device_id = k.device_id"
        " ORDER BY k.user_id, k.device_id",
        [user for user, _ in pairs],
        [device for _, device in pairs],
    )
    found: dict[str, dict[str, tuple[bytes, str | None]]] = {}
    for r in rows:
        found.setdefault(r["user_id"], {})[r["device_id"]] = (bytes(r["keys"]), r["display_name"])
    return found


async def add_one_time_keys(
    db: Executor, user_id: str, device_id: str, keys: Sequence[tuple[str, str, bytes]]
) -> None:
    """Add (key ID, algorithm, key); a key ID that is there stays as it is, and a key that was handed
    out before does not come back: its upload is repeated by a client that did not get our answer."""
    await db.execute(
        "INSERT INTO one_time_keys (user_id, device_id, key_id, algorithm, key)"
        " SELECT $1, $2, n.* FROM unnest($3::text[], $4::text[], $5::bytea[]) AS n ON CONFLICT DO NOTHING",
        user_id,
        device_id,
        [key_id for key_id, _, _ in keys],
        [algorithm for _, algorithm, _ in keys],
        [key for _, _, key in keys],
    )
    # A statement of its own, which sees what was claimed while the first one waited for it.
    await db.execute(
        "DELETE FROM one_time_keys AS o USING claimed_keys AS c WHERE o.user_id = $1 AND o.device_id = $2"
        " AND o.key_id = ANY($3::text[]) AND c.user_id = $1 AND c.device_id = $2 AND c.key_id = o.key_id"
        " AND c.key_hash = sha256(o.key)",
        user_id,
        device_id,
        [key_id for key_id, _, _ in keys],
    )


async def forget_claimed(db: Executor) -> None:
    """Keys claimed so long ago that no client repeats their upload."""
    await db.execute("DELETE FROM claimed_keys WHERE claimed_at < now() - interval '30 days'")


async def drop_keys_of(db: Executor, user_id: str, device_id: str) -> None:
    """One-time and fallback keys of a device that has become another one."""
    for query in (
        "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2",
        "DELETE FROM claimed_keys WHERE user_id = $1 AND device_id = $2",
        "DELETE FROM fallback_keys WHERE user_id = $1 AND device_id = $2",
    ):
        await db.execute(query, user_id, device_id)


async def drop_one_time_keys(db: Executor) -> int:
    """Every one of every device: after a restore nobody knows which were handed out. Clients are
    told that none is left and upload new ones."""
    return len(await db.fetch("DELETE FROM one_time_keys RETURNING key_id"))


async def one_time_keys(
    db: Executor, user_id: str, device_id: str, key_ids: Iterable[str]
) -> dict[str, bytes]:
    rows = await db.fetch(
        "SELECT key_id, key FROM one_time_keys WHERE user_id = $1 AND device_id = $2"
        " AND key_id = ANY($3::text[])",
        user_id,
        device_id,
        list(key_ids),
    )
    return {r["key_id"]: bytes(r["key"]) for r in rows}


async def one_time_key_counts(db: Executor, user_id: str, device_id: str) -> dict[str, int]:
    """Algorithm to keys left."""
    rows = await db.fetch(
        "SELECT algorithm, count(*) AS n FROM one_time_keys WHERE user_id = $1 AND device_id = $2"
        " GROUP BY algorithm",
        user_id,
        device_id,
    )
    return {r["algorithm"]: r["n"] for r in rows}


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """One key of a device is wanted."""

    user_id: str
    device_id: str
    algorithm: str


Claimed = dict[tuple[str, str], tuple[str, bytes]]
"""(user ID, device ID) to (key ID, key)."""


async def claim(db: Executor, claims: Sequence[Claim]) -> Claimed:
    """Take the oldest key of each device, so that nobody else gets it; no device twice."""
    rows = await db.fetch(
        "WITH oldest AS (SELECT k.user_id, k.device_id, k.key_id"
        " FROM unnest($1::text[], $2::text[], $3::text[]) AS n (user_id, device_id, algorithm)"
        " CROSS JOIN LATERAL (SELECT o.user_id, o.device_id, o.key_id FROM one_time_keys AS o"
        " WHERE o.user_id = n.user_id AND o.device_id = n.device_id AND o.algorithm = n.algorithm"
        " ORDER BY o.seq LIMIT 1 FOR UPDATE SKIP LOCKED) AS k),"
        " taken AS (DELETE FROM one_time_keys AS d USING oldest AS o WHERE d.user_id = o.user_id"
        " AND d.device_id = o.device_id AND d.key_id = o.key_id"
        " RETURNING d.user_id, d.device_id, d.key_id, d.key),"
        " noted AS (INSERT INTO claimed_keys AS c (user_id, device_id, key_id, key_hash)"
        " SELECT user_id, device_id, key_id, sha256(key) FROM taken ORDER BY user_id, device_id, key_id"
        " ON CONFLICT (user_id, device_id, key_id) DO UPDATE SET key_hash = excluded.key_hash,"
        " claimed_at = now()) SELECT user_id, device_id, key_id, key FROM taken",
        *_columns(claims),
    )
    return _claimed(rows)


async def use_fallback(db: Executor, claims: Sequence[Claim]) -> Claimed:
    """The keys of last resort, which may be handed out more than once."""
    rows = await db.fetch(
        "UPDATE fallback_keys AS f SET used = true"
        " FROM unnest($1::text[], $2::text[], $3::text[]) AS n (user_id, device_id, algorithm)"
        " WHERE f.user_id = n.user_id AND f.device_id = n.device_id AND f.algorithm = n.algorithm"
        " RETURNING f.user_id, f.device_id, f.key_id, f.key",
        *_columns(claims),
    )
    return _claimed(rows)


def _columns(claims: Sequence[Claim]) -> tuple[list[str], list[str], list[str]]:
    """In one order for everybody, so that two requests do not wait for each other."""
    ordered = sorted(claims)
    return (
        [c.user_id for c in ordered],
        [c.device_id for c in ordered],
        [c.algorithm for c in ordered],
    )


def _claimed(rows: Iterable[Any]) -> Claimed:
    return {(r["user_id"], r["device_id"]): (r["key_id"], bytes(r["key"])) for r in rows}


async def put_fallback_key(
    db: Executor, user_id: str, device_id: str, algorithm: str, key_id: str, key: bytes
) -> None:
    await db.execute(
        "INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, key) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET key_id = excluded.key_id,"
        " key = excluded.key, used = false WHERE fallback_keys.key_id <> excluded.key_id",
        user_id,
        device_id,
        algorithm,
        key_id,
        key,
    )


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """Of one device: one-time keys left by algorithm, and algorithms with an unused fallback key."""

    one_time: dict[str, int]
    fallback: list[str]


async def key_counts(db: Executor, devices: Sequence[tuple[str, str]]) -> list[KeyCounts]:
    """Of each (user, device), in the order given."""
    rows = await db.fetch(
        "SELECT w.place, k.algorithm, k.n FROM unnest($1::text[], $2::text[]) WITH ORDINALITY"
        " AS w (user_id, device_id, place) CROSS JOIN LATERAL"
        " (SELECT algorithm, count(*) AS n FROM one_time_keys WHERE user_id = w.user_id"
        " AND device_id = w.device_id GROUP BY algorithm UNION ALL SELECT algorithm, NULL FROM fallback_keys"
        " WHERE user_id = w.user_id AND device_id = w.device_id AND NOT used) AS k"
        " ORDER BY w.place, k.algorithm",
        [user for user, _ in devices],
        [device for _, device in devices],
    )
    found = [KeyCounts({}, []) for _ in devices]
    for r in rows:
        counts = found[r["place"] - 1]
        if r["n"] is None:
            counts.fallback.append(r["algorithm"])
        else:
            counts.one_time[r["algorithm"]] = r["n"]
    return found


async def device_list_changed(db: Executor, user_id: str, devices: int) -> int:
    """Whoever shares a room with the user has to look again. Counts so many changed devices, and
    returns the number of the last."""
    number: int = await db.fetchval(
        "INSERT INTO device_list_changes (user_id, stream_id) VALUES ($1, $2)"
        " ON CONFLICT (user_id) DO UPDATE SET stream_xid = pg_current_xact_id(),"
        " stream_id = device_list_changes.stream_id + excluded.stream_id RETURNING stream_id",
        user_id,
        devices,
    )
    return number


async def device_list_number(db: Executor, user_id: str) -> int:
    """How many changes of devices have been counted."""
    number: int | None = await db.fetchval(
        "SELECT stream_id FROM device_list_changes WHERE user_id = $1", user_id
    )
    return number or 0


async def remote_lists_changed(db: Executor, user_ids: Iterable[str]) -> list[str]:
    """The same for users of other servers, as far as they are joined to a room; returns those."""
    rows = await db.fetch(
        "INSERT INTO device_list_changes (user_id) SELECT n.user_id FROM unnest($1::text[]) AS n (user_id)"
        " WHERE EXISTS (SELECT FROM room_state AS s WHERE s.state_key = n.user_id"
        " AND s.type = 'm.room.member' AND s.membership = 'join' AND s.to_position IS NULL)"
        " ON CONFLICT (user_id) DO UPDATE SET stream_xid = pg_current_xact_id() RETURNING user_id",
        sorted(set(user_ids)),
    )
    return [r["user_id"] for r in rows]


async def lists_changed(db: Executor, since: int, upto: int) -> set[str]:
    """Users whose lists changed in the stream interval [since, upto)."""
    rows = await db.fetch(
        "SELECT user_id FROM device_list_changes"
        " WHERE stream_xid >= $1::text::xid8 AND stream_xid < $2::text::xid8",
        str(since),
        str(upto),
    )
    return {r["user_id"] for r in rows}


async def changed_users(db: Executor, user_id: str, since: int, upto: int) -> set[str]:
    """Users whose lists changed in the stream interval [since, upto), and whose keys this user signed."""
    rows = await db.fetch(
        "SELECT user_id FROM device_list_changes"
        " WHERE stream_xid >= $2::text::xid8 AND stream_xid < $3::text::xid8"
        " UNION SELECT target_user_id FROM key_signatures WHERE signer_user_id = $1"
        " AND target_user_id <> $1 AND stream_xid >= $2::text::xid8 AND stream_xid < $3::text::xid8",
        user_id,
        str(since),
        str(upto),
    )
    return {r["user_id"] for r in rows}
