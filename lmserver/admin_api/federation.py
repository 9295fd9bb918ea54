"""Other servers: what waits for them, whom we have nothing to do with, and what hubs can be caught at."""

from __future__ import annotations

from typing import Any, Final

from lmserver.admin_api import parameters as p
from lmserver.admin_api.paging import next_token, page_of
from lmserver.admin_api.parameters import OWN, SYNAPSE
from lmserver.federation_client.blocked import BlockedServers
from lmserver.federation_client.sender import Sender
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.evidence import case_as_json
from lmserver.storage import destination_list, evidence, holds
from lmserver.storage.database import Database
from lmserver.storage.destination_list import DestinationQuery, ListedDestination
from lmserver.storage.list_page import ListPage
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, not_found

DESTINATIONS = SYNAPSE + "/v1/federation/destinations"
_ORDERS: Final = {
    "destination": "destination", "failure_ts": "failing_since", "retry_last_ts": "failing_since",
    "retry_interval": "retry_at", "last_successful_stream_ordering": "destination",
}  # fmt: skip


class FederationEndpoints:
    """Servers we send to, and servers that are blocked."""

    def __init__(self, db: Database, sender: Sender, blocked: BlockedServers) -> None:
        self._db = db
        self._sender = sender
        self._blocked = blocked

    @endpoint("GET", DESTINATIONS, auth=Auth.ADMIN)
    async def destinations(self, request: Request) -> JsonObject:
        """Servers in pages, with how sending goes and, in `org.lmserver.backlog`, what waits for each."""
        order = p.choice(request, "order_by", "destination", frozenset(_ORDERS))
        query = DestinationQuery(
            p.text(request, "destination"),
            p.flag(request, "failing") is True,
        )
        part = page_of(request, _ORDERS[order])
        found = await destination_list.page(self._db.patient(), query, part)
        total = await destination_list.count(self._db, query)
        return {
            "destinations": [self._shown(d) for d in found],
            "total": total,
            **next_token(part.start, part.limit, total),
        }

    @endpoint("GET", DESTINATIONS + "/{destination}", auth=Auth.ADMIN)
    async def destination(self, request: Request) -> JsonObject:
        """One server."""
        name = await self._known(request)
        part = ListPage("destination", limit=p.MAX_PAGE)
        found = await destination_list.page(self._db, DestinationQuery(name), part)
        shown = [self._shown(d) for d in found if d.destination == name]
        if not shown:
            raise not_found("Nothing was ever sent to this server")
        return shown[0]

    @endpoint("GET", DESTINATIONS + "/{destination}/rooms", auth=Auth.ADMIN)
    async def rooms(self, request: Request) -> JsonObject:
        """The rooms whose list a server gets from us, and how far it has taken each."""
        name, start, limit = await self._known(request), p.number(request, "from", 0), p.limit(request)
        found = await destination_list.rooms(self._db, name, start, limit)
        total = await destination_list.count_rooms(self._db, name)
        return {
            "rooms": [
                {
                    "room_id": room.room_id,
                    "stream_ordering": room.acked_position,
                    "org.lmserver.head_position": room.head_position,
                }
                for room in found
            ],
            "total": total,
            **next_token(start, limit, total),
        }

    @endpoint("POST", DESTINATIONS + "/{destination}/reset_connection", auth=Auth.ADMIN)
    async def reset_connection(self, request: Request) -> JsonObject:
        """Try a server now, however long it was to be left alone."""
        await self._sender.retry_now(await self._known(request))
        return {}

    async def _known(self, request: Request) -> str:
        name = p.server(request, "destination")
        if not await destination_list.exists(self._db, name):
            raise not_found("Nothing was ever sent to this server")
        return name

    def _shown(self, d: ListedDestination) -> dict[str, Any]:
        return {
            "destination": d.destination,
            "failure_ts": d.failing_since or None,
            "retry_last_ts": d.failing_since,
            "retry_interval": max(0, d.retry_at - d.failing_since) if d.failing_since else 0,
            "last_successful_stream_ordering": None,
            "org.lmserver.retry_at": d.retry_at,
            "org.lmserver.failures": d.failures,
            "org.lmserver.last_failure": d.last_failure,
            "org.lmserver.blocked": d.destination in self._blocked,
            "org.lmserver.backlog": {
                "rooms": d.rooms,
                "events": d.events,
                "messages": d.messages,
                "edus": d.edus,
            },
        }

    # -- blocked servers ------------------------------------------------------------------------

    @endpoint("GET", OWN + "/blocked_servers", auth=Auth.ADMIN)
    async def blocked(self, request: Request) -> JsonObject:
        """Servers we have nothing to do with; those of the configuration apart."""
        return {
            "configured": sorted(self._blocked.configured),
            "blocked": [
                {
                    "server": b.server,
                    "blocked_by": b.blocked_by,
                    "reason": b.reason,
                    "blocked_ts": b.created_ts,
                }
                for b in await self._blocked.listed()
            ],
        }

    @endpoint("PUT", OWN + "/blocked_servers/{server_name}", auth=Auth.ADMIN)
    async def block(self, request: Request) -> JsonObject:
        """Have nothing more to do with a server."""
        name, body = p.server(request), await request.json_or_empty()
        reason = p.of_body(body, "reason", str) or ""
        await self._blocked.block(name, request.requester.user_id, reason)
        return {}

    @endpoint("DELETE", OWN + "/blocked_servers/{server_name}", auth=Auth.ADMIN)
    async def unblock(self, request: Request) -> JsonObject:
        """Deal with a server again, and send it what waits."""
        name = p.server(request)
        if name in self._blocked.configured:
            raise ApiError(400, "M_UNKNOWN", "The configuration blocks this server")
        if not await self._blocked.unblock(name):
            raise not_found("The server is not blocked")
        await self._sender.retry_now(name)
        return {}


class HubEndpoints:
    """What is held against rooms' hubs, and rooms that wait for their newest events."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @endpoint("GET", OWN + "/evidence", auth=Auth.ADMIN)
    async def evidence(self, request: Request) -> JsonObject:
        """What hubs did that the protocol forbids, with the signed events that prove it, the newest first."""
        room_id, start, limit = p.text(request, "room_id"), p.number(request, "from", 0), p.limit(request)
        found = await evidence.page(self._db, room_id, start, limit)
        answer: JsonObject = {"evidence": [case_as_json(case) for case in found]}
        return {**answer, "next_token": str(start + limit)} if len(found) == limit else answer

    @endpoint("GET", OWN + "/held_rooms", auth=Auth.ADMIN)
    async def held_rooms(self, request: Request) -> JsonObject:
        """Rooms that may be read and not written to, after a restore."""
        found = await holds.held(self._db)
        return {"rooms": [{"room_id": room.room_id, "hold": room.hold} for room in found]}

    @endpoint("POST", OWN + "/held_rooms/{room_id}/release", auth=Auth.ADMIN)
    async def release(self, request: Request) -> JsonObject:
        """Let a held room be written to as it is; what is lost of it stays lost."""
        if not await holds.release(self._db, p.room_id(request), decided=True):
            raise not_found("The room is not held")
        return {}
