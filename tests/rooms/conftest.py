"""A fresh world for each test of the rooms layer."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lmserver.storage.database import Database
from tests.kit.reading_world import World


@pytest.fixture
async def world(db: Database) -> AsyncIterator[World]:
    made = World(db)
    yield made
    await made.close()
