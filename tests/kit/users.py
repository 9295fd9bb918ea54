"""Users of a server in its own process, through nothing but its client API."""

from __future__ import annotations

from typing import Any

import aiohttp
from yarl import URL

from tests.kit.processes import ServerProcess


class User:
    def __init__(self, http: aiohttp.ClientSession, server: ServerProcess, user_id: str, token: str) -> None:
        self.http, self.server, self.user_id, self.token = http, server, user_id, token

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        url = URL(f"{self.server.client_url}/_matrix/client/v3{path}", encoded=True)
        headers = {"Authorization": f"Bearer {self.token}"}
        async with self.http.request(method, url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = await self.call(method, path, body)
        assert status == 200, (method, path, status, answer)
        return answer

    async def history(self, room: str) -> list[str]:
        answer = await self.ok("GET", f"{room}/messages?dir=b&limit=500")
        return [event["event_id"] for event in answer["chunk"]][::-1]


async def register(http: aiohttp.ClientSession, server: ServerProcess, name: str) -> User:
    body = {"username": name, "password": "a long password", "auth": {"type": "m.login.dummy"}}
    async with http.post(server.client_url + "/_matrix/client/v3/register", json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return User(http, server, answer["user_id"], answer["access_token"])
