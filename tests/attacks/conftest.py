"""The arena of the attacks on a hub, the prey of a hostile one; `config` overrides keys of the victim's configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lmserver.storage.database import Database
from tests.evilpeer.arena import Arena
from tests.evilpeer.prey import Prey


@pytest.fixture
def config() -> dict[str, Any]:
    return {}


@pytest.fixture
async def arena(db: Database, tmp_path: Path, config: dict[str, Any]) -> AsyncIterator[Arena]:
    async with Arena(db, tmp_path, **config) as made:
        yield made


@pytest.fixture
async def prey(db: Database, tmp_path: Path) -> AsyncIterator[Prey]:
    async with Prey(db, tmp_path) as made:
        yield made
