"""Events, state and history for other servers (D04 §Event and State APIs).

An event has to be in the room that is asked about, and known to the asking server, before
anything is looked up for it (attacks B15 to B17). LPDUs are never stored as events, so none can
be served.
"""

from __future__ import annotations

from typing import Any

from lmserver.federation_server.event_lists import chain_ids, cited_by, state_answer, state_pieces, wire
from lmserver.federation_server.paths import STABLE, UNSTABLE
from lmserver.federation_server.rooms_known import hub_view
from lmserver.federation_server.server_view import ServerView, hides_state_entry, server_view
from lmserver.protocol import ids
from lmserver.protocol.room_versions import RoomVersion, room_version
from lmserver.rooms.engine import RoomEngine
from lmserver.storage import room_log
from lmserver.storage.database import Database
from lmserver.storage.room_log import RoomRow, StoredEvent
from lmserver.web.endpoint import Auth, Reply, Request, Streamed, endpoint
from lmserver.web.errors import bad_param, missing_param, not_found

MAX_BACKFILL = 100
_RATE = "federation_events"
_AT_ONCE = 4


class EventEndpoints:
    """event, state, state_ids and backfill."""

    def __init__(self, db: Database, engine: RoomEngine) -> None:
        self._db = db
        self._engine = engine

    @endpoint("GET", STABLE + "/v2/event/{event_id}", UNSTABLE + "/event/{event_id}",
              auth=Auth.SERVER, rate=_RATE)  # fmt: skip
    async def event(self, request: Request) -> Reply:
        """The bare event; hub and participants answer alike."""
        event_id = request.params["event_id"]
        stored = await room_log.event(self._db, event_id) if ids.is_event_id(event_id) else None
        row = None if stored is None else await room_log.room(self._db, stored.room_id)
        if stored is None or row is None:
            raise not_found("Event not found")
        view = await server_view(self._db, row, request.origin)
        if not view.knows(stored):
            raise not_found("Event not found")
        if stored.position is None:
            hide = await hides_state_entry(self._db, view, stored)
        else:
            hide = view.hides(stored)
        return Reply(200, wire(stored, room_version(row.room_version), hide=hide))

    @endpoint("GET", STABLE + "/v1/state/{room_id}", UNSTABLE + "/state/{room_id}",
              auth=Auth.SERVER, rate=_RATE, at_once=_AT_ONCE)  # fmt: skip
    async def state(self, request: Request) -> Streamed:
        """The state before an event, and what authorizes it; answered by the hub alone."""
        at, view, version = await self._moment(request)

        def hiding(event: StoredEvent) -> bytes:
            return wire(event, version, hide=view.hides(event))

        def whole(event: StoredEvent) -> bytes:
            return wire(event, version, hide=view.erases(event))

        # Who may see the event may see the state it was sent into, however old that is.
        show = hiding if view.hides(at) else whole
        return state_answer(self._db, at.room_id, _position(at), b"{", "pdus", show, hiding)

    @endpoint("GET", STABLE + "/v1/state_ids/{room_id}", UNSTABLE + "/state_ids/{room_id}",
              auth=Auth.SERVER, rate=_RATE, at_once=_AT_ONCE)  # fmt: skip
    async def state_ids(self, request: Request) -> dict[str, Any]:
        """The same, event IDs only."""
        at, _, _ = await self._moment(request)
        found: list[str] = []
        cited: set[str] = set()
        async for piece in state_pieces(self._db, at.room_id, _position(at)):
            found += [event.event_id for event in piece]
            cited |= cited_by(piece)
        return {"auth_chain_ids": await chain_ids(self._db, at.room_id, cited), "pdu_ids": found}

    async def _moment(self, request: Request) -> tuple[StoredEvent, ServerView, RoomVersion]:
        room = await hub_view(self._engine, request.params["room_id"])
        at, view = await self._known(request, await room_log.room(self._db, room.room_id), "event_id")
        return at, view, room.version

    @endpoint("GET", STABLE + "/v2/backfill/{room_id}", UNSTABLE + "/backfill/{room_id}",
              auth=Auth.SERVER, rate=_RATE, at_once=_AT_ONCE)  # fmt: skip
    async def backfill(self, request: Request) -> Reply:
        """Events up to and including `v`, oldest first."""
        limit = request.query.get("limit", "")
        if not (limit.isascii() and limit.isdecimal() and 0 < len(limit) < 10 and int(limit) > 0):
            raise bad_param("limit is a positive integer")
        room_id = request.params["room_id"]
        row = await room_log.room(self._db, room_id) if ids.is_room_id(room_id) else None
        if row is None:
            raise not_found("Room not known")
        at, view = await self._known(request, row, "v")
        last = _position(at)
        found = await room_log.events_between(
            self._db,
            room_id,
            max(last - min(int(limit), MAX_BACKFILL), row.min_position - 1),
            last,
            min(int(limit), MAX_BACKFILL),
            newest_first=True,
        )
        chain: list[StoredEvent] = []
        for event in found:
            if not view.knows(event) or event.position != last - len(chain):
                break  # what follows a hole could not be linked to the rest
            chain.append(event)
        return Reply(200, b'{"pdus":' + _shown(chain[::-1], room_version(row.room_version), view) + b"}")

    async def _known(
        self, request: Request, room: RoomRow | None, name: str
    ) -> tuple[StoredEvent, ServerView]:
        """The event a query parameter names, if it has a place in this room and the server knows it."""
        event_id = request.query.get(name)
        if event_id is None:
            raise missing_param(f"{name} is missing")
        if room is None or not ids.is_event_id(event_id):
            raise not_found("Event not found")
        view = await server_view(self._db, room, request.origin)
        stored = await room_log.event(self._db, event_id, room.room_id)
        if stored is None or stored.position is None or not view.knows(stored):
            raise not_found("Event not found")
        return stored, view


def _position(event: StoredEvent) -> int:
    if event.position is None:
        raise not_found("Event not found")
    return event.position


def _shown(events: list[StoredEvent], version: RoomVersion, view: ServerView) -> bytes:
    return b"[" + b",".join(wire(event, version, hide=view.hides(event)) for event in events) + b"]"
