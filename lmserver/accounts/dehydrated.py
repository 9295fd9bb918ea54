"""Dehydrated devices (MSC3814): a device is left here, encrypted, and goes on receiving room keys
while its user is logged in nowhere. A later login takes its messages and puts a new one in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.device_data import DeviceStore
from lmserver.accounts.device_lists import DeviceLists, Reach
from lmserver.storage import accounts as stored_accounts
from lmserver.storage import dehydrated_devices as storage
from lmserver.storage import stream
from lmserver.storage.cross_signing import lock_user
from lmserver.storage.database import Connection, Database
from lmserver.storage.dehydrated_devices import DehydratedDevice


class DeviceInUse(Exception):
    """A device of this ID is logged in."""


class OtherDevice(Exception):
    """This is not the user's dehydrated device."""


@dataclass(frozen=True, slots=True)
class NewDevice:
    """What a client leaves here; the shapes have been checked."""

    device_id: str
    data: dict[str, Any]
    name: str | None
    device_keys: dict[str, Any]
    one_time_keys: Mapping[str, Any]
    fallback_keys: Mapping[str, Any]


class DehydratedDevices:
    """At most one for each user."""

    def __init__(
        self, db: Database, accounts: Accounts, devices: DeviceStore, device_lists: DeviceLists
    ) -> None:
        self._db = db
        self._accounts = accounts
        self._devices = devices
        self._device_lists = device_lists

    async def put(self, user_id: str, device: NewDevice) -> None:
        """Take a device in the place of the one there is. Raises DeviceInUse, KeyConflict, TooManyKeys."""

        async def work(db: Connection) -> list[Reach | None]:
            await lock_user(db, user_id)
            old = await storage.get(db, user_id)
            gone = await self._accounts.remove_devices(db, user_id, [old.device_id] if old else [])
            if await stored_accounts.device(db, user_id, device.device_id) is not None:
                raise DeviceInUse
            await stored_accounts.add_device(db, user_id, device.device_id, device.name)
            await storage.put(db, user_id, DehydratedDevice(device.device_id, orjson.dumps(device.data)))
            new = await self._devices.store(
                db,
                user_id,
                device.device_id,
                device.device_keys,
                device.one_time_keys,
                device.fallback_keys,
            )
            return [gone, new]

        for reach in await self._db.run(work):
            self._device_lists.tell(reach)

    async def get(self, user_id: str) -> DehydratedDevice | None:
        return await storage.get(self._db, user_id)

    async def delete(self, user_id: str) -> str | None:
        """The device's ID; None when there was none."""
        device = await storage.get(self._db, user_id)
        if device is not None:
            await self._accounts.log_out(user_id, [device.device_id])
        return None if device is None else device.device_id

    async def messages(self, user_id: str, device_id: str, since: int) -> tuple[list[dict[str, Any]], int]:
        """Messages from a stream position on, and the position they go to; all stay where they are, for
        whoever takes the device up may not come to an end. Raises OtherDevice."""
        device = await storage.get(self._db, user_id)
        if device is None or device.device_id != device_id:
            raise OtherDevice
        upto = max(since, await stream.settled(self._db))
        return await self._devices.waiting(user_id, device_id, since, upto)
