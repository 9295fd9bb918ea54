"""History fetched from a room's hub, checked event by event."""

from __future__ import annotations

from collections.abc import Sequence

from lmserver.federation_client.errors import BadResponse, RemoteError
from lmserver.federation_client.room_api import RoomApi
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.events import Pdu
from lmserver.protocol.room_versions import room_version
from lmserver.rooms.checking import Verifier, judge_pdus
from lmserver.storage import room_log
from lmserver.storage.database import Database


class HubHistory:
    """Backfill from the hub: what comes out is signed, hashed and linked as it should be."""

    def __init__(self, db: Database, api: RoomApi, verifier: Verifier) -> None:
        self._db = db
        self._api = api
        self._verifier = verifier

    async def past(self, hub: str, room_id: str, event_id: str, limit: int) -> list[tuple[Pdu, bool]]:
        """Events up to and including `event_id`, oldest first, as a chain without holes, each with
        whether its signatures hold: those that do not, or cannot be checked now, stand in their
        places all the same, because links are proven by IDs.

        Empty when the hub has no such event or what it answers does not hold; raises
        FederationError when it cannot be asked now.
        """
        judged = await self._judged(hub, room_id, event_id, limit)
        return _chain([(pdu, error is None) for pdu, error in judged], event_id)

    async def _judged(
        self, hub: str, room_id: str, event_id: str, limit: int
    ) -> list[tuple[Pdu, ProtocolError | None]]:
        row = await room_log.room(self._db, room_id)
        if row is None:
            return []
        try:
            raw = await self._api.backfill(hub, row.room_version, room_id, event_id, limit)
        except (RemoteError, BadResponse) as error:
            if isinstance(error, RemoteError) and (error.status == 429 or error.status >= 500):
                raise
            return []
        judged = await judge_pdus(raw, room_version(row.room_version), room_id, self._verifier)
        return [(pdu, error) for pdu, error in judged if pdu is not None]


def _chain(pdus: Sequence[tuple[Pdu, bool]], event_id: str) -> list[tuple[Pdu, bool]]:
    """From the event backwards, oldest first. The links count and not the order: one known peer
    sends newest first."""
    by_id = {pdu.event_id: (pdu, good) for pdu, good in pdus}
    chain: list[tuple[Pdu, bool]] = []
    while (found := by_id.pop(event_id, None)) is not None:
        chain.append(found)
        event_id = found[0].prev_events[0] if len(found[0].prev_events) == 1 else ""
    return chain[::-1]
