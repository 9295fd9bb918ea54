"""`lmserver demo`: two servers, two users, one room, told as a story and checked as it goes.

The servers run as a person would run them: own processes, own embedded databases, certificates of
a throw-away authority, TLS between them. Every step that does not turn out as told ends the demo
with an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

START_SECONDS = 300.0
DELIVERY_SECONDS = 60.0
STOP_SECONDS = 30.0


class DemoError(Exception):
    """A step did not turn out as told."""


@dataclass(slots=True)
class DemoServer:
    """One server of the demo, as its operator sees it."""

    name: str
    config: Path
    client_url: str
    log: Path
    process: subprocess.Popen[bytes] | None = None


@dataclass(frozen=True, slots=True)
class User:
    """A logged-in user and the session to act with."""

    user_id: str
    token: str
    url: str
    http: aiohttp.ClientSession

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await _call(self.http, method, self.url + path, body, self.token)


def run(keep: Path | None = None) -> int:
    """Run the demo and return the exit status; `keep` leaves data and logs there."""
    try:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            asyncio.run(_demo(keep))
        else:
            with tempfile.TemporaryDirectory(prefix="lmserver-demo-", ignore_cleanup_errors=True) as folder:
                asyncio.run(_demo(Path(folder)))
    except (DemoError, aiohttp.ClientError, OSError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    return 0


async def _demo(folder: Path) -> None:
    started = time.monotonic()
    hub = _prepare(folder, "hub")
    participant = _prepare(folder, "participant")
    _say(f"Two servers: {hub.name} will be the hub, {participant.name} a participant.")
    async with aiohttp.ClientSession() as http:
        try:
            await _start(http, [hub, participant])
            events = await _story(http, hub, participant)
        finally:
            _stop([hub, participant])
    _verify([hub, participant])
    _say(f"Done: {events} events on both servers, the same in order. {time.monotonic() - started:.0f} s.")


# -- servers ------------------------------------------------------------------------------------


def _prepare(folder: Path, label: str) -> DemoServer:
    federation_port, client_port = _free_port(), _free_port()
    name = f"localhost:{federation_port}"
    config = folder / f"{label}.yaml"
    text = _lmserver(
        "generate-config", "--server-name", name, "--data-dir", str(folder / label),
        "--client-port", str(client_port), "--federation-port", str(federation_port),
        "--dev", str(folder / "ca"),
    )  # fmt: skip
    config.write_text(text, encoding="utf-8")
    return DemoServer(name, config, f"http://127.0.0.1:{client_port}", folder / f"{label}.log")


def _lmserver(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lmserver", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoError(f"lmserver {arguments[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _start(http: aiohttp.ClientSession, servers: list[DemoServer]) -> None:
    for server in servers:
        with server.log.open("wb") as log:
            server.process = subprocess.Popen(
                [sys.executable, "-m", "lmserver", "run", "--config", str(server.config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
    for server in servers:
        await _ready(http, server)
        _say(f"{server.name} is up, with a database and a certificate of its own.")


async def _ready(http: aiohttp.ClientSession, server: DemoServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process is not None and server.process.poll() is not None:
            break
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with http.get(server.client_url + "/_matrix/client/versions") as response:
                if response.status == 200:
                    return
        await asyncio.sleep(0.1)
    raise DemoError(f"{server.name} did not start:\n{server.log.read_text(errors='replace')[-4000:]}")


def _stop(servers: list[DemoServer]) -> None:
    running = [s.process for s in servers if s.process is not None]
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    for process in running:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _verify(servers: list[DemoServer]) -> None:
    for server in servers:
        text = _lmserver("verify", "--config", str(server.config))
        _say(f"lmserver verify on {server.name}: {text.strip().splitlines()[-1]}")


# -- the story ----------------------------------------------------------------------------------


async def _story(http: aiohttp.ClientSession, hub: DemoServer, participant: DemoServer) -> int:
    alice = await _register(http, hub, "alice")
    bob = await _register(http, participant, "bob")
    _say(f"{alice.user_id} and {bob.user_id} have accounts.")
    room_id = (await alice.call("POST", "/createRoom", {"preset": "private_chat", "name": "First light"}))[
        "room_id"
    ]
    room = f"/rooms/{quote(room_id)}"
    _say(f"Alice creates {room_id}; her server is its hub.")
    await alice.call("POST", f"{room}/invite", {"user_id": bob.user_id})
    await _until("the invite", lambda: _invited(bob, room_id))
    await bob.call("POST", f"/join/{quote(room_id)}", {})
    _say("Alice invites Bob over federation, and Bob joins.")
    await _talk(alice, bob, room)
    await _change_power(alice, bob, room)
    await _redact(alice, bob, room)
    return await _compare(alice, bob, room)


async def _register(http: aiohttp.ClientSession, server: DemoServer, name: str) -> User:
    url = server.client_url + "/_matrix/client/v3"
    password = secrets.token_urlsafe(16)
    body = {"username": name, "password": password, "auth": {"type": "m.login.dummy"}}
    answer = await _call(http, "POST", url + "/register", body)
    return User(answer["user_id"], answer["access_token"], url, http)


async def _talk(alice: User, bob: User, room: str) -> None:
    for sender, reader, text in (
        (alice, bob, "Hello Bob, this list has one order."),
        (bob, alice, "Hello Alice, my server signed this and yours gave it its place."),
        (alice, bob, "And neither can change what the other wrote."),
    ):
        event_id = await _message(sender, room, text)
        await _until(f"the message {text!r}", partial(_has, reader, room, event_id))
        _say(f"{_first(sender)} says: {text}")


async def _change_power(alice: User, bob: User, room: str) -> None:
    levels = await alice.call("GET", f"{room}/state/m.room.power_levels/")
    levels["users"][bob.user_id] = 50
    await alice.call("PUT", f"{room}/state/m.room.power_levels/", levels)

    async def arrived() -> bool:
        seen = await bob.call("GET", f"{room}/state/m.room.power_levels/")
        return bool(seen["users"].get(bob.user_id) == 50)

    await _until("the power levels", arrived)
    _say("Alice makes Bob a moderator; Bob's server applies the same rules to the same event.")


async def _redact(alice: User, bob: User, room: str) -> None:
    event_id = await _message(alice, room, "Something Alice regrets.")
    await _until("the message", lambda: _has(bob, room, event_id))
    await alice.call("PUT", f"{room}/redact/{quote(event_id)}/{secrets.token_hex(4)}", {})

    async def redacted() -> bool:
        return not (await bob.call("GET", f"{room}/event/{quote(event_id)}"))["content"]

    await _until("the redaction", redacted)
    _say("Alice redacts a message, and Bob's server shows it empty too.")


async def _compare(alice: User, bob: User, room: str) -> int:
    """Bob's history begins with his join: from there on both must be the same."""
    theirs = await _history(alice, room)
    ours = await _history(bob, room)
    common = theirs[len(theirs) - len(ours) :]
    if not ours or [_core(e) for e in common] != [_core(e) for e in ours]:
        raise DemoError("the two servers tell different histories")
    _say(f"Both servers tell the same history, {len(ours)} events from Bob's join on:")
    for event in ours:
        print(f"      {event['event_id'][:12]}...  {event['sender'].split(':')[0]:<7} {event['type']}")
    return len(ours)


