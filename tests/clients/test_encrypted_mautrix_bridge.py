"""A bridge made with mautrix-python that encrypts without /sync, unmodified from PyPI, on one of two servers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

pytest.importorskip("olm", reason="python-olm is not installed: building it needs libolm and CMake")

from mautrix.appservice import AppService
from mautrix.appservice.state_store import FileASStateStore
from mautrix.client import Client
from mautrix.crypto import OlmMachine
from mautrix.types import EventType, Membership

from tests.clients.mautrix_phone import ENCRYPTION, Keys, Phone, RoomStates
from tests.kit.processes import ServerProcess, configure, free_port
from tests.kit.users import register
from tests.kit.waiting import HANGS, eventually

AS_TOKEN, HS_TOKEN = "token-of-the-bridge-to-us", "token-of-ours-to-the-bridge"
DEVICE = "BRIDGE"


class Bridge:
    """Its bot joins where it is invited, and what it can decrypt is written down. It has no login and asks
    for no /sync: it acts as a device that it makes, and lives of transactions."""

    def __init__(self, server: ServerProcess, folder: Path, port: int) -> None:
        self.bot = f"@bridgebot:{server.name}"
        self.heard: list[str] = []
        self._server, self._folder, self._port = server, folder, port
        self._rooms = RoomStates()
        self._store = Keys(self.bot, "pickle")
        self.client = Client(
            mxid=self.bot, base_url=server.client_url, token=AS_TOKEN, state_store=self._rooms, sync_store=self._store
        )  # fmt: skip
        self.machine = OlmMachine(self.client, self._store, self._rooms)
        self.client.crypto = self.machine
        self._service: AppService | None = None

    async def start(self) -> None:
        self._service = service = AppService(
            server=self._server.client_url, domain=self._server.name, as_token=AS_TOKEN, hs_token=HS_TOKEN,
            bot_localpart="bridgebot", id="bridge", ephemeral_events=True, encryption_events=True,
            state_store=FileASStateStore(path=str(self._folder / "states.json"), binary=False),
        )  # fmt: skip
        service.matrix_event_handler(self._event)
        service.otk_handler = self.machine.handle_as_otk_counts
        service.device_list_handler = self.machine.handle_as_device_lists
        service.to_device_handler = self.machine.handle_as_to_device_event
        await service.start("127.0.0.1", self._port)

    async def publish(self) -> None:
        """A device with keys, once."""
        await self.client.create_device_msc4190(DEVICE, "bridge")
        await self.machine.load()
        await self.machine.share_keys()

    async def stop(self) -> None:
        if self._service is not None:
            await self._service.stop()
        self._service = None

    async def _event(self, event: Any) -> None:
        await self._rooms.update_state(event)
        if event.type == EventType.ROOM_MEMBER:
            await self.machine.handle_member_event(event)
            if event.state_key == self.bot and event.content.membership == Membership.INVITE:
                await self.client.join_room(event.room_id)
                for state in await self.client.get_state(event.room_id):
                    await self._rooms.update_state(state)
        if event.type == EventType.ROOM_ENCRYPTED and event.sender != self.bot:
            # Its key may be in the same transaction.
            await self.machine.wait_for_session(event.room_id, event.content.session_id, timeout=5)
            decrypted = await self.machine.decrypt_megolm_event(event)
            self.heard.append(decrypted.content.body)


@pytest.fixture
async def bridged(tmp_path: Path) -> AsyncIterator[tuple[ServerProcess, ServerProcess, Bridge]]:
    ours, other = configure(tmp_path, "bridged"), configure(tmp_path, "other")
    port = free_port()
    (tmp_path / "bridge.yaml").write_text(yaml.safe_dump({
        "id": "bridge", "url": f"http://127.0.0.1:{port}", "as_token": AS_TOKEN, "hs_token": HS_TOKEN,
        "sender_localpart": "bridgebot", "rate_limited": False, "receive_ephemeral": True, "org.matrix.msc3202": True,
        "namespaces": {"users": [{"regex": f"@bridge_.+:{re.escape(ours.name)}", "exclusive": True}]},
    }), encoding="utf-8")  # fmt: skip
    config = yaml.safe_load(ours.config.read_text(encoding="utf-8"))
    config["appservices"] = ["bridge.yaml"]
    ours.config.write_text(yaml.safe_dump(config), encoding="utf-8")
    bridge = Bridge(ours, tmp_path, port)
    try:
        await ours.start()
        await other.start()
        yield ours, other, bridge
    finally:
        await bridge.stop()
        await bridge.client.api.session.close()
        ours.stop()
        other.stop()


@pytest.mark.filterwarnings("ignore:The sender_key field:DeprecationWarning")
async def test_an_encrypted_conversation_with_a_bridge_that_does_not_sync(
    bridged: tuple[ServerProcess, ServerProcess, Bridge],
) -> None:
    """A user of another server, both ways; and keys that were sent while the bridge was away and the server
    started again."""
    ours, other, bridge = bridged
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        await register(http, other, "mau-alice")
        alice = Phone(other, "mau-alice")
        await alice.start()
        stack.push_async_callback(alice.stop)
        await bridge.start()
        await bridge.publish()
        rooms = [
            await alice.client.create_room(initial_state=[ENCRYPTION], invitees=[bridge.bot])
            for _ in range(2)
        ]
        for room in rooms:
            await eventually(lambda room=room: _joined(alice, room, bridge.bot))
        async with asyncio.timeout(HANGS):
            while await alice.client.crypto.get_or_fetch_device(bridge.bot, DEVICE) is None:
                await asyncio.sleep(0.05)
        await alice.say(rooms[0], "to the bridge")
        await eventually(lambda: bridge.heard == ["to the bridge"])
        await bridge.client.send_text(rooms[0], "from the bridge")
        await alice.until_read("from the bridge")
        await bridge.stop()
        await alice.say(rooms[1], "while it was away")
        assert ours.stop() == 0
        await ours.start()
        await bridge.start()
        await eventually(lambda: bridge.heard == ["to the bridge", "while it was away"])
        await bridge.client.send_text(rooms[1], "back again")
        await alice.until_read("back again")


async def _joined(phone: Phone, room: str, user: str) -> bool:
    return user in (await phone.rooms.get_members(room, memberships=(Membership.JOIN,)) or [])
