"""D4: PostgreSQL is restarted under a server, politely and not. D5: the connections to it go dead, or silent
without a word. Writers are told 503, nothing acknowledged is lost, and everything goes on by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from aiohttp.test_utils import TestClient, TestServer

from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.outcomes import Accepted
from lmserver.storage import database, migrations, room_log
from lmserver.storage.database import Database, DatabaseUnavailable
from lmserver.storage.embedded_postgres import EmbeddedPostgres
from tests.drills.long import rounds
from tests.evilpeer.network import Network
from tests.kit.engines import engine_kit
from tests.kit.faultproxy import FaultProxy
from tests.kit.federation import Node
from tests.kit.rooms import HUB, ROOM, message, opening
from tests.kit.waiting import HANGS, eventually


@dataclass
class Writers:
    """Clients that send until told to stop, each repeating what was not answered 200."""

    http: TestClient[Any, Any]
    token: str
    room_id: str
    statuses: Counter[int] = field(default_factory=Counter)
    acked: dict[str, str] = field(default_factory=dict)
    slowest: float = 0.0
    stopping: bool = False

    async def put(self, txn: str) -> int:
        started = time.monotonic()
        async with self.http.put(
            f"/_matrix/client/v3/rooms/{self.room_id}/send/m.room.message/{txn}",
            json={"msgtype": "m.text", "body": txn},
            headers={"Authorization": f"Bearer {self.token}"},
        ) as answer:
            body = await answer.json()
            self.statuses[answer.status] += 1
            self.slowest = max(self.slowest, time.monotonic() - started)
            if answer.status == 200:
                assert self.acked.setdefault(txn, body["event_id"]) == body["event_id"]
            return answer.status

    async def write(self, name: str) -> None:
        number = 0
        while not self.stopping:
            if await self.put(f"{name}-{number}") == 200:
                number += 1
            await asyncio.sleep(0.01)

    async def acks(self, more: int) -> None:
        goal = len(self.acked) + more
        while len(self.acked) < goal:
            await asyncio.sleep(0.01)


@dataclass
class Scene:
    node: Node
    writers: Writers
    tasks: list[asyncio.Task[None]]

    async def end(self) -> None:
        self.writers.stopping = True
        await asyncio.gather(*self.tasks)

    async def complete(self) -> bool:
        """Every acknowledged event stands once, and the chain holds."""
        found = await self.node.chain(self.writers.room_id)
        counts = Counter(found)
        return (
            set(self.writers.acked.values()) <= counts.keys()
            and max(counts.values()) == 1
            and await self.node.problems(self.writers.room_id) == []
        )


async def scene(dsn: str, folder: Path, http: list[TestClient[Any, Any]]) -> Scene:
    node = Node(HUB, dsn, Network(), folder, pool=4)
    await node.start()
    client: TestClient[Any, Any] = TestClient(TestServer(node.server.client_app))
    await client.start_server()
    http.append(client)
    answer = await client.post(
        "/_matrix/client/v3/register",
        json={"username": "alice", "password": "a long password", "auth": {"type": "m.login.dummy"}},
    )
    token = (await answer.json())["access_token"]
    answer = await client.post(
        "/_matrix/client/v3/createRoom", json={}, headers={"Authorization": f"Bearer {token}"}
    )
    writers = Writers(client, token, (await answer.json())["room_id"])
    tasks = [asyncio.create_task(writers.write(f"w{n}")) for n in range(3)]
    await writers.acks(10)
    return Scene(node, writers, tasks)


@pytest.fixture
async def http() -> AsyncIterator[list[TestClient[Any, Any]]]:
    made: list[TestClient[Any, Any]] = []
    yield made
    for client in made:
        await client.close()


# -- D4 ---------------------------------------------------------------------------------------------


async def restart(postgres: EmbeddedPostgres, how: signal.Signals, noticed: Callable[[], bool]) -> None:
    """As `pg_ctl restart -m fast` (SIGINT) or `-m immediate` (SIGQUIT) would; away until it is noticed."""
    process = postgres._process
    assert process is not None
    os.kill(process.pid, how)
    await asyncio.to_thread(process.wait)
    await eventually(noticed)
    await postgres.stop()
    await postgres.start()


async def test_d4_a_restart_of_postgresql_is_a_pause(
    tmp_path: Path, http: list[TestClient[Any, Any]]
) -> None:
    postgres = EmbeddedPostgres(tmp_path / "postgres", lambda _: None)
    dsn = await postgres.start()
    await migrations.upgrade(dsn, lambda _: None)
    made = await scene(dsn, tmp_path / "hub", http)
    try:
        for number in range(rounds(2, 20)):
            how = (signal.SIGINT, signal.SIGQUIT)[number % 2]
            refused = made.writers.statuses[503]
            await restart(postgres, how, lambda: made.writers.statuses[503] > refused)  # noqa: B023
            async with asyncio.timeout(HANGS):
                await made.writers.acks(10)
        await made.end()
        assert set(made.writers.statuses) == {200, 503}
        assert await made.complete()
        # The check can fail: an event that is gone, as after an acknowledgement before COMMIT.
        lost = next(iter(made.writers.acked.values()))
        await made.node.db.execute("DELETE FROM events WHERE event_id = $1", lost)
        assert not await made.complete()
    finally:
        made.writers.stopping = True
        await asyncio.gather(*made.tasks, return_exceptions=True)
        await made.node.stop()
        await postgres.stop()


# -- D5 ---------------------------------------------------------------------------------------------


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[FaultProxy]:
    """Between a server and the tests' cluster."""
    query = parse_qs(urlsplit(database_url).query)
    target = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}" if "host" in query else 5432
    made = FaultProxy(target)
    await made.start()
    yield made
    await made.stop()


