"""mautrix-python with encryption and cross-signing, unmodified from PyPI, on two federated servers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

pytest.importorskip("olm", reason="python-olm is not installed: building it needs libolm and CMake")

from mautrix.client import Client
from mautrix.client.state_store import MemoryStateStore
from mautrix.crypto import OlmMachine
from mautrix.crypto.store import MemoryCryptoStore
from mautrix.crypto.store import StateStore as CryptoStateStore
from mautrix.types import EventType, LoginType, MessageEvent, TOFUSigningKey, TrustState

from tests.kit.processes import ServerProcess
from tests.kit.users import register
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


@pytest.mark.filterwarnings("ignore:The sender_key field:DeprecationWarning")
async def test_an_encrypted_and_cross_signed_conversation_across_two_servers(
    servers: Sequence[ServerProcess],
) -> None:
    """Both ways, with a device that comes later and verifies itself by the recovery key: its signature
    makes it trusted on the other server."""
    hub, participant = servers
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        await register(http, hub, "mau-alice")
        await register(http, participant, "mau-bob")
        alice, bob, later = (
            Phone(hub, "mau-alice"),
            Phone(participant, "mau-bob"),
            Phone(participant, "mau-bob"),
        )
        for phone in (alice, bob):
            await phone.start()
            stack.push_async_callback(phone.stop)
        room_id = await alice.client.create_room(initial_state=[ENCRYPTION], invitees=[bob.user_id])
        await bob.client.join_room(room_id)
        await alice.until_knows(bob)
        async with asyncio.timeout(HANGS):
            while len(await alice.rooms.get_members(room_id) or []) < 2:
                await asyncio.sleep(0.05)
        await alice.say(room_id, "from the hub")
        await bob.until_read("from the hub")
        await bob.say(room_id, "from the participant")
        await alice.until_read("from the participant")

        recovery_key = await bob.client.crypto.generate_recovery_key()
        await later.start()
        stack.push_async_callback(later.stop)
        await later.client.crypto.verify_with_recovery_key(recovery_key)
        await alice.until_knows(later)
        async with asyncio.timeout(HANGS):
            while await alice.trust(later) != TrustState.CROSS_SIGNED_TOFU:
                await asyncio.sleep(0.1)
        await alice.say(room_id, "for both of your devices")
        await later.until_read("for both of your devices")
        await bob.until_read("for both of your devices")
        await later.say(room_id, "from the second device")
        await alice.until_read("from the second device")
