"""Local users' devices as other servers may ask for them."""

from __future__ import annotations

from typing import Any

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.device_data import DeviceStore
from lmserver.protocol import ids
from lmserver.protocol.cross_signing import PUBLIC_USAGES
from lmserver.storage.e2e_keys import Claim


class FederatedDevices:
    """Keys and devices for federation; unknown users are left out. How a user named a
    device is told to nobody else."""

    def __init__(self, accounts: Accounts, store: DeviceStore, our_name: str) -> None:
        self._accounts = accounts
        self._store = store
        self._our_name = our_name

    def _is_local(self, user_id: str) -> bool:
        return ids.is_user_id(user_id) and ids.server_of(user_id) == self._our_name

    async def device(self, user_id: str, device_id: str) -> dict[str, Any] | None:
        """The object the device signed (D04 §Device Info Publishing)."""
        if "\0" in device_id:
            return None
        found = await self._store.query({user_id: [device_id]}, names=False)
        return found[user_id].get(device_id)

    async def devices(self, user_id: str) -> dict[str, Any] | None:
        if not await self._accounts.is_active(user_id):
            return None
        number = await self._store.list_number(user_id)
        keys = (await self._store.query({user_id: []}, names=False))[user_id]
        devices = [{"device_id": device_id, "keys": value} for device_id, value in keys.items()]
        answer: dict[str, Any] = {"user_id": user_id, "stream_id": number, "devices": devices}
        cross_signing = await self._store.cross_signing([user_id], None)
        return answer | {f"{u}_key": cross_signing[u][user_id] for u in PUBLIC_USAGES if cross_signing[u]}

    async def query_keys(self, wanted: dict[str, list[str]]) -> dict[str, Any]:
        local = {
            user_id: [d for d in devices if "\0" not in d]
            for user_id, devices in wanted.items()
            if self._is_local(user_id)
        }
        answer: dict[str, Any] = {"device_keys": await self._store.query(local, names=False)}
        cross_signing = await self._store.cross_signing(local, None)
        return answer | {f"{usage}_keys": cross_signing[usage] for usage in PUBLIC_USAGES}

    async def claim_keys(self, origin: str, wanted: dict[str, dict[str, str]]) -> dict[str, Any]:
        """User to device to claimed key; never the same one-time key twice."""
        claims = [
            Claim(user_id, device_id, algorithm)
            for user_id, devices in wanted.items()
            for device_id, algorithm in devices.items()
            if self._is_local(user_id) and "\0" not in device_id and "\0" not in algorithm
        ]
        return await self._store.claim(origin, claims)
