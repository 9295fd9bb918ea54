"""A device of a user of mautrix-python, with encryption; to be imported where python-olm is installed."""

from __future__ import annotations

import asyncio
from typing import Any

from mautrix.client import Client
from mautrix.client.state_store import MemoryStateStore
from mautrix.crypto import OlmMachine
from mautrix.crypto.store import MemoryCryptoStore
from mautrix.crypto.store import StateStore as CryptoStateStore
from mautrix.types import EventType, LoginType, MessageEvent, TOFUSigningKey, TrustState

from tests.kit.processes import ServerProcess
from tests.kit.waiting import HANGS

PASSWORD = "a long password"
ENCRYPTION = {
    "type": "m.room.encryption",
    "state_key": "",
    "content": {"algorithm": "m.megolm.v1.aes-sha2"},
}


class RoomStates(MemoryStateStore, CryptoStateStore):
    """What the client keeps of rooms, in the form its encryption asks for."""

    async def find_shared_rooms(self, user_id: str) -> list[str]:
        return [room for room, members in self.members.items() if user_id in members]


class Keys(MemoryCryptoStore):
    """mautrix 0.21's store in memory cannot take a cross-signing key a second time."""

    async def put_cross_signing_key(self, user_id: str, usage: Any, key: str) -> None:
        keys = self._cross_signing_keys.setdefault(user_id, {})
        keys[usage] = TOFUSigningKey(key=key, first=keys[usage].first if usage in keys else key)


class Phone:
    """A logged-in device that follows /sync by itself."""

    def __init__(self, server: ServerProcess, name: str) -> None:
        self.user_id = f"@{name}:{server.name}"
        self.rooms = RoomStates()
        self.store = Keys(self.user_id, "pickle")
        self.client = Client(
            mxid=self.user_id, base_url=server.client_url, state_store=self.rooms, sync_store=self.store
        )
        self.read: list[str] = []
        self.invites: list[str] = []

    async def start(self) -> None:
        await self.client.login(self.user_id, LoginType.PASSWORD, password=PASSWORD)
        self.client.crypto = OlmMachine(self.client, self.store, self.rooms)
        await self.client.crypto.load()
        await self.client.crypto.share_keys()
        self.client.add_event_handler(EventType.ROOM_MESSAGE, self._message)
        self.client.start(None)

    async def stop(self) -> None:
        self.client.stop()
        await self.client.api.session.close()

    async def _message(self, event: MessageEvent) -> None:
        assert event["mautrix"]["was_encrypted"]
        self.read.append(event.content.body)

    async def say(self, room_id: str, text: str) -> None:
        await self.client.send_text(room_id, text)

    async def until_read(self, *texts: str) -> None:
        async with asyncio.timeout(HANGS):
            while not set(texts) <= set(self.read):
                await asyncio.sleep(0.05)

    async def until_knows(self, other: Phone) -> None:
        """The other's device is known with its keys: it is looked up when it is not."""
        async with asyncio.timeout(HANGS):
            while await self.trust(other) is None:
                await asyncio.sleep(0.05)

    async def trust(self, other: Phone) -> TrustState | None:
        """How the other's device is trusted, as far as it is known."""
        machine = self.client.crypto
        device = await machine.get_or_fetch_device(other.user_id, other.client.device_id)
        return None if device is None else await machine.resolve_trust(device)
