"""Engines without HTTP: a server's rooms on a real database, its peers one function call away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.events import Lpdu, Pdu
from lmserver.protocol.room_versions import LM_02
from lmserver.protocol.signatures import SigningKey, check_event_signatures
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.evidence import EvidenceLog
from lmserver.rooms.gaps import Budget, GapFiller
from lmserver.rooms.lpdu_answers import LpduAnswers
from lmserver.rooms.own_lpdus import OwnLpdus
from lmserver.rooms.turns import Turns
from lmserver.rooms.verifying import Verification
from lmserver.storage.database import Database
from tests.kit.rooms import KEYS, key_of, now


@dataclass
class Listener:
    """Remembers who was told what after COMMIT."""

    published: list[tuple[list[str], int | None]] = field(default_factory=list)
    woken: set[str] = field(default_factory=set)

    def publish(self, keys: Iterable[str], xid: int | None = None) -> None:
        self.published.append((list(keys), xid))

    def wake(self, destinations: Iterable[str]) -> None:
        self.woken |= set(destinations)


class StaticVerifier:
    """Checks signatures with the test servers' keys; remembers which keys were asked for."""

    def __init__(self) -> None:
        self.current_keys_only: list[bool] = []

    async def verify_events(
        self, events: Sequence[Lpdu | Pdu], *, current_keys_only: bool = False
    ) -> list[ProtocolError | None]:
        self.current_keys_only.append(current_keys_only)
        return [self._verify(event) for event in events]

    def _verify(self, event: Lpdu | Pdu) -> ProtocolError | None:
        try:
            check_event_signatures(event, KEYS)
        except ProtocolError as error:
            return error
        return None


class NoHistory:
    """A hub that has nothing to backfill."""

    async def past(self, hub: str, room_id: str, event_id: str, limit: int) -> list[tuple[Pdu, bool]]:
        return []


@dataclass
class ListHistory:
    """A hub whose history is a list; remembers what it was asked. `bad` cannot be verified."""

    pdus: list[Pdu]
    asked: list[str] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)

    async def past(self, hub: str, room_id: str, event_id: str, limit: int) -> list[tuple[Pdu, bool]]:
        self.asked.append(event_id)
        ids = [pdu.event_id for pdu in self.pdus]
        if event_id not in ids:
            return []
        end = ids.index(event_id) + 1
        return [(pdu, pdu.event_id not in self.bad) for pdu in self.pdus[max(0, end - limit) : end]]


@dataclass
class EngineKit:
    """One server's engine with its parts in reach."""

    db: Database
    key: SigningKey
    listener: Listener
    turns: Turns
    own_lpdus: OwnLpdus
    gaps: GapFiller
    engine: RoomEngine

    async def problems(self, room_id: str) -> list[str]:
        """What `lmserver verify` says of a room."""
        verification = Verification(self.db, self.key.server_name, KEYS[self.key.server_name])
        for server, keys in KEYS.items():
            verification.trust(server, keys)
        return [str(problem) for problem in (await verification.room(room_id)).problems]


def engine_kit(
    db: Database,
    server: str,
    *,
    history: Any = None,
    clock: Callable[[], int] = now,
    answer_seconds: float = 0.3,
    **budgets: Budget,
) -> EngineKit:
    key, listener, answers = key_of(server), Listener(), LpduAnswers()
    turns = Turns(db, key, listener, answers, clock)
    own = OwnLpdus(db, key, answers, listener.wake, clock, answer_seconds=answer_seconds)
    gaps = GapFiller(db, turns, history or NoHistory(), EvidenceLog(db, clock), clock, **budgets)
    engine = RoomEngine(turns, own, gaps)
    return EngineKit(db, key, listener, turns, own, gaps, engine)


async def adopt_join(kit: EngineKit, pdus: Sequence[Pdu], hub: str) -> None:
    """Make a participant hold a room as if it had just joined with the last of `pdus`."""
    from lmserver.rooms.joining import Joining

    joining = Joining(
        kit.db,
        kit.key,
        api=None,  # type: ignore[arg-type]
        verifier=StaticVerifier(),
        turns=kit.turns,
        publish=lambda keys: None,
        clock=now,
    )
    *before, join = pdus
    state = {(p.type, p.state_key): p for p in before if p.state_key is not None}
    await kit.db.run(lambda db: joining.store(db, LM_02, hub, state, join))  # type: ignore[arg-type]
    kit.turns.forget(join.room_id)


async def settle() -> None:
    """Let tasks that are ready run."""
    for _ in range(5):
        await asyncio.sleep(0)
