"""A user of the server under test, through Matrix's client-server API, so that the suite runs unattended."""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from lmserver.conformance.exchange import Answer, Trace
from lmserver.conformance.model import Failed

TIMEOUT = 40.0


class ClientApiError(Exception):
    """The client API cannot be used as asked; the text says why."""


@dataclass(frozen=True)
class Login:
    """How to become a user: a token, a name with its password, or a fresh account."""

    url: str
    token: str | None = None
    user: str | None = None
    password: str | None = None
    register: bool = False


class ClientApi:
    """One logged-in user."""

    def __init__(self, url: str, trace: Trace) -> None:
        self.user_id = ""
        self.device_id = ""
        self._url = url.rstrip("/")
        self._token: str | None = None
        self._trace = trace
        self._txn = count(1)
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT))

    async def log_in(self, login: Login) -> None:
        """Raises ClientApiError."""
        body: dict[str, Any]
        if login.token is not None:
            self._token = login.token
            answer = await self._call_or_say("GET", "/account/whoami", None)
        elif login.register:
            body = {"username": f"conformance-{secrets.token_hex(4)}", "password": secrets.token_urlsafe(16),
                    "auth": {"type": "m.login.dummy"}}  # fmt: skip
            answer = await self._call_or_say("POST", "/register", body)
        else:
            body = {"type": "m.login.password", "password": login.password,
                    "identifier": {"type": "m.id.user", "user": login.user}}  # fmt: skip
            answer = await self._call_or_say("POST", "/login", body)
        self._token = answer.get("access_token", self._token)
        self.user_id = answer["user_id"]
        self.device_id = answer.get("device_id", "")

    async def _call_or_say(self, method: str, path: str, body: Any) -> dict[str, Any]:
        try:
            answer = await self.call(method, path, body)
        except Failed as error:
            raise ClientApiError(str(error)) from error
        if answer.status != 200 or "user_id" not in answer.fields:
            raise ClientApiError(f"{method} {path} answers {answer}")
        return answer.fields

    async def close(self) -> None:
        await self._http.close()

    async def call(self, method: str, path: str, body: Any = None) -> Answer:
        """A request under /_matrix/client/v3; `path` is quoted already."""
        while True:
            answer = await self._once(method, path, body)
            if answer.status != 429:
                return answer
            after = answer.fields.get("retry_after_ms")
            await asyncio.sleep(min(after / 1000 if isinstance(after, int) else 1.0, TIMEOUT))

    async def _once(self, method: str, path: str, body: Any) -> Answer:
        url = URL(f"{self._url}/_matrix/client/v3{path}", encoded=True)
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        data = None if body is None else json.dumps(body).encode()
        try:
            async with self._http.request(method, url, data=data, headers=headers) as response:
                answer = Answer(response.status, response.content_type, await response.read())
        except (aiohttp.ClientError, OSError) as error:
            raise Failed(f"client API, {method} {path}: {type(error).__name__}: {error}") from error
        self._trace.add("client API", f"{method} {path}", data, answer.status, answer.body)
        return answer

    async def ok(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The answer's object; fails unless it is 200."""
        answer = await self.call(method, path, body)
        if answer.status != 200:
            raise Failed(f"client API, {method} {path} answers {answer}")
        return answer.fields

    # -- what checks do with it ---------------------------------------------------------------------

    async def create_room(self, **body: Any) -> str:
        return str((await self.ok("POST", "/createRoom", body))["room_id"])

    async def send(self, room_id: str, type_: str, content: Any) -> str:
        """A message event; its ID."""
        return str((await self.ok("PUT", self.send_path(room_id, type_), content))["event_id"])

    def send_path(self, room_id: str, type_: str) -> str:
        """Where to PUT a new message event."""
        return f"{self.room(room_id)}/send/{quote(type_, safe='')}/c{secrets.token_hex(4)}{next(self._txn)}"

    async def put_state(self, room_id: str, type_: str, content: Any, state_key: str = "") -> str:
        path = f"{self.room(room_id)}/state/{quote(type_, safe='')}/{quote(state_key, safe='')}"
        return str((await self.ok("PUT", path, content))["event_id"])

    async def change(self, room_id: str, what: str, user_id: str) -> None:
        """invite, kick, ban or unban a user."""
        await self.ok("POST", f"{self.room(room_id)}/{what}", {"user_id": user_id})

    async def event(self, room_id: str, event_id: str) -> dict[str, Any] | None:
        """An event as the user sees it; None when the server does not show it."""
        answer = await self.call("GET", f"{self.room(room_id)}/event/{quote(event_id, safe='')}")
        return answer.fields if answer.status == 200 else None

    async def membership(self, room_id: str, user_id: str) -> str | None:
        path = f"{self.room(room_id)}/state/m.room.member/{quote(user_id, safe='')}"
        answer = await self.call("GET", path)
        return answer.fields.get("membership") if answer.status == 200 else None

    @staticmethod
    def room(room_id: str) -> str:
        return f"/rooms/{quote(room_id, safe='')}"
