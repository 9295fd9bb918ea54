"""The arena of the attacks; `config` overrides keys of the victim's configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lmserver.storage.database import Database
from tests.evilpeer.arena import Arena


@pytest.fixture
def config() -> dict[str, Any]:
    return {}


@pytest.fixture
async def arena(db: Database, tmp_path: Path, config: dict[str, Any]) -> AsyncIterator[Arena]:
    async with Arena(db, tmp_path, **config) as made:
        yield made
