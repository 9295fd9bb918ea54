"""Fixtures every test may use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from lmserver.server import allow_files
from lmserver.storage.database import Database
from tests.kit.postgres import Cluster, running_cluster

# How fast examples are made says something of the machine, not of the code.
settings.register_profile("lmserver", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lmserver")

allow_files()  # as the server does when it starts


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The PostgreSQL cluster of this test process."""
    running = running_cluster(tmp_path_factory.getbasetemp() / "postgres")
    with asyncio.Runner() as runner:
        yield runner.run(running.__aenter__())
        runner.run(running.__aexit__(None, None, None))


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
