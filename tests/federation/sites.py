"""Whole servers that speak to each other over loopback HTTP, in one process, and their users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from lmserver.storage.database import Database
from tests.evilpeer.network import Network
from tests.evilpeer.victim import Victim
from tests.kit.postgres import Cluster
from tests.kit.waiting import HANGS

V3 = "/_matrix/client/v3"


class Site:
    """One server with a database of its own; its users come into being when named."""

    def __init__(self, db: Database, network: Network, name: str, folder: Path, **config: Any) -> None:
        self.name = name
        self.db = db
        self.victim = Victim(db, network, name, folder, **config)
        self.server = self.victim.server
        self.engine = self.victim.engine
        self.http = TestClient(TestServer(self.server.client_app))

    async def start(self) -> None:
        await self.victim.start()
        await self.http.start_server()
        await self.server.sender.start()

    async def stop(self) -> None:
        await self.http.close()
        await self.victim.stop()

    async def user(self, name: str) -> Person:
        user_id = await self.server.accounts.register(name, f"a password of {name}")
        login = await self.server.accounts.log_in(user_id, None, None)
        return Person(self, user_id, login.access_token)

    async def membership(self, room_id: str, user_id: str) -> str | None:
        """As the room's list here has it; None without a list."""
        view = await self.engine.view(room_id)
        return None if view is None else view.membership(user_id)


class Person:
    """A user through the client API; `since` follows /sync."""

    def __init__(self, site: Site, user_id: str, token: str) -> None:
        self.site, self.user_id, self.token = site, user_id, token
        self.since: str | None = None

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        url = URL(V3 + path, encoded=True)
        headers = {"Authorization": f"Bearer {self.token}"}
        async with self.site.http.request(method, url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = await self.call(method, path, body)
        assert status == 200, (method, path, status, answer)
        return answer

    async def create(self, **body: Any) -> str:
        room_id: str = (await self.ok("POST", "/createRoom", body))["room_id"]
        return room_id

    async def room(self, action: str, room_id: str, body: Any = None) -> tuple[int, Any]:
        return await self.call("POST", f"/rooms/{quote(room_id)}/{action}", {} if body is None else body)

    async def act(self, action: str, room_id: str, target: Person | None = None, **body: Any) -> None:
        """An action of the room chapter that must succeed."""
        if target is not None:
            body["user_id"] = target.user_id
        status, answer = await self.room(action, room_id, body)
        assert status == 200, (action, status, answer)

    async def say(self, room_id: str, text: str, txn: str) -> str:
        body = {"msgtype": "m.text", "body": text}
        answer = await self.ok("PUT", f"/rooms/{quote(room_id)}/send/m.room.message/{txn}", body)
        event_id: str = answer["event_id"]
        return event_id

    async def sync(self, *, timeout_ms: int = 0) -> Any:
        """The `rooms` of the next increment."""
        since = "" if self.since is None else f"&since={self.since}"
        answer = await self.ok("GET", f"/sync?timeout={timeout_ms}{since}")
        self.since = answer["next_batch"]
        return answer["rooms"]

    async def until(self, section: str, room_id: str) -> Any:
        """Follow /sync until the room is in the section; what it holds there."""
        async with asyncio.timeout(HANGS):
            while True:
                rooms = await self.sync(timeout_ms=10_000)
                if room_id in rooms.get(section, {}):
                    return rooms[section][room_id]

    async def shows(self, expected: dict[str, list[str]]) -> None:
        """Wait until `pending` is this: what another server sends is under way for a moment."""
        async with asyncio.timeout(HANGS):
            while await self.pending() != expected:
                await asyncio.sleep(0.02)

    async def pending(self) -> dict[str, list[str]]:
        """Room IDs by section, as a client that has just logged in sees them."""
        answer = await self.ok("GET", "/sync?timeout=0")
        return {name: sorted(rooms) for name, rooms in answer["rooms"].items()}


@asynccontextmanager
async def sites(cluster: Cluster, folder: Path, *names: str, **config: Any) -> AsyncIterator[list[Site]]:
    """Servers of these names, started."""
    network = Network()
    async with AsyncExitStack() as stack:
        made = []
        for name in names:
            db = await Database.connect(await stack.enter_async_context(cluster.database()), max_size=5)
            stack.push_async_callback(db.close)
            site = Site(db, network, name, folder, **config)
            await site.start()
            stack.push_async_callback(site.stop)
            made.append(site)
        yield made
