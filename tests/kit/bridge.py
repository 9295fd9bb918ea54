"""An application service that takes what it is sent, or refuses it, and remembers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from lmserver.storage.database import Database
from tests.kit.client_api import NAME, V3, Api, serve

AS_TOKEN = "as-token-of-the-bridge"
HS_TOKEN = "hs-token-of-the-bridge"


class Bridge:
    """`status` is what transactions are answered with; `bodies` is every one that came, by its ID."""

    def __init__(self) -> None:
        self.status = 200
        self.bodies: list[tuple[str, bytes]] = []
        self.taken: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.knows: dict[str, Any] = {}
        self.pings: list[Any] = []
        app = web.Application(client_max_size=10_000_000)
        app.router.add_put("/_matrix/app/v1/transactions/{txn}", self._transaction)
        app.router.add_get("/_matrix/app/v1/users/{id}", self._query)
        app.router.add_get("/_matrix/app/v1/rooms/{id}", self._query)
        app.router.add_post("/_matrix/app/v1/ping", self._ping)
        self._server = TestServer(app)

    async def start(self) -> None:
        await self._server.start_server()

    async def close(self) -> None:
        await self._server.close()

    def registration(self, folder: Path, **changes: Any) -> str:
        """Write the registration file; its path."""
        entry = {
            "id": "bridge", "url": str(self._server.make_url("/")), "as_token": AS_TOKEN, "hs_token": HS_TOKEN,
            "sender_localpart": "_bridge_bot", "rate_limited": False, "some_bridges_own": {"key": 1},
            "namespaces": {
                "users": [{"regex": "@_bridge_.*:hub\\.test", "exclusive": True}, {"regex": "@puppet:hub\\.test", "exclusive": False}],
                "aliases": [{"regex": "#_bridge_.*:hub\\.test", "exclusive": True}], "rooms": [],
            }, **changes,
        }  # fmt: skip
        path = folder / f"{entry['id']}.yaml"
        path.write_text(yaml.safe_dump(entry), encoding="utf-8")
        return str(path)

    def _check(self, request: web.Request) -> None:
        assert request.headers["Authorization"] == f"Bearer {HS_TOKEN}"
        assert request.query["access_token"] == HS_TOKEN

    async def _transaction(self, request: web.Request) -> web.Response:
        self._check(request)
        body, txn = await request.read(), request.match_info["txn"]
        self.bodies.append((txn, body))
        if self.status == 200:
            assert self.taken.setdefault(txn, body) == body
        return web.json_response({}, status=self.status)

    async def _query(self, request: web.Request) -> web.Response:
        self._check(request)
        id_ = unquote(request.match_info["id"])
        self.asked.append(id_)
        make = self.knows.get(id_)
        if make is None:
            return web.json_response({"errcode": "M_NOT_FOUND"}, status=404)
        await make()
        return web.json_response({})

    async def _ping(self, request: web.Request) -> web.Response:
        self._check(request)
        self.pings.append(await request.json())
        return web.json_response({}, status=self.status)

    def events(self) -> list[dict[str, Any]]:
        """Every event taken, in order, as often as it came in different transactions."""
        found = (
            json.loads(body)["events"] for _, body in sorted(self.taken.items(), key=lambda i: int(i[0]))
        )
        return [event for events in found for event in events]

    def ephemeral(self) -> list[dict[str, Any]]:
        found = (json.loads(body).get("ephemeral", []) for body in self.taken.values())
        return [event for events in found for event in events]

    def told(self, name: str) -> list[Any]:
        """Every value of a key of the transactions taken, in order."""
        bodies = (json.loads(body) for _, body in sorted(self.taken.items(), key=lambda i: int(i[0])))
        return [body[name] for body in bodies if name in body]

    def texts(self) -> list[str]:
        return [e["content"]["body"] for e in self.events() if e["type"] == "m.room.message"]


class Bridged(Api):
    """A server with its deliveries running."""

    task: asyncio.Task[None]

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.close()

    async def ghost(self, name: str = "_bridge_ghost") -> None:
        body = {"type": "m.login.application_service", "username": name, "inhibit_login": True}
        status, answer = await self.call("POST", f"{V3}/register", body, AS_TOKEN)
        assert (status, answer["user_id"]) == (200, f"@{name}:{NAME}")
        assert (await self.call("GET", f"{V3}/profile/@{name}:{NAME}"))[1] == {"displayname": name}

    async def room(self, token: str, *invite: str, **more: Any) -> str:
        body = {"invite": list(invite), "preset": "public_chat", **more}
        status, answer = await self.call("POST", f"{V3}/createRoom", body, token)
        assert status == 200, answer
        return str(answer["room_id"])

    async def say(self, room: str, text: str, token: str, txn: str, query: str = "") -> str:
        path = f"{V3}/rooms/{room}/send/m.room.message/{txn}{query}"
        status, answer = await self.call("PUT", path, {"msgtype": "m.text", "body": text}, token)
        assert status == 200, answer
        return str(answer["event_id"])


async def start(db: Database, folder: Path, bridge: Bridge, **changes: Any) -> Bridged:
    files = {"appservices": [bridge.registration(folder, **changes)]}
    made = await serve(db, folder, files)
    api = Bridged.__new__(Bridged)
    api.__dict__.update(made.__dict__)
    await api.server.appservices.services.start()
    api.task = asyncio.create_task(api.server.serve_bridges())
    return api
