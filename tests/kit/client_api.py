"""The assembled client API over HTTP, as a client without a library sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from lmserver.composition import Server, assemble, clock_ms
from lmserver.config import parse_config
from lmserver.federation_client.dns_lookup import Dns
from lmserver.storage.database import Database
from tests.kit.rooms import key_of

NAME = "hub.test"
V3 = "/_matrix/client/v3"
PASSWORD = "a long password"


class Api:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.http = TestClient(TestServer(server.client_app))

    async def call(
        self, method: str, path: str, body: Any = None, token: str | None = None
    ) -> tuple[int, Any]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with self.http.request(method, URL(path, encoded=True), json=body, headers=headers) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            return response.status, await response.json()

    async def close(self) -> None:
        await self.http.close()
        await self.server.close()

    async def register(self, name: str) -> dict[str, str]:
        body = {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        status, answer = await self.call("POST", f"{V3}/register", body)
        assert status == 200, answer
        return dict(answer)


async def serve(
    db: Database,
    tmp_path: Path,
    more: dict[str, Any] | None = None,
    clock: Callable[[], int] = clock_ms,
    dns: Dns | None = None,
    **registration: Any,
) -> Api:
    """A server with open registration, or with another; `more` are further sections."""
    fast = {"per_second": 1000, "burst": 1000}
    config = parse_config(
        {
            "server_name": NAME,
            "registration": registration or {"mode": "open"},
            "limits": {"login": fast, "registration": fast, "send": fast},
            **(more or {}),
        },
        tmp_path,
    )
    api = Api(assemble(config, db, key_of(NAME), clock, dns))
    await api.http.start_server()
    return api


def login(user: str, password: str = PASSWORD, **more: Any) -> dict[str, Any]:
    return {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user},
        "password": password,
        **more,
    }