# -- small steps --------------------------------------------------------------------------------


async def _message(user: User, room: str, text: str) -> str:
    path = f"{room}/send/m.room.message/{secrets.token_hex(8)}"
    answer = await user.call("PUT", path, {"msgtype": "m.text", "body": text})
    event_id: str = answer["event_id"]
    return event_id


async def _history(user: User, room: str) -> list[dict[str, Any]]:
    answer = await user.call("GET", f"{room}/messages?dir=b&limit=100")
    events: list[dict[str, Any]] = answer["chunk"]
    return events[::-1]


def _core(event: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(
        event.get(k) for k in ("event_id", "type", "sender", "state_key", "content", "origin_server_ts")
    )


async def _has(user: User, room: str, event_id: str) -> bool:
    return any(event["event_id"] == event_id for event in await _history(user, room))


async def _invited(user: User, room_id: str) -> bool:
    answer = await user.call("GET", "/sync?timeout=0")
    return room_id in answer.get("rooms", {}).get("invite", {})


async def _until(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + DELIVERY_SECONDS
    while time.monotonic() < deadline:
        if await condition():
            return
        await asyncio.sleep(0.05)
    raise DemoError(f"{what} did not arrive within {DELIVERY_SECONDS:.0f} s")


async def _call(
    http: aiohttp.ClientSession, method: str, url: str, body: dict[str, Any] | None, token: str | None = None
) -> dict[str, Any]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with http.request(method, URL(url, encoded=True), json=body, headers=headers) as response:
        answer: dict[str, Any] = await response.json()
        if response.status != 200:
            raise DemoError(f"{method} {url} answered {response.status}: {answer}")
        return answer


def _first(user: User) -> str:
    return user.user_id[1:].split(":")[0].capitalize()


def _say(text: str) -> None:
    print(f"  * {text}", flush=True)
