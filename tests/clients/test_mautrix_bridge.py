"""mautrix-python's application service, unmodified from PyPI: a bridge on one of two federated servers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import yaml

pytest.importorskip("mautrix", reason="mautrix is not installed: pip install 'lmserver[clients]'")

from mautrix.appservice import AppService
from mautrix.appservice.state_store import FileASStateStore
from mautrix.types import EventType, Membership

from tests.kit.processes import ServerProcess, configure, free_port
from tests.kit.users import User, register
from tests.kit.waiting import HANGS, eventually

AS_TOKEN, HS_TOKEN = "token-of-the-bridge-to-us", "token-of-ours-to-the-bridge"


class Bridge:
    """A small bridge: its bot joins where it is invited, and everything people say is written down."""

    def __init__(self, server: ServerProcess, folder: Path, port: int) -> None:
        self._server, self._folder, self._port = server, folder, port
        self.heard: list[tuple[str, str]] = []
        self.service: AppService | None = None

    @property
    def bot(self) -> str:
        return f"@bridgebot:{self._server.name}"

    def ghost(self, name: str) -> Any:
        assert self.service is not None
        return self.service.intent.user(f"@bridge_{name}:{self._server.name}")

    async def start(self) -> None:
        self.service = AppService(
            server=self._server.client_url, domain=self._server.name, as_token=AS_TOKEN, hs_token=HS_TOKEN,
            bot_localpart="bridgebot", id="bridge", query_user=self._wanted,
            state_store=FileASStateStore(path=str(self._folder / "states.json"), binary=False),
        )  # fmt: skip
        self.service.matrix_event_handler(self._event)
        await self.service.start("127.0.0.1", self._port)
        await self.service.intent.ensure_registered()

    async def stop(self) -> None:
        if self.service is not None:
            await self.service.stop()
        self.service = None

    async def _wanted(self, user_id: str) -> dict[str, Any]:
        """Somebody wants a user whom the bridge has not made yet."""
        assert self.service is not None
        await self.service.intent.user(user_id).ensure_registered()
        return {"made": user_id}

    async def _event(self, event: Any) -> None:
        invited = event.type == EventType.ROOM_MEMBER and event.content.membership == Membership.INVITE
        if invited and event.state_key == self.bot:
            assert self.service is not None
            await self.service.intent.join_room(event.room_id)
        if event.type == EventType.ROOM_MESSAGE:
            self.heard.append((event.event_id, event.content.body))

    def texts(self) -> list[str]:
        return [text for _, text in self.heard]


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[tuple[ServerProcess, ServerProcess, Bridge]]:
    bridged, other = configure(tmp_path, "bridged"), configure(tmp_path, "other")
    port = free_port()
    bridge = Bridge(bridged, tmp_path, port)
    (tmp_path / "bridge.yaml").write_text(yaml.safe_dump({
        "id": "bridge", "url": f"http://127.0.0.1:{port}", "as_token": AS_TOKEN, "hs_token": HS_TOKEN,
        "sender_localpart": "bridgebot", "rate_limited": False,
        "namespaces": {"users": [{"regex": f"@bridge_.+:{re.escape(bridged.name)}", "exclusive": True}]},
    }), encoding="utf-8")  # fmt: skip
    config = yaml.safe_load(bridged.config.read_text(encoding="utf-8"))
    config["appservices"] = ["bridge.yaml"]
    bridged.config.write_text(yaml.safe_dump(config), encoding="utf-8")
    try:
        await bridged.start()
        await other.start()
        yield bridged, other, bridge
    finally:
        await bridge.stop()
        bridged.stop()
        other.stop()


async def say(user: User, room: str, text: str) -> None:
    path = f"/rooms/{quote(room)}/send/m.room.message/{quote(text, safe='')}"
    await user.ok("PUT", path, {"msgtype": "m.text", "body": text})


async def said_in(user: User, room: str) -> list[tuple[str, str]]:
    answer = await user.ok("GET", f"/rooms/{quote(room)}/messages?dir=b&limit=50")
    messages = [e for e in answer["chunk"] if e["type"] == "m.room.message"]
    return [(e["sender"], e["content"]["body"]) for e in reversed(messages)]


async def test_a_bridge_joins_speaks_and_hears_everything_once(
    servers: tuple[ServerProcess, ServerProcess, Bridge],
) -> None:
    """Rooms here and on another server, an outage of the bridge, and a restart of the server meanwhile."""
    bridged, other, bridge = servers
    await bridge.start()
    async with aiohttp.ClientSession() as http:
        users = [await register(http, bridged, "alice"), await register(http, other, "bob")]
        rooms = []
        for user in users:
            made = await user.ok("POST", "/createRoom", {"invite": [bridge.bot]})
            rooms.append(made["room_id"])

        async def joined() -> bool:
            members = [
                await u.ok("GET", f"/rooms/{quote(r)}/joined_members")
                for u, r in zip(users, rooms, strict=True)
            ]
            return all(bridge.bot in answer["joined"] for answer in members)

        await eventually(joined)
        for user, room in zip(users, rooms, strict=True):
            await user.ok("POST", f"/rooms/{quote(room)}/invite", {"user_id": bridge.ghost("carol").mxid})
            await bridge.ghost("carol").join_room(room)
            await bridge.ghost("carol").send_text(room, f"carol for {user.user_id}")

        async def ghost_heard() -> bool:
            said = [await said_in(u, r) for u, r in zip(users, rooms, strict=True)]
            return all(
                (bridge.ghost("carol").mxid, f"carol for {u.user_id}") in s
                for u, s in zip(users, said, strict=True)
            )

        await eventually(ghost_heard)
        for user, room in zip(users, rooms, strict=True):
            await say(user, room, f"hello of {user.user_id}")

        async def heard(*wanted: str) -> bool:
            return set(wanted) <= set(bridge.texts())

        await eventually(lambda: heard(*(f"hello of {user.user_id}" for user in users)))
        await bridge.stop()
        for number in range(3):
            for user, room in zip(users, rooms, strict=True):
                await say(user, room, f"away {number} of {user.user_id}")
        assert bridged.stop() == 0
        await say(users[1], rooms[1], "while the server was away")
        await bridged.start()
        await say(users[0], rooms[0], "after the restart")
        await bridge.start()
        away = [f"away {number} of {user.user_id}" for number in range(3) for user in users]
        await eventually(lambda: heard(*away, "while the server was away", "after the restart"), 4 * HANGS)
        ids = [event_id for event_id, _ in bridge.heard]
        assert len(ids) == len(set(ids)), "an event came twice"
        for user in users:
            own = [text for text in bridge.texts() if text.startswith("away") and text.endswith(user.user_id)]
            assert own == [f"away {number} of {user.user_id}" for number in range(3)]
