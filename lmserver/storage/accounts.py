"""Accounts, their profiles and devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmserver.storage import client_transactions
from lmserver.storage.database import Connection, Executor


@dataclass(frozen=True, slots=True)
class Account:
    user_id: str
    password_hash: str
    is_admin: bool
    deactivated: bool
    locked: bool
    displayname: str | None
    avatar_url: str | None


@dataclass(frozen=True, slots=True)
class Device:
    user_id: str
    device_id: str
    display_name: str | None
    last_seen_ip: str | None
    last_seen_ts: int | None


def _device(row: Any) -> Device:
    return Device(*(row[name] for name in Device.__slots__))


async def create(
    db: Executor, user_id: str, password_hash: str, displayname: str | None, is_admin: bool, now_ms: int
) -> None:
    """Raises UniqueViolation when the user exists, deactivated or not."""
    await db.execute(
        "INSERT INTO accounts (user_id, password_hash, displayname, is_admin, created_ts)"
        " VALUES ($1, $2, $3, $4, $5)",
        user_id,
        password_hash,
        displayname,
        is_admin,
        now_ms,
    )


async def anybody(db: Executor) -> str | None:
    """The user ID of some account; None where there is none."""
    user_id: str | None = await db.fetchval("SELECT user_id FROM accounts LIMIT 1")
    return user_id


async def get(db: Executor, user_id: str) -> Account | None:
    row = await db.fetchrow(
        "SELECT user_id, password_hash, is_admin, deactivated, locked, displayname, avatar_url FROM accounts"
        " WHERE user_id = $1",
        user_id,
    )
    return None if row is None else Account(*(row[name] for name in Account.__slots__))


async def share(db: Connection, user_id: str) -> Account | None:
    """The same, and the account stays as it is until the transaction ends."""
    row = await db.fetchrow(
        "SELECT user_id, password_hash, is_admin, deactivated, locked, displayname, avatar_url FROM accounts"
        " WHERE user_id = $1 FOR SHARE",
        user_id,
    )
    return None if row is None else Account(*(row[name] for name in Account.__slots__))


async def lock(db: Connection, user_id: str) -> None:
    """What belongs to the account waits until the transaction ends."""
    await db.execute("SELECT 1 FROM accounts WHERE user_id = $1 FOR UPDATE", user_id)


async def set_locked(db: Executor, user_id: str, locked: bool) -> bool:
    """Whether there is such an account."""
    done = await db.execute("UPDATE accounts SET locked = $2 WHERE user_id = $1", user_id, locked)
    return done == "UPDATE 1"


async def set_suspended(db: Executor, user_id: str, suspended: bool) -> bool:
    """Whether there is such an account."""
    done = await db.execute("UPDATE accounts SET suspended = $2 WHERE user_id = $1", user_id, suspended)
    return done == "UPDATE 1"


async def set_admin(db: Executor, user_id: str, admin: bool) -> bool:
    """Whether there is such an account."""
    done = await db.execute("UPDATE accounts SET is_admin = $2 WHERE user_id = $1", user_id, admin)
    return done == "UPDATE 1"


async def reactivate(db: Executor, user_id: str, password_hash: str, displayname: str) -> None:
    """Let a deactivated user log in again, with nothing of what was."""
    await db.execute(
        "UPDATE accounts SET deactivated = false, password_hash = $2, displayname = $3"
        " WHERE user_id = $1 AND deactivated",
        user_id,
        password_hash,
        displayname,
    )


async def set_password(db: Executor, user_id: str, password_hash: str) -> None:
    await db.execute("UPDATE accounts SET password_hash = $2 WHERE user_id = $1", user_id, password_hash)


async def deactivate(db: Executor, user_id: str) -> None:
    """No login any more; the name stays taken, and nothing else that is only the user's stays."""
    await db.execute(
        "UPDATE accounts SET deactivated = true, password_hash = '', displayname = NULL, avatar_url = NULL"
        " WHERE user_id = $1",
        user_id,
    )
    for query in (
        "DELETE FROM account_data WHERE user_id = $1",
        "DELETE FROM filters WHERE user_id = $1",
        "DELETE FROM login_tokens WHERE user_id = $1",
        "DELETE FROM profile_fields WHERE user_id = $1",
    ):
        await db.execute(query, user_id)


