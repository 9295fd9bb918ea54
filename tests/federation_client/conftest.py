"""Fixtures of the outbound side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.federation_client.fakes import Clock, FakeDns, Loopback


@pytest.fixture
def dns() -> FakeDns:
    return FakeDns()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def loopback(tmp_path: Path) -> AsyncIterator[Loopback]:
    servers = Loopback(tmp_path)
    yield servers
    await servers.close()
