"""mautrix-python with encryption and cross-signing, unmodified from PyPI, on two federated servers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import aiohttp
import pytest

pytest.importorskip("olm", reason="python-olm is not installed: building it needs libolm and CMake")

from mautrix.types import TrustState

from tests.clients.mautrix_phone import ENCRYPTION, Phone
from tests.kit.processes import ServerProcess
from tests.kit.users import register
from tests.kit.waiting import HANGS


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
