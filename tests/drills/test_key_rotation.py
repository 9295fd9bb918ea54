"""D18 with real processes: the signing keys of hub and participant are replaced under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest
import yaml
from yarl import URL

from lmserver import own_keys
from lmserver.protocol import transport
from lmserver.protocol.signatures import SigningKey
from lmserver.storage.embedded_postgres import EmbeddedPostgres
from tests.evilpeer.peer import UNSTABLE
from tests.kit.processes import ServerProcess, configure, free_port, lmserver
from tests.kit.users import User, register
from tests.kit.waiting import HANGS, eventually

LONG_AGO = "UPDATE key_servers SET fetched_ts = fetched_ts - 600000 RETURNING true"


@dataclass
class Pair:
    """A hub and a participant that speak plain HTTP, a user of each in one room; a newcomer not yet."""

    hub: ServerProcess
    participant: ServerProcess
    newcomer: ServerProcess
    http: aiohttp.ClientSession
    room: str = ""
    users: list[User] = field(default_factory=list)

    async def begin(self) -> None:
        await asyncio.gather(self.hub.start(), self.participant.start())
        alice = await register(self.http, self.hub, "alice")
        bob = await register(self.http, self.participant, "bob")
        room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
        await bob.ok("POST", f"/join/{quote(room_id)}", {})
        self.room, self.users = f"/rooms/{quote(room_id)}", [alice, bob]

    async def talk(self, user: User, sent: list[str], enough: asyncio.Event) -> None:
        """Send until it is enough, and a few more, as fast as the server lets us."""
        rest = 5
        while rest:
            body = {"msgtype": "m.text", "body": f"{user.user_id} {len(sent)}"}
            status, answer = await user.call("PUT", f"{self.room}/send/m.room.message/{len(sent)}", body)
            if status in (429, 504):
                await asyncio.sleep(answer.get("retry_after_ms", 0) / 1000)
                continue
            assert status == 200, answer
            rest -= enough.is_set()
            sent.append(answer["event_id"])

    async def let_time_pass(self) -> None:
        """Each knows the other's keys from a while ago: who has just asked does not ask again."""
        for server in (self.hub, self.participant):
            dsn = self.dsn(server)
            server.kill()
            await _row(dsn, LONG_AGO)
            await server.start()

    @staticmethod
    def dsn(server: ServerProcess) -> str:
        """Of the embedded database of a running server; a kill leaves it running."""
        dsn = EmbeddedPostgres(_configured(server, "data_dir"), lambda _: None).running_dsn()
        assert dsn is not None
        return dsn

    async def document(self, server: ServerProcess) -> dict[str, Any]:
        async with self.http.get(f"http://{server.name}/_matrix/key/v2/server") as response:
            document: dict[str, Any] = await response.json()
            return document

    async def rotate(self, server: ServerProcess, *options: str) -> SigningKey:
        """The key it had, once the server publishes another."""
        before = _key(server)
        done = lmserver("rotate-key", "--config", str(server.config), *options)
        assert done.returncode == 0, done.stderr

        async def published() -> bool:
            return before.key_id in (await self.document(server))["old_verify_keys"]

        await eventually(published)
        return before

    async def ask_as(self, key: SigningKey, of: ServerProcess) -> int:
        """The status of a request that this key has signed."""
        path = f"{UNSTABLE}/event/{quote('$' + 'a' * 43)}"
        headers = {"Authorization": transport.authorization_header("GET", path, of.name, None, key)}
        url = URL(f"http://{of.name}{path}", encoded=True)
        async with self.http.get(url, headers=headers) as response:
            return response.status

    async def join_late(self) -> None:
        """The newcomer has to verify with keys that are no longer in use."""
        await self.newcomer.start()
        carol = await register(self.http, self.newcomer, "carol")
        await carol.ok("POST", f"/join/{self.room.rpartition('/')[2]}", {})
        said = await carol.ok("PUT", f"{self.room}/send/m.room.message/1", {"body": "hello"})

        async def everywhere() -> bool:
            return all([said["event_id"] in await user.history(self.room) for user in self.users])

        await eventually(everywhere)

    def verified(self, *servers: ServerProcess) -> list[str]:
        """What `lmserver verify` finds wrong."""
        commands = [lmserver("verify", "--config", str(server.config)) for server in servers]
        return [done.stdout + done.stderr for done in commands if done.returncode != 0]


def _key(server: ServerProcess) -> SigningKey:
    return own_keys.load(_configured(server, "signing_key_path"), server.name).signing


