"""matrix-nio with encryption, unmodified from PyPI, on two federated servers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from nio import (
    AsyncClient,
    AsyncClientConfig,
    JoinResponse,
    LoginResponse,
    MegolmEvent,
    RegisterResponse,
    RoomCreateResponse,
    RoomInviteResponse,
    RoomMessageText,
    RoomSendResponse,
)

from tests.kit.processes import ServerProcess
from tests.kit.waiting import HANGS

PASSWORD = "a long password"
ENCRYPTION = {
    "type": "m.room.encryption",
    "state_key": "",
    "content": {"algorithm": "m.megolm.v1.aes-sha2"},
}


class Phone:
    """One device of a user, and what it could read and what not."""

    def __init__(self, server: ServerProcess, name: str, store: Path) -> None:
        config = AsyncClientConfig(encryption_enabled=True, store_sync_tokens=True)
        store.mkdir()
        self.client = AsyncClient(
            server.client_url, f"@{name}:{server.name}", store_path=str(store), config=config
        )
        self.name = name
        self.read: list[str] = []
        self.unreadable: list[MegolmEvent] = []
        self.client.add_event_callback(self._readable, RoomMessageText)
        self.client.add_event_callback(self._unreadable, MegolmEvent)

    async def _readable(self, _: object, event: RoomMessageText) -> None:
        assert event.decrypted
        self.read.append(event.body)

    async def _unreadable(self, _: object, event: MegolmEvent) -> None:
        self.unreadable.append(event)

    async def log_in(self, *, register: bool = False) -> None:
        if register:
            assert isinstance(await self.client.register(self.name, PASSWORD), RegisterResponse)
            await self.client.logout()
        assert isinstance(await self.client.login(PASSWORD), LoginResponse)
        await self.follow()

    async def follow(self, timeout: int = 0) -> None:
        """One /sync, and what a client does with it before it goes on."""
        await self.client.sync(timeout=timeout)
        await self.client.send_to_device_messages()
        if self.client.should_upload_keys:
            await self.client.keys_upload()
        if self.client.should_query_keys:
            await self.client.keys_query()
        if self.client.should_claim_keys:
            await self.client.keys_claim(self.client.get_users_for_key_claiming())

    async def until_read(self, *texts: str) -> None:
        async with asyncio.timeout(HANGS):
            while not set(texts) <= set(self.read):
                await self.follow(500)

    async def until_knows(self, *devices: Phone) -> None:
        """The devices are known to it, with their keys."""
        async with asyncio.timeout(HANGS):
            while any(d.client.device_id not in self.client.device_store[d.client.user_id] for d in devices):
                await self.follow(500)

    async def gets_missing_keys(self, other: Phone) -> None:
        """Ask the user's other device for the keys of what cannot be read; they trust each other."""
        for one, two in ((self, other), (other, self)):
            one.client.verify_device(one.client.device_store[two.client.user_id][two.client.device_id])
        for event in self.unreadable:
            await self.client.request_room_key(event)
        async with asyncio.timeout(HANGS):
            while self.client.outgoing_key_requests:
                await other.follow(200)
                await self.follow(200)

    async def say(self, room_id: str, text: str) -> None:
        content = {"msgtype": "m.text", "body": text}
        answer = await self.client.room_send(
            room_id, "m.room.message", content, ignore_unverified_devices=True
        )
        assert isinstance(answer, RoomSendResponse), answer


async def test_an_encrypted_conversation_across_two_servers(
    servers: tuple[ServerProcess, ServerProcess], tmp_path: Path
) -> None:
    """Both ways, with a second device that logs in later: everybody learns of it and encrypts for it."""
    hub, participant = servers
    alice, bob = (
        Phone(hub, "crypt-alice", tmp_path / "alice"),
        Phone(participant, "crypt-bob", tmp_path / "bob"),
    )
    later = Phone(participant, "crypt-bob", tmp_path / "later")
    async with AsyncExitStack() as stack:
        for phone in (alice, bob, later):
            stack.push_async_callback(phone.client.close)
        await alice.log_in(register=True)
        await bob.log_in(register=True)
        created = await alice.client.room_create(name="secret", initial_state=[ENCRYPTION])
        assert isinstance(created, RoomCreateResponse)
        room_id = created.room_id
        invited = await alice.client.room_invite(room_id, bob.client.user_id)
        assert isinstance(invited, RoomInviteResponse)
        await bob.follow()
        assert isinstance(await bob.client.join(room_id), JoinResponse)
        await alice.until_knows(bob)
        await bob.until_knows(alice)
        await alice.say(room_id, "from the hub")
        await bob.until_read("from the hub")
        await bob.say(room_id, "from the participant")
        await alice.until_read("from the participant")

        await later.log_in()
        await alice.until_knows(later)
        await bob.until_knows(later)
        await alice.say(room_id, "for both of your devices")
        await later.until_read("for both of your devices")
        await bob.until_read("for both of your devices")
        await later.say(room_id, "from the second device")
        await alice.until_read("from the second device")
        await bob.until_read("from the second device")

        assert alice.unreadable == bob.unreadable == []
        assert not {"from the hub", "from the participant"} & set(later.read)
        await later.gets_missing_keys(bob)
        missed = [later.client.decrypt_event(event).body for event in later.unreadable]
        assert missed == ["from the hub", "from the participant"]

        # A device that is gone is not encrypted for any more.
        await bob.client.logout()
        async with asyncio.timeout(HANGS):
            while any(
                d.id == bob.client.device_id
                for d in alice.client.device_store.active_user_devices(bob.client.user_id)
            ):
                await alice.follow(500)
