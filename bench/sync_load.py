"""/sync under load: the first answer, clients that wait, waking them all, and the way of one message.

`python -m bench.sync_load` measures lmserver alone; `bench.run` puts Synapse beside it. Whatever is timed
speaks HTTP by hand, so that what is measured is the server and not its clients.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any, cast
from urllib.parse import quote, urlsplit

import asyncpg
import orjson
import uvloop

from bench import servers
from bench.http import Http
from bench.local_send import Room
from bench.servers import Measured
from lmserver.storage.embedded_postgres import EmbeddedPostgres

ROOMS, MESSAGES = 50, 20
WAITING = 1_000
FILTER = '{"room":{"timeline":{"limit":20}}}'


@dataclass
class SyncLoad:
    """`first_ms` of each initial sync; `kilobytes` of resident memory for each of `waiting` clients;
    `wake_ms` until the last of them has an event, and the server's CPU time for it; `way_ms` from PUT to the
    receiver's answer, `way_client_ms` the CPU time this process had in it, the mean of all."""

    first_ms: list[float] = field(default_factory=list)
    waiting: int = 0
    kilobytes: float = 0.0
    wake_ms: list[float] = field(default_factory=list)
    wake_cpu_ms: list[float] = field(default_factory=list)
    way_ms: list[float] = field(default_factory=list)
    way_client_ms: float = 0.0

    @property
    def way_p50(self) -> float:
        return median(self.way_ms)

    @property
    def way_p99(self) -> float:
        return sorted(self.way_ms)[int(len(self.way_ms) * 0.99)]


class Waiter(asyncio.Protocol):
    """One client on a connection of its own: asks, waits, notes when the whole answer is there."""

    def __init__(self, host: str, token: str) -> None:
        self._head = f" HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._answer: asyncio.Future[tuple[float, dict[str, Any]]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, separator, body = self._data.partition(b"\r\n\r\n")
        if not separator:
            return
        _, sized, rest = head.lower().partition(b"content-length:")
        if sized:
            whole = body if len(body) >= int(rest.partition(b"\r\n")[0]) else None
        else:  # Synapse sends its answers in chunks
            whole = _unchunked(body) if body.endswith(b"\r\n0\r\n\r\n") else None
        if whole is not None and self._answer is not None and not self._answer.done():
            self._data = b""
            self._answer.set_result((time.monotonic(), orjson.loads(whole)))

    def ask(self, query: str) -> asyncio.Future[tuple[float, dict[str, Any]]]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(f"GET /_matrix/client/v3/sync?{query}{self._head}\r\n".encode())
        return self._answer

    def put(self, path: str, body: dict[str, Any]) -> asyncio.Future[tuple[float, dict[str, Any]]]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        data = orjson.dumps(body)
        head = f"PUT /_matrix/client/v3{path}{self._head}Content-Length: {len(data)}\r\n\r\n"
        self._transport.write(head.encode() + data)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return whole


async def connect(server: Measured, token: str) -> Waiter:
    address = urlsplit(server.url)
    _, waiter = await asyncio.get_running_loop().create_connection(
        lambda: Waiter(address.netloc, token), address.hostname, address.port
    )
    return waiter


async def measure(server: Measured, *, clients: int, dsn: str | None = None, times: int = 5) -> SyncLoad:
    """Everything on a fresh server. With `dsn` the waiting clients' accounts are written into lmserver's
    database: to hash a thousand passwords is no part of this."""
    found = SyncLoad(waiting=clients)
    async with Http() as http:
        await _first(server, http, found, times)
        await _way(server, http, found, 40 * times)
        await _waiting(server, http, found, clients, dsn, times)
    return found


async def _first(server: Measured, http: Http, found: SyncLoad, times: int) -> None:
    people = Room(server, http)
    await people.build(2)
    author, reader = people.tokens

    async def make(_: int) -> None:
        created = await people.call(author, "POST", "/createRoom", {"preset": "public_chat"})
        room = quote(created["room_id"])
        await people.call(reader, "POST", f"/join/{room}", {})
        for number in range(MESSAGES):
            await people.call(author, "PUT", f"/rooms/{room}/send/m.room.message/{secrets.token_hex(6)}",
                              {"msgtype": "m.text", "body": f"message {number} of some length"})  # fmt: skip

    for start in range(0, ROOMS, 10):
        await asyncio.gather(*(make(n) for n in range(start, start + 10)))
    user = (await people.call(reader, "GET", "/account/whoami", None))["user_id"]
    for _ in range(times + 1):
        # A device that has just logged in: nobody has asked this, so no server has the answer.
        client = await connect(server, await _log_in(people, user))
        began = time.monotonic()
        ended, answer = await client.ask(f"timeout=0&filter={quote(FILTER)}")
        sections = [s for r, s in answer["rooms"]["join"].items() if r != _plain(people.room)]
        if [len(s["timeline"]["events"]) for s in sections] != [MESSAGES] * ROOMS:
            raise RuntimeError("the first answer is not whole")
        found.first_ms.append((ended - began) * 1000)
        client.close()
    del found.first_ms[0]  # the first of all warms the server up


async def _log_in(people: Room, user_id: str) -> str:
    login = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user_id},
        "password": "a long password",
    }
    return str((await people.call("", "POST", "/login", login))["access_token"])