def _configured(server: ServerProcess, key: str) -> Path:
    return Path(yaml.safe_load(server.config.read_text(encoding="utf-8"))[key])


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    names = [f"localhost:{free_port()}" for _ in range(3)]
    servers = []
    for name in names:
        server = configure(tmp_path, name.rpartition(":")[2], federation={
            "port": int(name.rpartition(":")[2]), "tls_certificate": None, "tls_private_key": None,
            "ca_file": None, "plain_http_servers": [n for n in names if n != name]})  # fmt: skip
        raw = yaml.safe_load(server.config.read_text(encoding="utf-8"))
        server.config.write_text(yaml.safe_dump({**raw, "server_name": name}), encoding="utf-8")
        server.name = name
        servers.append(server)
    async with aiohttp.ClientSession() as http:
        made = Pair(*servers, http)
        try:
            await made.begin()
            yield made
        finally:
            for server in servers:
                server.stop()


@pytest.mark.parametrize("rotates", [True, False], ids=["d18", "control"])
async def test_d18_keys_are_rotated_under_load(pair: Pair, rotates: bool) -> None:
    """Every event arrives and verifies, requests with an old key do not. The control rotates nothing."""
    await pair.let_time_pass()
    said: tuple[list[str], list[str]] = ([], [])
    enough = asyncio.Event()
    talking = asyncio.gather(*(pair.talk(u, s, enough) for u, s in zip(pair.users, said, strict=True)))
    await eventually(lambda: _true(min(map(len, said)) >= 5))
    olds = []
    for server in (pair.hub, pair.participant):
        if rotates:
            olds.append(await pair.rotate(server))
        else:
            olds.append(_key(server))
    enough.set()
    await talking

    async def everywhere() -> bool:
        histories = [await user.history(pair.room) for user in pair.users]
        return all({*said[0], *said[1]} <= set(history) for history in histories)

    await eventually(everywhere)
    statuses = [
        await pair.ask_as(old, of) for old, of in zip(olds, (pair.participant, pair.hub), strict=True)
    ]
    assert statuses == ([401, 401] if rotates else [404, 404])
    if rotates:
        await pair.join_late()
        assert pair.verified(pair.hub, pair.participant, pair.newcomer) == []


async def _true(value: bool) -> bool:
    return value


@pytest.mark.parametrize("signed_again", [True, False], ids=["d18", "control"])
async def test_d18_an_event_that_waits_for_its_hub_outlives_its_key(pair: Pair, signed_again: bool) -> None:
    """The hub is away while the participant's key is replaced. The control sends what was signed before."""
    _, bob = pair.users
    ours, theirs = pair.dsn(pair.participant), pair.dsn(pair.hub)
    pair.hub.kill()
    send = f"{pair.room}/send/m.room.message/waits", {"msgtype": "m.text", "body": "waits"}
    sending = asyncio.create_task(bob.call("PUT", *send))
    await eventually(lambda: _row(ours, "SELECT true FROM outbound_transactions"))
    lpdu, body = await _row(ours, "SELECT lpdu, body FROM outbound_lpdus, outbound_transactions")
    # As if a minute ago: what is signed with the old key from now on counts for nothing new.
    path = _configured(pair.participant, "signing_key_path")
    own_keys.rotate(path, time.time_ns() // 1_000_000 - 60_000, leaked=False)
    changed = "SELECT true FROM outbound_transactions WHERE body <> $1"
    await eventually(lambda: _row(ours, changed, body))
    for _ in range(0 if signed_again else 2):
        # It is signed once more a moment later, for what was being stored meanwhile.
        await eventually(lambda: _row(ours, changed, body))
        await _row(ours, "UPDATE outbound_lpdus SET lpdu = $1 RETURNING true", lpdu)
        await _row(ours, "UPDATE outbound_transactions SET body = $1 RETURNING true", body)
    await _row(theirs, LONG_AGO)
    await pair.hub.start()
    await sending
    await eventually(
        lambda: _row(ours, "SELECT true WHERE NOT EXISTS (SELECT FROM outbound_transactions)"), 60
    )
    status, _ = await bob.call("PUT", *send)
    assert (status == 200) is signed_again


async def _row(dsn: str, query: str, *values: object) -> Any:
    """The first row of a query to a server's own database."""
    db = await asyncpg.connect(dsn)
    try:
        return await db.fetchrow(query, *values)
    finally:
        await db.close()


@pytest.mark.parametrize("options", [["--revoke"], []], ids=["d18", "control"])
async def test_d18_a_leaked_key_is_refused_everywhere_within_a_minute(pair: Pair, options: list[str]) -> None:
    """Nobody says anything: the others hear of it all the same. The control is a rotation without a leak."""
    await pair.let_time_pass()
    assert await pair.ask_as(_key(pair.participant), pair.hub) == 404
    leaked = await pair.rotate(pair.participant, *options)

    async def refused() -> bool:
        return await pair.ask_as(leaked, pair.hub) == 401

    if options:
        await eventually(refused, 4 * HANGS)
    else:
        with pytest.raises(TimeoutError):
            await eventually(refused, 3)
