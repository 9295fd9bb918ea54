"""What a room's hub can be caught at, as a participant words it.

An event that breaks a rule never makes us leave the list, which must hash: it is kept as proof
(D04 §Conventions, "Soft Failure"; protocol decision "Auth rules", 9).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson
import structlog

from lmserver.protocol.canonical_json import JsonObject
from lmserver.storage import evidence
from lmserver.storage.database import Executor
from lmserver.storage.evidence import NewEvidence, StoredEvidence

log = structlog.get_logger(__name__)

KINDS: Final = {
    "altered": "sent an event whose content is not what its hashes say; kept redacted",
    "auth": "appended an event that the auth rules forbid; kept in the list, shown to nobody",
    "bypassed_hub": "sent an event of another server's user that its own signature does not place",
    "fork": "signed two events with the same predecessor",
    "forged_echo": "answered one of our events with another one or with other content",
    "future_state": "gave us, as the state before our join, an event that comes after it",
    "gap": "sent an event whose predecessors it never gave",
    "join_state": "gave us, with our join, another state than its own history says",
    "prev_events": "sent an event that does not have exactly one predecessor",
    "replay": "appended an event again that stands in the list already; shown to nobody",
    "second_create": "sent a second m.room.create",
    "withheld_echo": "named one of our events as accepted and never delivered it",
    "wrong_hub": "sent an event that names another hub",
}
"""Kind to what the hub did, as the end of a sentence that begins with its name."""


class EvidenceLog:
    """Stores, counts and logs cases; the log has one line for each case that was stored."""

    def __init__(
        self, db: Executor, clock: Callable[[], int], count: Callable[[str], None] = lambda kind: None
    ) -> None:
        self._db = db
        self._clock = clock
        self._count = count

    async def hold(self, room_id: str, case: NewEvidence) -> None:
        """Keep one case."""
        stored = await evidence.add(self._db, room_id, case, self._clock())
        self.tell(room_id, case.kind, case.event_id, stored=stored)

    def tell(self, room_id: str, kind: str, event_id: str, *, stored: bool) -> None:
        """A case was met with; `stored` is false for one known before or one too many."""
        self._count(kind)
        if stored:
            log.warning("hub_misbehaved", room_id=room_id, kind=kind, event_id=event_id)


def case_as_json(case: StoredEvidence) -> JsonObject:
    """`event` is what the hub sent, `related` what it contradicts: both with their signatures."""
    return {
        "room_id": case.room_id,
        "hub": case.hub_server,
        "kind": case.kind,
        "detail": case.detail,
        "event_id": case.event_id,
        "received_ts": case.created_ts,
        "event": _parsed(case.pdu),
        "related": None if case.related is None else _parsed(case.related),
    }


def _parsed(data: bytes) -> Any:
    """None for what is no JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
