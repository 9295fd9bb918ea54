"""The assembled client API, and the room endpoints alone with made-up access tokens; both on a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lmserver.storage.database import Database
from tests.kit.bridge import Bridge
from tests.kit.client_api import Api, serve
from tests.kit.clock import Clock
from tests.kit.room_clients import RoomServer
from tests.kit.sliding import Phone


@pytest.fixture
def clock() -> Clock:
    """The time as `api` sees it."""
    return Clock()


@pytest.fixture
async def api(db: Database, tmp_path: Path, clock: Clock) -> AsyncIterator[Api]:
    made = await serve(db, tmp_path, clock=clock)
    yield made
    await made.close()


@pytest.fixture
async def alice(api: Api) -> Phone:
    return await Phone.register(api, "alice")


@pytest.fixture
async def bob(api: Api) -> Phone:
    return await Phone.register(api, "bob")


@pytest.fixture
async def server(db: Database) -> AsyncIterator[RoomServer]:
    made = RoomServer(db)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    made = Bridge()
    await made.start()
    yield made
    await made.close()
