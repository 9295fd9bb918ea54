"""Devices nobody is logged in with, which receive messages until a client takes them up (MSC3814)."""

from __future__ import annotations

from dataclasses import dataclass

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class DehydratedDevice:
    """`data` is the device itself, encrypted by the client that made it."""

    device_id: str
    data: bytes


async def put(db: Executor, user_id: str, device: DehydratedDevice) -> None:
    """The user's only one; the caller has removed the device it takes the place of."""
    await db.execute(
        "INSERT INTO dehydrated_devices (user_id, device_id, device_data) VALUES ($1, $2, $3)"
        " ON CONFLICT (user_id) DO UPDATE SET device_id = excluded.device_id,"
        " device_data = excluded.device_data",
        user_id,
        device.device_id,
        device.data,
    )


async def get(db: Executor, user_id: str) -> DehydratedDevice | None:
    row = await db.fetchrow(
        "SELECT device_id, device_data FROM dehydrated_devices WHERE user_id = $1", user_id
    )
    return None if row is None else DehydratedDevice(row["device_id"], bytes(row["device_data"]))
