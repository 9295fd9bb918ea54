"""Servers in this process whose databases are copied and put back: what a restore looks like to them."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

from lmserver.protocol.room_versions import LM_02
from lmserver.storage import holds
from tests.evilpeer.network import Network
from tests.kit.federation import Node
from tests.kit.postgres import Cluster
from tests.kit.rooms import EVIL, HUB, PARTICIPANT, ROOM, opening
from tests.kit.waiting import HANGS, eventually


class World:
    """A hub with ROOM and servers that can take part in it; their databases can be copied and put back."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.network = Network()
        self._cluster = cluster
        self._folder = folder
        self._databases = contextlib.AsyncExitStack()
        self.hub: Node
        self.nodes: list[Node] = []

    async def __aenter__(self) -> World:
        for name in (HUB, PARTICIPANT, EVIL):
            dsn = await self._databases.enter_async_context(self._cluster.database())
            self.nodes.append(Node(name, dsn, self.network, self._folder / name))
        self.hub = self.nodes[0]
        for node in self.nodes:
            await node.start()
        await self.hub.server.engine.create(LM_02, opening())
        return self

    async def __aexit__(self, *error: object) -> None:
        for node in self.nodes:
            await node.stop()
        await self._databases.aclose()

    async def back_up(self, node: Node) -> str:
        """A copy of the node's database, made while it is stopped."""
        await node.stop()
        name = f"lmtest_{uuid.uuid4().hex[:12]}"
        await self._cluster._admin(
            f"CREATE DATABASE {name} TEMPLATE {node.dsn.partition('?')[0].rpartition('/')[2]}"
        )
        self._databases.push_async_callback(
            self._cluster._admin, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"
        )
        await node.start()
        return self._cluster.dsn(name)

    async def restore(self, node: Node, backup: str) -> None:
        """The node starts on the copy; its data directory is what it was."""
        await node.stop()
        node.dsn = backup
        await node.start()

    async def everybody_has(self, event_id: str) -> None:
        for node in self.nodes:
            await node.has(ROOM, event_id)

    async def released(self, seconds: float = HANGS) -> None:
        async def free() -> bool:
            return await holds.held(self.hub.db) == []

        await eventually(free, seconds)
