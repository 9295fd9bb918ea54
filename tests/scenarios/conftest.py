"""Two servers in their own processes, and an HTTP client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.kit.processes import ServerProcess, configure, running


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[tuple[ServerProcess, ServerProcess]]:
    """The hub, and a participant."""
    made = configure(tmp_path, "hub"), configure(tmp_path, "participant")
    async with running(*made):
        yield made


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