async def set_displayname(db: Executor, user_id: str, value: str | None) -> None:
    await db.execute("UPDATE accounts SET displayname = $2 WHERE user_id = $1", user_id, value)


async def set_avatar_url(db: Executor, user_id: str, value: str | None) -> None:
    await db.execute("UPDATE accounts SET avatar_url = $2 WHERE user_id = $1", user_id, value)


async def add_device(db: Executor, user_id: str, device_id: str, display_name: str | None) -> None:
    """A new device, or the same one logged in again; its name stays unless given anew."""
    await db.execute(
        "INSERT INTO devices (user_id, device_id, display_name) VALUES ($1, $2, $3)"
        " ON CONFLICT (user_id, device_id) DO UPDATE SET"
        " display_name = coalesce(devices.display_name, excluded.display_name)",
        user_id,
        device_id,
        display_name,
    )


async def devices(db: Executor, user_id: str) -> list[Device]:
    rows = await db.fetch(
        "SELECT user_id, device_id, display_name, last_seen_ip, last_seen_ts FROM devices"
        " WHERE user_id = $1 ORDER BY device_id",
        user_id,
    )
    return [_device(r) for r in rows]


async def device(db: Executor, user_id: str, device_id: str) -> Device | None:
    row = await db.fetchrow(
        "SELECT user_id, device_id, display_name, last_seen_ip, last_seen_ts FROM devices"
        " WHERE user_id = $1 AND device_id = $2",
        user_id,
        device_id,
    )
    return None if row is None else _device(row)


async def rename_device(db: Executor, user_id: str, device_id: str, name: str | None) -> None:
    await db.execute(
        "UPDATE devices SET display_name = $3 WHERE user_id = $1 AND device_id = $2", user_id, device_id, name
    )


async def seen(db: Executor, user_id: str, device_id: str, ip: str, now_ms: int) -> None:
    await db.execute(
        "UPDATE devices SET last_seen_ip = $3, last_seen_ts = $4 WHERE user_id = $1 AND device_id = $2",
        user_id,
        device_id,
        ip,
        now_ms,
    )


async def remove_devices(db: Executor, user_id: str, device_ids: list[str]) -> None:
    """A device goes with its tokens, keys, transaction IDs, undelivered messages and pushers."""
    for query in (
        "DELETE FROM access_tokens WHERE user_id = $1 AND device_id = ANY($2::text[])",
        "DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = ANY($2::text[])",
        "DELETE FROM to_device_transactions WHERE user_id = $1 AND device_id = ANY($2::text[])",
        "DELETE FROM device_keys WHERE user_id = $1 AND device_id = ANY($2::text[])",
        "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = ANY($2::text[])",
        "DELETE FROM claimed_keys WHERE user_id = $1 AND device_id = ANY($2::text[])",
        "DELETE FROM fallback_keys WHERE user_id = $1 AND device_id = ANY($2::text[])",
        "DELETE FROM to_device_messages WHERE user_id = $1 AND device_id = ANY($2::text[])",
        "DELETE FROM dehydrated_devices WHERE user_id = $1 AND device_id = ANY($2::text[])",
        (
            "DELETE FROM push_queue WHERE user_id = $1 AND (app_id, pushkey) IN (SELECT app_id, pushkey"
            " FROM pushers WHERE user_id = $1 AND device_id = ANY($2::text[]))"
        ),
        "DELETE FROM pushers WHERE user_id = $1 AND device_id = ANY($2::text[])",
        "DELETE FROM devices WHERE user_id = $1 AND device_id = ANY($2::text[])",
    ):
        await db.execute(query, user_id, device_ids)
    rooms = await db.fetch(
        "SELECT room_id FROM room_state WHERE state_key = $1 AND type = 'm.room.member'"
        " AND to_position IS NULL",
        user_id,
    )
    await client_transactions.forget_devices(db, user_id, device_ids, [r["room_id"] for r in rooms])
