"""A whole server with its admin listener's application, an administrator and a user."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from lmserver.storage.database import Database
from tests.kit.client_api import NAME, PASSWORD, Api, serve

V1, V2, OWN = "/_synapse/admin/v1", "/_synapse/admin/v2", "/_lmserver/admin/v1"
ROOT, ALICE, BOB = f"@root:{NAME}", f"@alice:{NAME}", f"@bob:{NAME}"


class AdminApi:
    """Requests as the administrator unless a token is given; `clients` is the client API beside it."""

    def __init__(self, clients: Api) -> None:
        self.clients = clients
        self.server = clients.server
        self.http = TestClient(TestServer(clients.server.admin_app))
        self.token = self.alice = self.bob = ""
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.http.start_server()
        self._background.append(asyncio.create_task(self.server.purges.run()))
        await self.server.accounts.register("root", PASSWORD, is_admin=True)
        self.token = (await self.server.accounts.log_in(ROOT, None, None)).access_token
        self.alice = (await self.clients.register("alice"))["access_token"]
        self.bob = (await self.clients.register("bob"))["access_token"]

    async def call(
        self, method: str, path: str, body: Any = None, token: str | None = None
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        async with self.http.request(method, URL(path, encoded=True), json=body, headers=headers) as response:
            assert not [name for name in response.headers if name.startswith("Access-Control")]
            return response.status, await response.json()

    async def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = await self.call(method, path, body)
        assert status == 200, (method, path, status, answer)
        return answer

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        await self.http.close()
        await self.clients.http.close()
        await self.server.close()


@pytest.fixture
async def admin(db: Database, tmp_path: Path) -> AsyncIterator[AdminApi]:
    made = AdminApi(await serve(db, tmp_path))
    await made.start()
    yield made
    await made.close()
