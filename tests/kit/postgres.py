"""A PostgreSQL for the tests: the embedded one, or LMSERVER_TEST_DATABASE_URL.

Each test process has a cluster of its own: what one leaves open holds back the streams of all
databases of its cluster. Each test gets a database, cloned from a template that was migrated once.
"""

from __future__ import annotations

import asyncio
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


@asynccontextmanager
async def running_cluster(folder: Path) -> AsyncIterator[Cluster]:
    """A cluster with its template: the embedded one under `folder`, or that of the environment."""
    dsn = os.environ.get(ENVIRONMENT)
    if dsn is not None:
        yield await make_template(dsn)
        return
    embedded = EmbeddedPostgres(folder, lambda text: None)
    try:
        yield await make_template(await embedded.start())
    finally:
        await embedded.stop()
