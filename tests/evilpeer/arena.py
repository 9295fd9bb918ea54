"""A victim that is the hub of a room, and two peers in it: one honest, one not."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from lmserver.protocol.room_versions import LM_02
from lmserver.storage.database import Database
from tests.evilpeer.network import Network
from tests.evilpeer.peer import EvilPeer
from tests.evilpeer.victim import Victim
from tests.kit.rooms import BOB, EVIL, HUB, MALLORY, PARTICIPANT, ROOM, lpdu, member, message, opening

_txn = count()


class Arena:
    """ROOM on the victim, with BOB of PARTICIPANT and MALLORY of EVIL in it."""

    def __init__(self, db: Database, folder: Path, **config: Any) -> None:
        self.db = db
        self.network = Network()
        self.victim = Victim(db, self.network, HUB, folder, **config)
        self.engine = self.victim.engine
        self.evil = EvilPeer(self.network, EVIL)
        self.peers = {EVIL: self.evil, PARTICIPANT: EvilPeer(self.network, PARTICIPANT)}

    async def __aenter__(self) -> Arena:
        for part in (self.victim, *self.peers.values()):
            await part.start()
        await self.engine.create(LM_02, opening())
        await self.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=u)) for u in (BOB, MALLORY)])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in (*self.peers.values(), self.victim):
            await part.stop()

    async def ask(
        self, method: str, path: str, content: Any = None, *, origin: str = EVIL, signed: str | None = None
    ) -> tuple[int, Any]:
        """A request to the victim, signed by `origin` (for the path `signed`, if given)."""
        return await self.peers[origin].ask(HUB, method, path, content, signed=signed)

    async def send(self, txn_id: str, pdus: Any, *, origin: str = EVIL, **more: Any) -> tuple[int, Any]:
        return await self.peers[origin].send(HUB, txn_id, pdus, **more)

    async def problems(self) -> list[str]:
        return await self.victim.problems(ROOM)

    async def unharmed(self, attack: list[Any]) -> dict[str, Any]:
        """Send the attack around an honest event: the honest one stands, the attacks do not.

        Returns what the answer says of the attacks: `failed_pdus`.
        """
        before = await self.engine.view(ROOM)
        assert before is not None
        honest = lpdu(message("honest", sender=MALLORY))
        status, answer = await self.send(f"attack{next(_txn)}", [*attack, honest.fields])
        assert status == 200, answer
        assert list(answer["org.lmserver.accepted"]) == [honest.event_id]
        after = await self.engine.view(ROOM)
        assert after is not None
        assert after.head_position == before.head_position + 1
        assert await self.problems() == []
        failed: dict[str, Any] = answer["failed_pdus"]
        return failed
