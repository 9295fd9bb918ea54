"""synadm, unmodified from PyPI: what an operator does, against the admin API."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.kit.processes import ServerProcess, lmserver
from tests.kit.users import User, register
from tests.kit.waiting import HANGS, eventually

PROGRAM = Path(sys.executable).parent / "synadm"
PASSWORD = "a long password"


class Synadm:
    """The program, configured for one administrator of one server."""

    def __init__(self, config: Path, base_url: str, server_name: str) -> None:
        self._config, self._base_url, self._server_name = config, base_url, server_name

    def use(self, user: str, token: str) -> None:
        settings = {
            "user": user, "token": token, "base_url": self._base_url, "protocol": "http", "timeout": 120,
            "admin_path": "/_synapse/admin", "matrix_path": "/_matrix", "homeserver": self._server_name,
            "server_discovery": "well-known", "ssl_verify": True, "format": "minified",
        }  # fmt: skip
        self._config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    async def __call__(self, *command: str) -> Any:
        """The answer of a command: what it prints last, JSON or a sentence. It may be no error of the server."""
        done = await asyncio.to_thread(
            subprocess.run,
            [str(PROGRAM), "--batch", "-o", "minified", "-c", str(self._config), *command],
            capture_output=True, text=True, check=False, timeout=4 * HANGS,
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout, (command, done.stdout, done.stderr)
        answer = done.stdout.splitlines()[-1]
        assert "errcode" not in answer, (command, done.stdout)
        return json.loads(answer) if answer.startswith("{") else answer


@dataclass
class Desk:
    """An operator's: the program, and a server to look at from outside."""

    synadm: Synadm
    http: aiohttp.ClientSession
    url: str
    server_name: str

    async def log_in(self, name: str, password: str) -> tuple[int, Any]:
        identifier = {"type": "m.id.user", "user": name}
        body = {"type": "m.login.password", "identifier": identifier, "password": password}
        async with self.http.post(f"{self.url}/_matrix/client/v3/login", json=body) as response:
            return response.status, await response.json()

    async def status(self, path: str, token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        async with self.http.get(self.url + path, headers=headers) as response:
            return response.status


@pytest.fixture
async def desk(servers: tuple[ServerProcess, ServerProcess], tmp_path: Path) -> AsyncIterator[Desk]:
    if not PROGRAM.exists():
        pytest.skip("synadm is not installed")
    hub, _ = servers
    name = f"operator-{secrets.token_hex(4)}"
    made = lmserver(
        "register-user", "--config", str(hub.config), "--user", name, "--admin", "--password-stdin",
        stdin=PASSWORD + "\n",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    admin_port = yaml.safe_load(hub.config.read_text(encoding="utf-8"))["admin"]["port"]
    synadm = Synadm(tmp_path / "synadm.yaml", f"http://127.0.0.1:{admin_port}", hub.name)
    async with aiohttp.ClientSession() as http:
        found = Desk(synadm, http, hub.client_url, hub.name)
        _, login = await found.log_in(name, PASSWORD)
        synadm.use(name, login["access_token"])
        yield found


@pytest.fixture
async def alice(desk: Desk, servers: tuple[ServerProcess, ServerProcess]) -> User:
    return await register(desk.http, servers[0], f"synadm-alice-{secrets.token_hex(4)}")


async def test_users_are_made_found_given_new_passwords_and_ended(desk: Desk, alice: User) -> None:
    synadm = desk.synadm
    assert (await synadm("version"))["server_version"]
    carol = f"@synadm-carol:{desk.server_name}"
    made = await synadm("user", "modify", "-P", "her first password", "-n", "Carol", carol)
    assert (made["name"], made["displayname"], made["deactivated"]) == (carol, "Carol", False)
    found = await synadm("user", "list", "--name", "synadm-car")
    assert ([user["name"] for user in found["users"]], found["total"]) == ([carol], 1)
    status, hers = await desk.log_in("synadm-carol", "her first password")
    assert status == 200
    await synadm("user", "password", "synadm-carol", "-p", "her second password")
    assert (await desk.log_in("synadm-carol", "her first password"))[0] == 403
    assert (await desk.log_in("synadm-carol", "her second password"))[0] == 200
    assert await desk.status("/_matrix/client/v3/account/whoami", hers["access_token"]) == 401
    assert (await synadm("user", "whois", alice.user_id))["user_id"] == alice.user_id
    await synadm("user", "deactivate", "synadm-carol")
    assert (await synadm("user", "details", carol))["deactivated"] is True
    assert (await desk.log_in("synadm-carol", "her second password"))[0] == 403


async def test_rooms_are_listed_looked_into_blocked_and_removed(desk: Desk, alice: User) -> None:
    synadm = desk.synadm
    room_id = (await alice.ok("POST", "/createRoom", {"name": "Synadm's room"}))["room_id"]
    listed = await synadm("room", "list", "--name", "Synadm's")
    assert [room["room_id"] for room in listed["rooms"]] == [room_id]
    details = await synadm("room", "details", room_id)
    assert (details["name"], details["joined_members"]) == ("Synadm's room", 1)
    assert (await synadm("room", "members", room_id))["members"] == [alice.user_id]
    state = (await synadm("room", "state", room_id))["state"]
    assert "m.room.create" in {event["type"] for event in state}
    assert (await synadm("user", "membership", "--ids", alice.user_id))["joined_rooms"] == [room_id]
    assert (await synadm("room", "block", "--block", room_id))["block"] is True
    assert (await synadm("room", "block-status", room_id))["block"] is True
    await synadm("room", "delete", room_id)

    async def gone() -> bool:
        return bool((await alice.ok("GET", "/joined_rooms"))["joined_rooms"] == [])

    await eventually(gone)


async def test_media_are_found_kept_from_everybody_given_back_and_deleted(desk: Desk, alice: User) -> None:
    synadm = desk.synadm
    headers = {"Authorization": f"Bearer {alice.token}", "Content-Type": "text/plain"}
    upload = f"{desk.url}/_matrix/media/v3/upload?filename=note.txt"
    async with desk.http.post(upload, data=b"a note", headers=headers) as response:
        media_id = (await response.json())["content_uri"].rsplit("/", 1)[1]
    media = await synadm("media", "list", "-u", alice.user_id)
    assert [(file["media_id"], file["media_length"]) for file in media["media"]] == [(media_id, 6)]
    download = f"/_matrix/client/v1/media/download/{desk.server_name}/{media_id}"
    await synadm("media", "quarantine", "-s", desk.server_name, "-i", media_id)
    assert await desk.status(download, alice.token) == 404
    await synadm("media", "unquarantine", "-s", desk.server_name, "-i", media_id)
    assert await desk.status(download, alice.token) == 200
    assert (await synadm("media", "delete", "-i", media_id))["deleted_media"] == [media_id]
    assert await desk.status(download, alice.token) == 404


async def test_registration_tokens_are_made_changed_and_taken_back(desk: Desk) -> None:
    synadm = desk.synadm
    made = await synadm("regtok", "new", "--uses-allowed", "2")
    token = made["token"]
    assert (made["uses_allowed"], made["completed"]) == (2, 0)
    assert (await synadm("regtok", "update", token, "--uses-allowed", "3"))["uses_allowed"] == 3
    assert (await synadm("regtok", "details", token))["uses_allowed"] == 3
    listed = (await synadm("regtok", "list"))["registration_tokens"]
    assert token in {one["token"] for one in listed}
    await synadm("regtok", "delete", token)
    left = (await synadm("regtok", "list"))["registration_tokens"]
    assert token not in {one["token"] for one in left}
