"""A participant at the mercy of its hub: a whole lmserver, the hub it trusts with order, and a stranger."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from lmserver.storage import room_log
from lmserver.storage.database import Database
from tests.evilpeer.hub import EvilHub
from tests.evilpeer.network import Network
from tests.evilpeer.victim import Victim
from tests.kit.rooms import BOB, EVIL, HUB, PARTICIPANT, ROOM


class Prey:
    """A participant with its user BOB, and the hub it trusts with order."""

    def __init__(self, db: Database, folder: Path) -> None:
        self.network = Network()
        self.db = db
        self.victim = Victim(db, self.network, PARTICIPANT, folder)
        self.hub = EvilHub(self.network)
        self.evil = EvilHub(self.network, EVIL)

    async def join(self, via: str = HUB) -> None:
        await self.victim.server.membership.join(BOB, ROOM, [via])

    async def nothing_stored(self) -> None:
        assert await room_log.room(self.db, ROOM) is None
        assert await self.db.fetchval("SELECT count(*) FROM events") == 0

    async def __aenter__(self) -> Prey:
        accounts = self.victim.server.accounts
        await accounts.register("bob", "a password of bob")
        await accounts.set_profile(BOB, "displayname", "Bob")
        for part in (self.victim, self.hub, self.evil):
            await part.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in (self.hub, self.evil, self.victim):
            await part.stop()