async def _way(server: Measured, http: Http, found: SyncLoad, messages: int) -> None:
    people = Room(server, http)
    await people.build(2)
    sender, receiver = [await connect(server, token) for token in people.tokens]
    _, answer = await receiver.ask("timeout=0")
    used = 0.0
    for number in range(messages + 5):
        poll = receiver.ask(f"timeout=30000&since={answer['next_batch']}")
        await asyncio.sleep(0.02)
        path = f"/rooms/{people.room}/send/m.room.message/{secrets.token_hex(6)}"
        began, cpu = time.monotonic(), time.process_time()
        put = sender.put(path, {"msgtype": "m.text", "body": f"{number}"})
        ended, answer = await poll
        if not _events(answer, people.room):
            raise RuntimeError("woken by nothing")
        if number >= 5:
            found.way_ms.append((ended - began) * 1000)
            used += time.process_time() - cpu
        await put
    found.way_client_ms = used / messages * 1000
    sender.close()
    receiver.close()


async def _waiting(
    server: Measured, http: Http, found: SyncLoad, clients: int, dsn: str | None, times: int
) -> None:
    people = Room(server, http)
    await people.build(1 if dsn else clients)
    if dsn is not None:
        people.tokens += await _write_accounts(server, dsn, clients - 1)
        for token in people.tokens[1:]:
            await people.call(token, "POST", f"/join/{people.room}", {})
    before = server.rss_mb()
    waiters = [await connect(server, token) for token in people.tokens]
    lazy = quote('{"room":{"timeline":{"limit":1},"state":{"lazy_load_members":true}}}')
    tokens = [(await waiter.ask(f"timeout=0&filter={lazy}"))[1]["next_batch"] for waiter in waiters]
    for number in range(times):
        polls = [
            w.ask(f"timeout=60000&filter={lazy}&since={t}") for w, t in zip(waiters, tokens, strict=True)
        ]
        await asyncio.sleep(2.0 + clients / 500)
        if number == 0:
            found.kilobytes = (server.rss_mb() - before) * 1024 / clients
        path = f"/rooms/{people.room}/send/m.room.message/{secrets.token_hex(6)}"
        began, cpu = time.monotonic(), server.cpu_seconds()
        await people.call(people.tokens[0], "PUT", path, {"msgtype": "m.text", "body": "news"})
        answers = await asyncio.gather(*polls)
        if not all(_events(answer, people.room) for _, answer in answers):
            raise RuntimeError("somebody was woken by nothing")
        found.wake_ms.append((max(at for at, _ in answers) - began) * 1000)
        found.wake_cpu_ms.append((server.cpu_seconds() - cpu) * 1000)
        tokens = [answer["next_batch"] for _, answer in answers]
    for waiter in waiters:
        waiter.close()


async def _write_accounts(server: Measured, dsn: str, count: int) -> list[str]:
    tokens = [secrets.token_hex(16) for _ in range(count)]
    users = [f"@w{secrets.token_hex(6)}:{server.name}" for _ in range(count)]
    hashes = [sha256(token.encode()).digest() for token in tokens]
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "INSERT INTO accounts (user_id, password_hash, created_ts) SELECT u, '', 0 FROM unnest($1::text[]) AS u",
        users,
    )
    await connection.execute(
        "INSERT INTO devices (user_id, device_id) SELECT u, 'D' FROM unnest($1::text[]) AS u", users
    )
    await connection.execute(
        "INSERT INTO access_tokens (token_hash, user_id, device_id, created_ts)"
        " SELECT h, u, 'D', 0 FROM unnest($1::bytea[], $2::text[]) AS n (h, u)",
        hashes,
        users,
    )
    await connection.close()
    return tokens


def _events(answer: dict[str, Any], room: str) -> list[Any]:
    section = answer.get("rooms", {}).get("join", {}).get(_plain(room), {})
    return list(section.get("timeline", {}).get("events", []))


def _plain(room: str) -> str:
    return room.replace("%21", "!").replace("%3A", ":")


async def _alone(folder: Path, clients: int) -> SyncLoad:
    postgres = EmbeddedPostgres(folder / "pg", print)
    dsn = await postgres.start()
    try:
        await servers.fresh_database(dsn, "bench_sync")
        dsn = dsn.replace("/lmserver?", "/bench_sync?")
        server = servers.lmserver(folder, dsn, [])
        await server.start()
        try:
            return await measure(server, clients=clients, dsn=dsn)
        finally:
            server.stop()
    finally:
        await postgres.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sync_load", description=__doc__)
    parser.add_argument("--clients", type=int, default=WAITING)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lmbench-", ignore_cleanup_errors=True) as folder:
        found = uvloop.run(_alone(Path(folder), options.clients))
    print(f"first sync of {ROOMS} rooms, ms: {[round(ms, 1) for ms in found.first_ms]}")
    print(f"PUT to /sync, ms: p50 {found.way_p50:.1f}, p99 {found.way_p99:.1f}")
    print(f"of it CPU of the clients, ms: {found.way_client_ms:.2f}")
    print(f"{found.waiting} waiting clients: {found.kilobytes:.1f} KB each")
    print(f"until the last of them is woken, ms: {[round(ms) for ms in found.wake_ms]}")
    print(f"of it CPU of the server, ms: {[round(ms) for ms in found.wake_cpu_ms]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
