"""Servers we have nothing to do with: neither asked nor answered, but for keys.

Keys are public and needed to check what users of a blocked server say in rooms of other servers. The list
is kept in memory and read again every few seconds, so that what the command line or another process
changes counts too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from lmserver.storage import blocked_servers
from lmserver.storage.blocked_servers import BlockedServer
from lmserver.storage.database import Database, DatabaseUnavailable

RELOAD_SECONDS: Final = 3.0
MAX_BLOCKED: Final = 10_000

log = structlog.get_logger(__name__)


class BlockedServers:
    """Those of the configuration, and those blocked since; `server in blocked` asks."""

    def __init__(self, db: Database, configured: frozenset[str], clock: Callable[[], int]) -> None:
        self._db = db
        self._configured = configured
        self._clock = clock
        self._names = configured

    def __contains__(self, server: object) -> bool:
        return server in self._names

    @property
    def configured(self) -> frozenset[str]:
        return self._configured

    async def listed(self) -> list[BlockedServer]:
        """Those blocked since the configuration was read, by name."""
        return await blocked_servers.listed(self._db, MAX_BLOCKED)

    async def load(self) -> None:
        self._names = self._configured | {blocked.server for blocked in await self.listed()}

    async def block(self, server: str, by: str, reason: str) -> None:
        await blocked_servers.add(self._db, server, by, reason, self._clock())
        await self.load()

    async def unblock(self, server: str) -> bool:
        """Whether it was blocked; one of the configuration stays blocked."""
        removed = await blocked_servers.remove(self._db, server)
        await self.load()
        return removed

    async def run(self) -> None:
        """Follow the database until cancelled."""
        while True:
            try:
                await self.load()
            except DatabaseUnavailable:
                log.warning("blocked_servers_not_read")
            await asyncio.sleep(RELOAD_SECONDS)
