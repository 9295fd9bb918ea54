"""A whole lmserver under attack: every part as `lmserver run` wires it, on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmserver.composition import assemble
from lmserver.config import parse_config
from lmserver.config_limits import DEFAULT_LIMITS
from lmserver.rooms.verifying import Verification
from lmserver.storage.database import Database
from lmserver.web.addresses import TrustedProxies
from lmserver.web.app import DISPATCHER
from lmserver.web.listener import Capacity, Listener
from tests.evilpeer.network import Network
from tests.kit.rooms import EVIL, HUB, KEYS, PARTICIPANT, key_of, now

FAST = {name: {"per_second": 1000, "burst": 1000} for name in DEFAULT_LIMITS}


class Victim:
    """An lmserver named `name`; `port` is its federation listener's."""

    def __init__(self, db: Database, network: Network, name: str, folder: Path, **config: Any) -> None:
        self.name = name
        self.db = db
        self.network = network
        raw = {
            "server_name": name,
            "registration": {"mode": "open"},
            "limits": FAST,
            "federation": {
                "plain_http_servers": sorted({HUB, PARTICIPANT, EVIL} - {name}),
                "allowed_networks": ["127.0.0.0/8"],
            },
            **config,
        }
        self.server = assemble(parse_config(raw, folder), db, key_of(name), now, network)
        self.engine = self.server.engine
        self._listener: Listener | None = None

    @property
    def port(self) -> int:
        return self.network.ports[self.name]

    async def start(self) -> None:
        await self.listen()

    async def listen(self) -> None:
        """Serve other servers, on the port they know if there is one."""
        self._listener = Listener(
            self.server.federation_app[DISPATCHER], Capacity(1000), TrustedProxies(), shutdown_seconds=60.0
        )
        await self._listener.start("127.0.0.1", self.network.port(self.name))

    async def unlisten(self) -> None:
        """Be away for other servers."""
        if self._listener is not None:
            await self._listener.close()
            self._listener = None

    async def stop(self) -> None:
        await self.unlisten()
        await self.server.close()

    async def problems(self, room_id: str) -> list[str]:
        """What `lmserver verify` says of a room."""
        verification = Verification(self.db, self.name, KEYS[self.name])
        for server, keys in KEYS.items():
            verification.trust(server, keys)
        return [str(problem) for problem in (await verification.room(room_id)).problems]
