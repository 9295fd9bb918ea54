"""Whole servers in this process, each on a database of its own, that reach each other on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from lmserver.composition import Server, assemble, clock_ms
from lmserver.config import parse_config
from lmserver.config_limits import DEFAULT_LIMITS
from lmserver.protocol.events import EventDraft
from lmserver.rooms.outcomes import Accepted, Outcome
from lmserver.rooms.verifying import Verification
from lmserver.storage import room_log
from lmserver.storage.database import Database
from tests.evilpeer.network import Network
from tests.kit.rooms import EVIL, HUB, KEYS, PARTICIPANT, key_of
from tests.kit.waiting import HANGS, eventually

FAST = {name: {"per_second": 1000, "burst": 1000} for name in DEFAULT_LIMITS}


class Node:
    """A server as `lmserver run` runs it, but for its client listener; may be stopped and started.

    Its data directory outlives it and its database, as a disk does. `port` is that of its client API,
    which is not served: it makes processes on one database different ones.
    """

    def __init__(
        self, name: str, dsn: str, network: Network, folder: Path, *, pool: int = 5, port: int = 8008
    ) -> None:
        self.name = name
        self.dsn = dsn
        self.folder = folder
        self.clock: Callable[[], int] = clock_ms
        self.restored: str | None = None
        self._network = network
        self._pool = pool
        self._port = port
        self._runner: web.AppRunner | None = None
        self._guarding: asyncio.Task[None] | None = None
        self._server: Server | None = None
        self._db: Database | None = None

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    @property
    def db(self) -> Database:
        assert self._db is not None
        return self._db

    async def start(self) -> None:
        self._db = await Database.connect(self.dsn, max_size=self._pool)
        raw = {
            "server_name": self.name,
            "data_dir": str(self.folder),
            "client": {"port": self._port},
            "registration": {"mode": "open"},
            "limits": FAST,
            "federation": {
                "plain_http_servers": sorted({HUB, PARTICIPANT, EVIL} - {self.name}),
                "allowed_networks": ["127.0.0.0/8"],
            },
        }
        key = key_of(self.name)
        self._server = assemble(parse_config(raw, self.folder), self._db, key, self.clock, self._network)
        self.restored = await self._server.guard.check()
        self._guarding = asyncio.create_task(self._server.guard.run(self._server.recovery.restored))
        self._runner = web.AppRunner(self._server.federation_app, access_log=None, auto_decompress=False)
        await self._runner.setup()
        port = self._network.port(self.name)
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()
        await self._server.sender.start()
        self._server.recovery.start()

    async def stop(self) -> None:
        if self._server is None or self._guarding is None or self._runner is None:
            return
        self._guarding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._guarding
        await self._runner.cleanup()
        await self._server.close()
        await self.db.close()
        self._server = None

    # -- what its users do -----------------------------------------------------------------------

    async def try_to_send(self, draft: EventDraft) -> Outcome:
        [outcome] = await self.server.engine.send([draft])
        return outcome

    async def send(self, draft: EventDraft) -> str:
        outcome = await self.try_to_send(draft)
        assert isinstance(outcome, Accepted), outcome
        return outcome.event_id

    async def join(self, localpart: str, room_id: str, via: str) -> None:
        await self.server.accounts.register(localpart, "a long password")
        await self.server.membership.join(f"@{localpart}:{self.name}", room_id, [via])

    # -- what stands -----------------------------------------------------------------------------

    async def chain(self, room_id: str) -> list[str]:
        events = await room_log.events_between(self.db, room_id, -1, 2**62, 10**6, newest_first=False)
        return [event.event_id for event in events]

    async def bytes_of(self, room_id: str) -> list[bytes]:
        events = await room_log.events_between(self.db, room_id, -1, 2**62, 10**6, newest_first=False)
        return [event.pdu for event in events]

    async def has(self, room_id: str, event_id: str, seconds: float = HANGS) -> None:
        await eventually(lambda: self._has(room_id, event_id), seconds)

    async def _has(self, room_id: str, event_id: str) -> bool:
        return event_id in await self.chain(room_id)

    async def problems(self, room_id: str) -> list[str]:
        """What `lmserver verify` says of a room."""
        verification = Verification(self.db, self.name, KEYS[self.name])
        for server, keys in KEYS.items():
            verification.trust(server, keys)
        return [str(problem) for problem in (await verification.room(room_id)).problems]
