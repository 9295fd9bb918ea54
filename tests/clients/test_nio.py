"""matrix-nio, unmodified from PyPI, on two federated servers."""

from __future__ import annotations

import asyncio
import os
from io import BytesIO

from nio import (
    AsyncClient,
    DiskDownloadResponse,
    JoinResponse,
    LoginResponse,
    MemoryDownloadResponse,
    RegisterResponse,
    RoomCreateResponse,
    RoomInviteResponse,
    RoomMessageText,
    RoomSendResponse,
    UploadResponse,
)

from tests.kit.processes import ServerProcess
from tests.kit.waiting import HANGS

PASSWORD = "a long password"


async def logged_in(server: ServerProcess, name: str) -> AsyncClient:
    client = AsyncClient(server.client_url, f"@{name}:{server.name}")
    assert isinstance(await client.register(name, PASSWORD), RegisterResponse)
    client.access_token = ""
    assert isinstance(await client.login(PASSWORD), LoginResponse)
    return client


async def texts(client: AsyncClient, room_id: str, wanted: int) -> list[tuple[str, str, str]]:
    """(event ID, sender, body) of the room's messages as /sync brings them, in order."""
    seen: list[tuple[str, str, str]] = []

    def remember(_: object, event: RoomMessageText) -> None:
        seen.append((event.event_id, event.sender, event.body))

    client.add_event_callback(remember, RoomMessageText)
    async with asyncio.timeout(HANGS):
        while len(seen) < wanted:
            await client.sync(timeout=1000)
    return seen


async def test_two_users_on_two_servers_see_the_same_messages_in_the_same_order(
    servers: tuple[ServerProcess, ServerProcess],
) -> None:
    hub, participant = servers
    alice, bob = await logged_in(hub, "nio-alice"), await logged_in(participant, "nio-bob")
    try:
        created = await alice.room_create(name="nio", invite=[])
        assert isinstance(created, RoomCreateResponse)
        assert isinstance(await alice.room_invite(created.room_id, bob.user_id), RoomInviteResponse)
        await bob.sync(timeout=0)
        assert created.room_id in bob.invited_rooms
        assert isinstance(await bob.join(created.room_id), JoinResponse)
        sent = []
        for number in range(6):
            client = (alice, bob)[number % 2]
            answer = await client.room_send(
                created.room_id, "m.room.message", {"msgtype": "m.text", "body": f"message {number}"}
            )
            assert isinstance(answer, RoomSendResponse)
            sent.append((answer.event_id, client.user_id, f"message {number}"))
        assert await texts(alice, created.room_id, 6) == sent
        assert await texts(bob, created.room_id, 6) == sent
        assert alice.rooms[created.room_id].member_count == 2
        assert bob.rooms[created.room_id].display_name == "nio"
        picture = os.urandom(200_000)
        uploaded, _ = await alice.upload(
            BytesIO(picture), "image/png", "a picture.png", filesize=len(picture)
        )
        assert isinstance(uploaded, UploadResponse)
        downloaded = await bob.download(uploaded.content_uri)
        assert isinstance(downloaded, DiskDownloadResponse | MemoryDownloadResponse)
        assert (downloaded.body, downloaded.content_type) == (picture, "image/png")
    finally:
        await alice.close()
        await bob.close()
