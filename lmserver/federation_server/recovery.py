"""What a hub that was restored asks its participants: which events of its own they kept.

Our own extension (drill D15): the draft's endpoints start from an event one knows, and a restored
hub does not know what it lacks. A server is told only of rooms that it orders itself.
"""

from __future__ import annotations

from typing import Any

from lmserver.federation_server.event_lists import wire_list
from lmserver.federation_server.paths import RECOVERY
from lmserver.protocol import ids
from lmserver.protocol.room_versions import room_version
from lmserver.storage import holds, room_log
from lmserver.storage.database import Database
from lmserver.web.endpoint import Auth, Reply, Request, endpoint
from lmserver.web.errors import bad_param, not_found

MAX_ROOMS = 1000
MAX_EVENTS = 100
MAX_LANDMARKS = 30
_RATE = "federation_events"


class RecoveryEndpoints:
    """heads and tail."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @endpoint("GET", RECOVERY + "/heads", auth=Auth.SERVER, rate=_RATE)
    async def heads(self, request: Request) -> dict[str, Any]:
        """The head we have of each room the asking server orders, a page from beyond `from`."""
        after = request.query.get("from", "")
        if "\0" in after or len(after) > ids.MAX_LENGTH:
            raise bad_param("from is not a room ID")
        found = await holds.heads_of_hub(self._db, request.origin, after, MAX_ROOMS)
        more = {"next": found[-1][0]} if len(found) == MAX_ROOMS else {}
        return {"heads": dict(found), **more}

    @endpoint("GET", RECOVERY + "/tail/{room_id}", auth=Auth.SERVER, rate=_RATE)
    async def tail(self, request: Request) -> Reply:
        """Our list behind the newest of the events `after` that we know, oldest first; with those we
        soft-failed, because they are links of the asking hub's own chain."""
        room_id = request.params["room_id"]
        after = request.query.getall("after", [])
        limit = request.query.get("limit", "")
        if not after or len(after) > MAX_LANDMARKS or not all(ids.is_event_id(e) for e in after):
            raise bad_param("after is a list of event IDs")
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 5 and int(limit) > 0):
            raise bad_param("limit is a positive integer")
        row = await room_log.room(self._db, room_id) if ids.is_room_id(room_id) else None
        if row is None or row.hub_server != request.origin:
            raise not_found("Room not known")
        first = await holds.position_after(self._db, room_id, after)
        if first is None:
            raise not_found("None of the events is known")
        events = await room_log.events_between(
            self._db, room_id, first - 1, row.head_position, min(int(limit), MAX_EVENTS), newest_first=False
        )
        return Reply(200, b'{"pdus":' + wire_list(events, room_version(row.room_version)) + b"}")
