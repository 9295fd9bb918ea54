"""A PostgreSQL for the tests: the embedded one, or LMSERVER_TEST_DATABASE_URL.

One cluster serves all test processes of a run; each test gets a database of its own, cloned from
a template that was migrated once.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from lmserver.storage import migrations
from lmserver.storage.embedded_postgres import EmbeddedPostgres

ENVIRONMENT = "LMSERVER_TEST_DATABASE_URL"


class Cluster:
    """A running cluster and the template in it."""

    def __init__(self, admin_dsn: str, template: str) -> None:
        self.admin_dsn = admin_dsn
        self.template = template

    def dsn(self, database: str) -> str:
        parts = urlsplit(self.admin_dsn)
        return urlunsplit(parts._replace(path=f"/{database}"))

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The DSN of a fresh database with the current schema, dropped afterwards."""
        name = f"lmtest_{uuid.uuid4().hex[:12]}"
        await self._admin(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        try:
            yield self.dsn(name)
        finally:
            await self._admin(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _admin(self, statement: str) -> None:
        connection = await asyncpg.connect(self.admin_dsn, timeout=30)
        try:
            for _ in range(20):
                try:
                    await connection.execute(statement)
                    return
                except asyncpg.ObjectInUseError:  # a clone by another test process
                    await asyncio.sleep(0.05)
            await connection.execute(statement)
        finally:
            await connection.close()


async def make_template(admin_dsn: str) -> Cluster:
    """Migrate a template database once."""
    cluster = Cluster(admin_dsn, f"lmtemplate_{uuid.uuid4().hex[:8]}")
    await cluster._admin(f"CREATE DATABASE {cluster.template} TEMPLATE template0 ENCODING 'UTF8'")
    await migrations.upgrade(cluster.dsn(cluster.template), lambda text: None)
    return cluster


class SharedCluster:
    """The cluster of a test run: the first process starts it, the last one stops it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state = folder / "cluster.json"
        self._embedded: EmbeddedPostgres | None = None

    async def join(self) -> Cluster:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            if not self._state.exists():
                self._state.write_text(json.dumps(await self._start()), encoding="utf-8")
            found = json.loads(self._state.read_text(encoding="utf-8"))
        return Cluster(found["dsn"], found["template"])

    async def _start(self) -> dict[str, str]:
        dsn = os.environ.get(ENVIRONMENT)
        if dsn is None:
            self._embedded = EmbeddedPostgres(self._folder / "data", lambda text: None)
            dsn = await self._embedded.start()
        cluster = await make_template(dsn)
        return {"dsn": cluster.admin_dsn, "template": cluster.template}

    @property
    def owned(self) -> EmbeddedPostgres | None:
        """The embedded cluster, in the process that started it."""
        return self._embedded
