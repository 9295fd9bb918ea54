"""A whole server in a room with two peers, with clients of its own: for what is not an event."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from lmserver.storage.database import Database
from tests.evilpeer.arena import Arena
from tests.kit.rooms import BOB, PARTICIPANT

V3 = "/_matrix/client/v3"
PASSWORD = "a long password"
_number = count(1)

Edu = dict[str, Any]


class Device:
    """A client, logged in."""

    def __init__(self, http: TestClient[Any, Any], user_id: str, device_id: str, token: str) -> None:
        self.http = http
        self.user_id, self.device_id, self.token = user_id, device_id, token
        self.since = ""

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.token}"}
        url = URL(V3 + path, encoded=True)
        async with self.http.request(method, url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = await self.call(method, path, body)
        assert status == 200, (method, path, status, answer)
        return answer

    async def sync(self, timeout: int = 0) -> Any:
        """The next answer; what it brought is acknowledged by the one after it."""
        since = f"&since={self.since}" if self.since else ""
        answer = await self.ok("GET", f"/sync?timeout={timeout}{since}")
        self.since = answer["next_batch"]
        return answer

    async def messages(self) -> list[Any]:
        """Contents of the to-device messages of the next answer."""
        return [event["content"] for event in (await self.sync())["to_device"]["events"]]

    async def send_to_device(self, target: str, device_id: str, *contents: Any) -> None:
        for content in contents:
            body = {"messages": {target: {device_id: content}}}
            await self.ok("PUT", f"/sendToDevice/m.x/t{next(_number)}", body)

    async def upload_keys(self, keys: Edu | None = None) -> Edu:
        """Device keys, made up unless given."""
        made = keys or {
            "user_id": self.user_id,
            "device_id": self.device_id,
            "algorithms": ["m.x"],
            "keys": {f"ed25519:{self.device_id}": f"key{next(_number)}"},
            "signatures": {self.user_id: {f"ed25519:{self.device_id}": "sig"}},
        }
        await self.ok("POST", "/keys/upload", {"device_keys": made})
        return made


class EduWorld:
    """The arena's victim with its sender running and its client API served."""

    def __init__(self, db: Database, folder: Path, **config: Any) -> None:
        self.db = db
        self.arena = Arena(db, folder, **config)
        self.server = self.arena.victim.server
        self.http: TestClient[Any, Any] = TestClient(TestServer(self.server.client_app))

    async def __aenter__(self) -> EduWorld:
        await self.arena.__aenter__()
        await self.http.start_server()
        await self.server.sender.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.close()
        await self.arena.__aexit__(kind, error, trace)

    async def device(self, localpart: str, device_id: str = "D") -> Device:
        """A device of a local user, who is registered unless known."""
        accounts = self.server.accounts
        if not await accounts.exists(accounts.user_id(localpart)):
            await accounts.register(localpart, PASSWORD)
        login = await accounts.log_in(accounts.user_id(localpart), device_id, None)
        return Device(self.http, login.user_id, login.device_id, login.access_token)

    async def send(self, *edus: Any, origin: str = PARTICIPANT, txn_id: str | None = None) -> None:
        """A transaction of EDUs, which must be answered 200."""
        name = txn_id or f"edus{next(_number)}"
        status, answer = await self.arena.send(name, [], origin=origin, edus=list(edus))
        assert (status, answer["failed_pdus"]) == (200, {}), answer

    def received(self, kind: str, origin: str = PARTICIPANT) -> list[Edu]:
        """EDUs of a type that a peer was sent, in order; repeated transactions once."""
        bodies = {r.path: r.json for r in self.arena.peers[origin].requests("send")}
        return [e for body in bodies.values() for e in body.get("edus", []) if e["type"] == kind]


def to_device(
    target: str,
    device_id: str,
    message: Any,
    *,
    sender: str = BOB,
    message_id: str | None = None,
    **changes: Any,
) -> Edu:
    """A to-device message in the draft's form."""
    content = {"target": target, "target_device": device_id, "message_type": "m.x", "message": message}
    if message_id is not None:
        content["message_id"] = message_id
    return {"type": "m.direct_to_device", "sender": sender, "content": content, **changes}
