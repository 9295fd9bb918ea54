"""Two federated servers for all client tests of a process, and the npm packages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.node import Node, installed
from tests.kit.processes import ServerProcess, configure, free_port, lmserver


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """A hub and a participant as operators run them, federating over TLS on loopback. Tests share them,
    so each registers users of its own names. In the end every room of both must verify."""
    folder = tmp_path_factory.mktemp("clients")
    hub = configure(folder, "hub", admin={"port": free_port(), "page": True})
    pair = hub, configure(folder, "participant")

    async def start() -> None:
        await asyncio.gather(*(server.start() for server in pair))

    try:
        asyncio.run(start())
        yield pair
        with ThreadPoolExecutor() as both:
            list(both.map(_stopped_and_verified, pair))
    finally:
        for server in pair:
            server.stop()


def _stopped_and_verified(server: ServerProcess) -> None:
    assert server.stop() == 0
    verified = lmserver("verify", "--config", str(server.config))
    assert verified.returncode == 0, verified.stdout


@pytest.fixture(scope="session")
def node() -> Node:
    """Node with the packages of js/package-lock.json; a skip with the reason where there is none."""
    return installed()
