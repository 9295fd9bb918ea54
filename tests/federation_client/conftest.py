"""Fixtures of the outbound side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.federation_client.fakes import Clock, FakeDns, Loopback
from tests.kit.key_documents import PEER, Millis, Peers, document


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


@pytest.fixture
def peers() -> Peers:
    """What servers answer who asks for their keys."""
    peers = Peers()
    peers.documents["peer.test"] = document(PEER)
    return peers


@pytest.fixture
def millis() -> Millis:
    """The time as the keyring sees it."""
    return Millis()


@pytest.fixture
def alerts() -> list[tuple[str, str]]:
    """Key conflicts that were told of."""
    return []
