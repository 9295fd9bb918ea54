"""A phone: a user of the assembled client API with connections of sliding sync."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import quote

from lmserver.protocol.canonical_json import JsonObject
from lmserver.storage import room_reads
from tests.kit.client_api import PASSWORD, V3, Api

PATH = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
PROPOSED = "/_matrix/client/v4/sync"
_txn = count(1)


def window(*ranges: list[int], limit: int = 10, state: Any = (), **filters: Any) -> JsonObject:
    """A list; all rooms without ranges."""
    made: JsonObject = {"timeline_limit": limit, "required_state": [list(pair) for pair in state]}
    return made | ({"ranges": list(ranges)} if ranges else {}) | ({"filters": filters} if filters else {})


def room(limit: int = 10, state: Any = ()) -> JsonObject:
    """A room subscription."""
    return {"timeline_limit": limit, "required_state": [list(pair) for pair in state]}


def bodies(room_result: JsonObject) -> list[str]:
    """Message texts of a room's timeline."""
    return [e["content"]["body"] for e in room_result["timeline"] if "body" in e["content"]]


def entries(room_result: JsonObject) -> set[tuple[str, str]]:
    """(type, state key) of a room's required state."""
    return {(e["type"], e["state_key"]) for e in room_result["required_state"]}


@dataclass
class Phone:
    """One device of a user."""

    api: Api
    id: str
    token: str
    device: str

    @classmethod
    async def register(cls, api: Api, name: str) -> Phone:
        made = await api.register(name)
        return cls(api, made["user_id"], made["access_token"], made["device_id"])

    async def log_in(self) -> Phone:
        """Another device of the same user."""
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.id},
            "password": PASSWORD,
        }
        status, made = await self.api.call("POST", f"{V3}/login", body)
        assert status == 200, made
        return Phone(self.api, self.id, made["access_token"], made["device_id"])

    async def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = await self.api.call(method, V3 + path, body, self.token)
        assert status == 200, (method, path, answer)
        return answer

    # -- rooms ----------------------------------------------------------------------------------

    async def create(self, **body: Any) -> str:
        made = await self.ok("POST", "/createRoom", {"preset": "public_chat", **body})
        room_id: str = made["room_id"]
        return room_id

    async def say(self, room_id: str, text: str) -> str:
        body = {"msgtype": "m.text", "body": text}
        sent = await self.ok("PUT", f"/rooms/{quote(room_id)}/send/m.room.message/t{next(_txn)}", body)
        event_id: str = sent["event_id"]
        return event_id

    async def set(self, room_id: str, type_: str, content: JsonObject, key: str = "") -> str:
        path = f"/rooms/{quote(room_id)}/state/{type_}/{quote(key, safe='')}"
        event_id: str = (await self.ok("PUT", path, content))["event_id"]
        return event_id

    async def change(self, room_id: str, what: str, who: Phone | None = None, **body: Any) -> None:
        """join, leave, invite, kick, ..."""
        target = {} if who is None else {"user_id": who.id}
        await self.ok("POST", f"/rooms/{quote(room_id)}/{what}", {**target, **body})

    async def put_data(self, type_: str, content: JsonObject, room_id: str = "") -> None:
        of = f"/rooms/{quote(room_id)}" if room_id else ""
        await self.ok("PUT", f"/user/{quote(self.id)}{of}/account_data/{type_}", content)

    async def read(self, room_id: str, event_id: str, kind: str = "m.read") -> None:
        await self.ok("POST", f"/rooms/{quote(room_id)}/receipt/{kind}/{quote(event_id)}", {})

    async def type(self, room_id: str, typing: bool = True) -> None:
        body = {"typing": typing, "timeout": 20_000}
        await self.ok("PUT", f"/rooms/{quote(room_id)}/typing/{quote(self.id)}", body)

    async def send_to_device(self, target: Phone, content: JsonObject) -> None:
        body = {"messages": {target.id: {target.device: content}}}
        await self.ok("PUT", f"/sendToDevice/m.test/d{next(_txn)}", body)

    # -- sliding sync ---------------------------------------------------------------------------

    async def ask(
        self, body: JsonObject, pos: str | None = None, timeout: int | None = None, path: str = PATH
    ) -> tuple[int, Any]:
        query = [f"pos={pos}"] if pos is not None else []
        query += [f"timeout={timeout}"] if timeout is not None else []
        return await self.api.call("POST", path + ("?" + "&".join(query) if query else ""), body, self.token)

    async def slide(
        self,
        pos: str | None = None,
        *,
        conn: str = "main",
        timeout: int = 0,
        settle: bool = True,
        **body: Any,
    ) -> JsonObject:
        """An answer; what was done before is in it unless `settle` is off."""
        if settle:
            await self.settle()
        status, answer = await self.ask({"conn_id": conn, **body}, pos, timeout)
        assert status == 200, answer
        return dict(answer)

    async def settle(self) -> None:
        """Until all that was committed can be read: another test's transaction may be open."""
        db = self.api.server.db
        _, upcoming = await room_reads.stream_positions(db)
        while (await room_reads.stream_positions(db))[0] < upcoming:
            await asyncio.sleep(0.002)


@dataclass
class Follower:
    """A client that knows of rooms only what a connection told it."""

    phone: Phone
    request: JsonObject
    conn: str = "follower"
    pos: str | None = None
    rooms: dict[str, JsonObject] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    async def follow(self) -> JsonObject:
        """One answer, taken in."""
        answer = await self.phone.slide(self.pos, conn=self.conn, **self.request)
        self.pos = answer["pos"]
        self.counts = {name: found["count"] for name, found in answer["lists"].items()}
        for room_id, said in answer["rooms"].items():
            self._take(room_id, said)
        return answer

    def _take(self, room_id: str, said: JsonObject) -> None:
        if said["initial"]:
            self.rooms[room_id] = {"state": {}, "timeline": []}
        known = self.rooms[room_id]
        for key in ("name", "avatar", "heroes", "joined_count", "invited_count", "membership", "is_dm"):
            if key in said:
                known[key] = said[key]
        for event in said.get("required_state", []):
            known["state"][event["type"], event["state_key"]] = event["event_id"]
        if said.get("limited") and not said["initial"]:
            known["timeline"] = []
        ids = [event["event_id"] for event in said.get("timeline", [])]
        known["timeline"] = [e for e in known["timeline"] if e not in ids] + ids
