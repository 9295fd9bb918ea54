"""The room endpoints over real HTTP on a real database, with made-up access tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lmserver.storage.database import Database
from tests.kit.room_clients import RoomServer


@pytest.fixture
async def server(db: Database) -> AsyncIterator[RoomServer]:
    made = RoomServer(db)
    await made.start()
    yield made
    await made.close()
