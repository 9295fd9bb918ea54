"""Local sends: clients in one room, each waiting for its answer before the next message."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from statistics import median
from typing import Any, cast
from urllib.parse import quote

import orjson

from bench.http import Http
from bench.servers import Measured


@dataclass(frozen=True)
class Sends:
    """Answered sends a second, latency in ms, server CPU ms an event, and sends without an event."""

    per_second: float
    p50: float
    p99: float
    cpu_ms: float
    lost: int


class Room:
    """A public room of `size` local users."""

    def __init__(self, server: Measured, http: Http) -> None:
        self.server, self.http = server, http
        self.tokens: list[str] = []
        self.room = ""

    async def call(self, token: str, method: str, path: str, body: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        content = b"" if body is None else orjson.dumps(body)
        status, data = await self.http.request(
            self.server.url, method, "/_matrix/client/v3" + path, content, headers
        )
        if status != 200:
            raise RuntimeError(f"{path}: {status} {data[:500]!r}")
        return cast("dict[str, Any]", orjson.loads(data))

    async def build(self, size: int) -> None:
        tag = secrets.token_hex(3)
        for number in range(size):
            body = {
                "username": f"u{tag}{number}",
                "password": "a long password",
                "auth": {"type": "m.login.dummy"},
            }
            self.tokens.append((await self.call("", "POST", "/register", body))["access_token"])
        created = await self.call(self.tokens[0], "POST", "/createRoom", {"preset": "public_chat"})
        self.room = quote(created["room_id"])
        for token in self.tokens[1:]:
            await self.call(token, "POST", f"/join/{self.room}", {})

    async def send(self, clients: int, seconds: float) -> Sends:
        """Send for a while, then count what the room has."""
        deadline = time.monotonic() + seconds
        latencies: list[float] = []
        answered: set[str] = set()

        async def client(token: str) -> None:
            number = 0
            while (now := time.monotonic()) < deadline:
                number += 1
                path = f"/rooms/{self.room}/send/m.room.message/{secrets.token_hex(6)}"
                body = {"msgtype": "m.text", "body": f"message {number} of some length, as people write them"}
                answered.add((await self.call(token, "PUT", path, body))["event_id"])
                latencies.append((time.monotonic() - now) * 1000)

        cpu, started = self.server.cpu_seconds(), time.monotonic()
        await asyncio.gather(*(client(token) for token in self.tokens[:clients]))
        elapsed, used = time.monotonic() - started, self.server.cpu_seconds() - cpu
        latencies.sort()
        missing = answered - await self._stored(len(answered))
        return Sends(
            len(latencies) / elapsed,
            median(latencies),
            latencies[int(len(latencies) * 0.99)],
            used / len(latencies) * 1000,
            len(missing),
        )

    async def _stored(self, wanted: int) -> set[str]:
        found: set[str] = set()
        token = ""
        while len(found) < wanted:
            page = await self.call(
                self.tokens[0], "GET", f"/rooms/{self.room}/messages?dir=b&limit=1000{token}", None
            )
            found |= {event["event_id"] for event in page["chunk"]}
            if "end" not in page or not page["chunk"]:
                break
            token = "&from=" + quote(page["end"])
        return found
