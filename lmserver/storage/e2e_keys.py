"""Device keys, one-time keys, fallback keys: opaque JSON to us, stored as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    db: Executor, user_id: str, device_ids: Sequence[str]
) -> dict[str, tuple[bytes, str | None]]:
    """Device ID to (keys, display name); all devices when none is named."""
    rows = await db.fetch(
        "SELECT k.device_id, k.keys, d.display_name FROM device_keys AS k"
        " JOIN devices AS d ON d.user_id = k.user_id AND d.device_id = k.device_id"
        " WHERE k.user_id = $1 AND (cardinality($2::text[]) = 0 OR k.device_id = ANY($2::text[]))",
        user_id,
        list(device_ids),
    )
    return {r["device_id"]: (bytes(r["keys"]), r["display_name"]) for r in rows}


async def add_one_time_keys(
    db: Executor, user_id: str, device_id: str, keys: Sequence[tuple[str, str, bytes]]
) -> None:
    """Add (key ID, algorithm, key); a key ID that is there stays as it is."""
    await db.execute(
        "INSERT INTO one_time_keys (user_id, device_id, key_id, algorithm, key)"
        " SELECT $1, $2, n.* FROM unnest($3::text[], $4::text[], $5::bytea[]) AS n ON CONFLICT DO NOTHING",
        user_id,
        device_id,
        [key_id for key_id, _, _ in keys],
        [algorithm for _, algorithm, _ in keys],
        [key for _, _, key in keys],
    )


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


async def claim(db: Executor, user_id: str, device_id: str, algorithm: str) -> tuple[str, bytes] | None:
    """Take the oldest key, so that nobody else gets it; the fallback key when there is none."""
    row = await db.fetchrow(
        "DELETE FROM one_time_keys WHERE (user_id, device_id, key_id) IN ("
        " SELECT user_id, device_id, key_id FROM one_time_keys"
        " WHERE user_id = $1 AND device_id = $2 AND algorithm = $3"
        " ORDER BY seq LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING key_id, key",
        user_id,
        device_id,
        algorithm,
    )
    if row is None:
        return await use_fallback(db, user_id, device_id, algorithm)
    return row["key_id"], bytes(row["key"])


async def use_fallback(
    db: Executor, user_id: str, device_id: str, algorithm: str
) -> tuple[str, bytes] | None:
    """The key of last resort, which may be handed out more than once."""
    row = await db.fetchrow(
        "UPDATE fallback_keys SET used = true WHERE user_id = $1 AND device_id = $2 AND algorithm = $3"
        " RETURNING key_id, key",
        user_id,
        device_id,
        algorithm,
    )
    return None if row is None else (row["key_id"], bytes(row["key"]))


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


async def unused_fallback_types(db: Executor, user_id: str, device_id: str) -> list[str]:
    rows = await db.fetch(
        "SELECT algorithm FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND NOT used"
        " ORDER BY algorithm",
        user_id,
        device_id,
    )
    return [r["algorithm"] for r in rows]


async def put_cross_signing_key(db: Executor, user_id: str, usage: str, key: bytes) -> None:
    await db.execute(
        "INSERT INTO cross_signing_keys (user_id, usage, key) VALUES ($1, $2, $3)"
        " ON CONFLICT (user_id, usage) DO UPDATE SET key = excluded.key",
        user_id,
        usage,
        key,
    )


async def cross_signing_keys(db: Executor, user_id: str) -> dict[str, bytes]:
    """Usage (master, self_signing, user_signing) to key."""
    rows = await db.fetch("SELECT usage, key FROM cross_signing_keys WHERE user_id = $1", user_id)
    return {r["usage"]: bytes(r["key"]) for r in rows}


async def remove_cross_signing_keys(db: Executor, user_id: str) -> None:
    await db.execute("DELETE FROM cross_signing_keys WHERE user_id = $1", user_id)


async def device_list_changed(db: Executor, user_id: str) -> None:
    """Whoever shares a room with the user has to look again."""
    await db.execute(
        "INSERT INTO device_list_changes (user_id) VALUES ($1)"
        " ON CONFLICT (user_id) DO UPDATE SET stream_xid = pg_current_xact_id()",
        user_id,
    )


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


async def changed_users(db: Executor, since: int, upto: int) -> set[str]:
    rows = await db.fetch(
        "SELECT user_id FROM device_list_changes"
        " WHERE stream_xid >= $1::text::xid8 AND stream_xid < $2::text::xid8",
        str(since),
        str(upto),
    )
    return {r["user_id"] for r in rows}
