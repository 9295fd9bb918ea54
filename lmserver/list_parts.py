"""Rooms' lists, wired: how events get into them, and what keeps them whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmserver.federation_client.keyring import Keyring
from lmserver.federation_client.room_api import RoomApi
from lmserver.metrics import Metrics
from lmserver.protocol.signatures import SigningKey
from lmserver.rooms.backfill import Backfill
from lmserver.rooms.echo_watch import EchoWatch
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.evidence import EvidenceLog
from lmserver.rooms.gaps import GapFiller
from lmserver.rooms.history import HubHistory
from lmserver.rooms.lpdu_answers import LpduAnswers
from lmserver.rooms.own_lpdus import OwnLpdus
from lmserver.rooms.rollback import TailRecovery
from lmserver.rooms.turns import Audience, Turns
from lmserver.storage.database import Database


@dataclass(frozen=True, slots=True)
class ListParts:
    """The engine, what it is made of, and what finds again what is missing: echoes, gaps, history, and what
    a restore lost."""

    engine: RoomEngine
    turns: Turns
    own_lpdus: OwnLpdus
    echo_watch: EchoWatch
    gaps: GapFiller
    backfill: Backfill
    recovery: TailRecovery


def list_parts(
    db: Database,
    key: SigningKey,
    api: RoomApi,
    keyring: Keyring,
    audience: Audience,
    metrics: Metrics,
    clock: Callable[[], int],
) -> ListParts:
    """Everything that writes into the lists of rooms."""
    answers = LpduAnswers()
    evidence = EvidenceLog(db, clock, metrics.count_evidence)
    turns = Turns(db, key, audience, answers, clock, evidence)
    own_lpdus = OwnLpdus(db, key, answers, audience.wake, clock)
    history = HubHistory(db, api, keyring)
    gaps = GapFiller(db, turns, history, evidence, clock)
    engine = RoomEngine(turns, own_lpdus, gaps)
    return ListParts(
        engine,
        turns,
        own_lpdus,
        EchoWatch(db, engine, api, keyring, answers, evidence, audience.wake, clock),
        gaps,
        Backfill(db, key.server_name, history, keyring, evidence, clock),
        TailRecovery(db, turns, api, keyring, clock),
    )
