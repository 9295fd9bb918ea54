"""Fixtures every test may use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lmserver.storage.database import Database
from tests.kit.postgres import Cluster, SharedCluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Cluster]:
    """The PostgreSQL cluster of this run, shared by all its processes."""
    base: Path = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "postgres"
    shared = SharedCluster(folder)
    found = asyncio.run(shared.join())
    (folder / f"user-{worker_id}").touch()
    yield found
    (folder / f"user-{worker_id}").unlink()
    if shared.owned is not None:
        # The process that started it waits for the others, then stops it.
        deadline = time.monotonic() + 600
        while any(folder.glob("user-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        asyncio.run(shared.owned.stop())


@pytest.fixture
async def database_url(cluster: Cluster) -> AsyncIterator[str]:
    """A fresh database with the current schema."""
    async with cluster.database() as dsn:
        yield dsn


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """An open pool on a fresh database."""
    database = await Database.connect(database_url, max_size=5)
    yield database
    await database.close()