def through(proxy: FaultProxy, database_url: str) -> str:
    parts = urlsplit(database_url)
    user = parts.username or "lmserver"
    return f"postgresql://{user}@127.0.0.1:{proxy.port}{parts.path}"


async def test_d5_control_without_a_limit_a_silent_connection_is_waited_for(
    database_url: str, proxy: FaultProxy, tmp_path: Path, http: list[TestClient[Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(database, "STATEMENT_SECONDS", 60.0)
    made = await scene(through(proxy, database_url), tmp_path, http)
    proxy.faults.silent = True
    acked = len(made.writers.acked)
    await asyncio.sleep(4)
    assert len(made.writers.acked) <= acked + 3
    assert made.writers.statuses[503] == 0
    proxy.faults.silent = False
    await made.writers.acks(5)
    await made.end()
    await made.node.stop()


async def test_d5_a_silent_connection_costs_a_request_its_deadline_and_nothing_more(
    database_url: str, proxy: FaultProxy, tmp_path: Path, http: list[TestClient[Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(database, "STATEMENT_SECONDS", 3.0)
    monkeypatch.setattr(database, "CONNECT_SECONDS", 3.0)
    made = await scene(through(proxy, database_url), tmp_path, http)
    try:
        for _ in range(rounds(1, 10)):
            refused = made.writers.statuses[503]
            made.writers.slowest = 0.0
            proxy.faults.silent = True
            while made.writers.statuses[503] == refused:
                await asyncio.sleep(0.02)
            # Old connections stay silent for ever, as behind a firewall that forgot them.
            proxy.forget()
            proxy.faults.silent = False
            async with asyncio.timeout(HANGS):
                await made.writers.acks(10)
            assert made.writers.slowest < 20
        await made.end()
        assert set(made.writers.statuses) == {200, 503}
        assert await made.complete()
    finally:
        made.writers.stopping = True
        await asyncio.gather(*made.tasks, return_exceptions=True)
        await made.node.stop()


async def test_d5_connections_that_are_cut_are_replaced(
    database_url: str, proxy: FaultProxy, tmp_path: Path, http: list[TestClient[Any, Any]]
) -> None:
    made = await scene(through(proxy, database_url), tmp_path, http)
    try:
        for _ in range(rounds(3, 50)):
            assert proxy.cut() > 0
            async with asyncio.timeout(HANGS):
                await made.writers.acks(5)
        await made.end()
        assert set(made.writers.statuses) <= {200, 503}
        assert await made.complete()
    finally:
        made.writers.stopping = True
        await asyncio.gather(*made.tasks, return_exceptions=True)
        await made.node.stop()


@pytest.mark.parametrize("limited", [True, False], ids=["d5", "control"])
async def test_d5_a_lock_held_over_a_silent_connection_is_released(
    database_url: str, proxy: FaultProxy, db: Database, monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    """A process goes silent while it holds a room. The server ends its transaction, and another
    process goes on; without that limit (the control) the room stays locked."""
    kit = engine_kit(db, HUB)
    await kit.engine.create(LM_02, opening())
    monkeypatch.setitem(database._SESSION, "idle_in_transaction_session_timeout", "1s" if limited else "0")
    silent = await Database.connect(through(proxy, database_url), max_size=1)
    locked, done = asyncio.Event(), asyncio.Event()

    async def hold(connection: Any) -> None:
        await room_log.lock_head(connection, ROOM)
        proxy.faults.silent = True
        locked.set()
        await done.wait()

    holder = asyncio.create_task(silent.run(hold))
    await locked.wait()
    try:
        async with asyncio.timeout(HANGS if limited else 4):
            [outcome] = await kit.engine.send([message("from another process")])
        assert limited
        assert isinstance(outcome, Accepted)
    except (TimeoutError, DatabaseUnavailable):
        assert not limited
    finally:
        proxy.faults.silent = False
        proxy.cut()
        done.set()
        await asyncio.gather(holder, return_exceptions=True)
        await silent.close()
        await kit.engine.close()
    # The zombie wrote nothing, whatever it does now.
    assert isinstance(holder.exception(), DatabaseUnavailable | asyncpg.PostgresError)
