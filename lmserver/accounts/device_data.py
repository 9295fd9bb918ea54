"""Encryption keys of devices and messages between them; the content is opaque to us."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from lmserver.storage import accounts, e2e_keys, to_device
from lmserver.storage.database import Connection, Database

MAX_MESSAGES = 100
MAX_ONE_TIME_KEYS = 500


class KeyConflict(Exception):
    """A one-time key was uploaded again under its ID with another value."""


class DeviceStore:
    """Keys and to-device messages of local users."""

    def __init__(
        self, db: Database, publish: Callable[[Iterable[str]], None], clock: Callable[[], int]
    ) -> None:
        self._db = db
        self._publish = publish
        self._clock = clock

    # -- keys -----------------------------------------------------------------------------------

    async def upload(
        self,
        user_id: str,
        device_id: str,
        device_keys: dict[str, Any] | None,
        one_time_keys: Mapping[str, Any],
        fallback_keys: Mapping[str, Any],
    ) -> dict[str, int]:
        """Store what a device publishes and return how many one-time keys it has; the shapes have
        been checked. Raises KeyConflict."""
        keys = [(key_id, key_id.split(":")[0], orjson.dumps(key)) for key_id, key in one_time_keys.items()]

        async def work(db: Connection) -> bool:
            changed = False
            if device_keys is not None:
                data = orjson.dumps(device_keys, option=orjson.OPT_SORT_KEYS)
                changed = await e2e_keys.put_device_keys(db, user_id, device_id, data)
                if changed:
                    await e2e_keys.device_list_changed(db, user_id)
            if keys:
                await e2e_keys.add_one_time_keys(db, user_id, device_id, keys)
                stored = await e2e_keys.one_time_keys(db, user_id, device_id, [k for k, _, _ in keys])
                if any(stored.get(key_id, key) != key for key_id, _, key in keys):
                    raise KeyConflict
            for key_id, key in fallback_keys.items():
                algorithm = key_id.split(":")[0]
                await e2e_keys.put_fallback_key(db, user_id, device_id, algorithm, key_id, orjson.dumps(key))
            return changed

        if await self._db.run(work):
            self._publish([user_id])
        return await e2e_keys.one_time_key_counts(self._db, user_id, device_id)

    async def query(self, user_id: str, device_ids: list[str]) -> dict[str, Any]:
        """Device ID to device keys, the display name under `unsigned`."""
        found = await e2e_keys.device_keys(self._db, user_id, device_ids)
        devices: dict[str, Any] = {}
        for device_id, (data, name) in found.items():
            keys = orjson.loads(data)
            keys["unsigned"] = {} if name is None else {"device_display_name": name}
            devices[device_id] = keys
        return devices

    async def cross_signing(self, user_id: str) -> dict[str, Any]:
        """Usage to key."""
        found = await e2e_keys.cross_signing_keys(self._db, user_id)
        return {usage: orjson.loads(key) for usage, key in found.items()}

    async def set_cross_signing(self, user_id: str, keys: Mapping[str, dict[str, Any]]) -> None:
        async def work(db: Connection) -> None:
            for usage, key in keys.items():
                await e2e_keys.put_cross_signing_key(db, user_id, usage, orjson.dumps(key))
            await e2e_keys.device_list_changed(db, user_id)

        await self._db.run(work)
        self._publish([user_id])

    async def claim(self, user_id: str, device_id: str, algorithm: str) -> dict[str, Any] | None:
        """One key, never handed out again (a fallback key excepted)."""
        found = await self._db.run(lambda db: e2e_keys.claim(db, user_id, device_id, algorithm))
        if found is None:
            return None
        key_id, key = found
        self._publish([user_id])
        return {key_id: orjson.loads(key)}

    # -- messages -------------------------------------------------------------------------------

    async def send(
        self, sender: str, device_id: str, txn_id: str, type_: str, messages: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Queue messages for local devices, once for each transaction ID; "*" is every device."""
        rows: list[tuple[str, str, bytes]] = []
        for user_id, by_device in messages.items():
            for target, content in by_device.items():
                data = orjson.dumps({"type": type_, "sender": sender, "content": content})
                rows += [(user_id, d, data) for d in await self._targets(user_id, target)]

        async def work(db: Connection) -> bool:
            if not await to_device.first_time(db, sender, device_id, txn_id, self._clock()):
                return False
            await to_device.queue(db, rows)
            for user_id, target in {(user, device) for user, device, _ in rows}:
                await to_device.trim(db, user_id, target)
            return True

        if await self._db.run(work):
            self._publish({user for user, _, _ in rows})

    async def _targets(self, user_id: str, device_id: str) -> list[str]:
        if device_id != "*":
            return [device_id]
        return [d.device_id for d in await accounts.devices(self._db, user_id)]

    async def receive(self, sender: str, user_id: str, device_id: str, type_: str, content: Any) -> None:
        """A message from a user of another server."""
        data = orjson.dumps({"type": type_, "sender": sender, "content": content})
        rows = [(user_id, d, data) for d in await self._targets(user_id, device_id)]
        await self._db.run(lambda db: to_device.queue(db, rows))
        self._publish([user_id])

    # -- for /sync ------------------------------------------------------------------------------

    async def messages(
        self, user_id: str, device_id: str, since: int, upto: int
    ) -> tuple[list[dict[str, Any]], int]:
        """Messages in [since, upto) and how far they go; those before `since` are deleted."""
        if since > 0:
            await to_device.acknowledge(self._db, user_id, device_id, since)
        found = await to_device.pending(self._db, user_id, device_id, since, upto, MAX_MESSAGES + 1)
        if len(found) > MAX_MESSAGES:
            # Whole transactions only: the answer ends before the one that did not fit.
            last = found[MAX_MESSAGES].stream_xid
            fitting = [m for m in found if m.stream_xid < last]
            if fitting:
                found, upto = fitting, last
            else:
                upto = found[0].stream_xid + 1
        return [orjson.loads(m.message) for m in found], upto

    async def key_counts(self, user_id: str, device_id: str) -> tuple[dict[str, int], list[str]]:
        counts = await e2e_keys.one_time_key_counts(self._db, user_id, device_id)
        return counts, await e2e_keys.unused_fallback_types(self._db, user_id, device_id)

    async def changed_users(self, since: int, upto: int) -> set[str]:
        return await e2e_keys.changed_users(self._db, since, upto)
