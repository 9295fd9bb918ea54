"""History fetched from a room's hub, checked event by event."""

from __future__ import annotations

from lmserver.federation_client.errors import BadResponse, KeysUnavailable, RemoteError, Unreachable
from lmserver.federation_client.room_api import RoomApi
from lmserver.protocol.events import Pdu
from lmserver.protocol.room_versions import room_version
from lmserver.rooms.checking import Verifier, check_pdus
from lmserver.storage import room_log
from lmserver.storage.database import Database


class HubHistory:
    """Backfill from the hub: what comes out is signed, hashed and linked as it should be."""

    def __init__(self, db: Database, api: RoomApi, verifier: Verifier) -> None:
        self._db = db
        self._api = api
        self._verifier = verifier

    async def backfill(self, hub: str, room_id: str, event_id: str, limit: int) -> list[Pdu]:
        """Events up to and including `event_id`, oldest first, as a chain without holes.

        Empty when the hub has no such event or what it answers does not hold; raises
        FederationError when it cannot be asked now.
        """
        row = await room_log.room(self._db, room_id)
        if row is None:
            return []
        try:
            raw = await self._api.backfill(hub, row.room_version, room_id, event_id, limit)
        except (RemoteError, BadResponse) as error:
            if isinstance(error, RemoteError) and (error.status == 429 or error.status >= 500):
                raise
            return []
        checked = await check_pdus(raw, room_version(row.room_version), room_id, self._verifier)
        unknown = next((c for c in checked if isinstance(c, KeysUnavailable)), None)
        if unknown is not None:
            raise Unreachable(str(unknown))
        by_id = {pdu.event_id: pdu for pdu in checked if isinstance(pdu, Pdu)}
        chain: list[Pdu] = []
        # Follow the links rather than trust the order: one known peer sends newest first.
        while (pdu := by_id.pop(event_id, None)) is not None:
            chain.append(pdu)
            event_id = pdu.prev_events[0] if len(pdu.prev_events) == 1 else ""
        return chain[::-1]
