"""Clients of the room endpoints: one aiohttp server, users told apart by their token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import quote

from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from lmserver.client_api.directory import DirectoryEndpoints
from lmserver.client_api.ephemeral import EphemeralEndpoints
from lmserver.client_api.history import HistoryEndpoints
from lmserver.client_api.long_polls import LongPolls
from lmserver.client_api.public_rooms import PublicRoomEndpoints
from lmserver.client_api.relations import RelationEndpoints
from lmserver.client_api.rooms import RoomEndpoints
from lmserver.client_api.send import SendEndpoints
from lmserver.client_api.sync import SyncEndpoints
from lmserver.protocol import ids
from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.events import EventDraft
from lmserver.protocol.room_versions import LM_02_ID
from lmserver.rooms.directory import Directory
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.outcomes import MembershipError, Rejected
from lmserver.rooms.presets import Versions
from lmserver.rooms.public_list import PublicList
from lmserver.storage.database import Database
from lmserver.web.app import build_app
from lmserver.web.endpoint import Auth, Request
from lmserver.web.errors import ApiError
from lmserver.web.limits import RateLimiter
from lmserver.web.request import Requester
from tests.kit.reading_world import NobodyOnline, World

_txn = count(1)
PREFIX = "/_matrix/client/v3"


class LocalMembership:
    """Membership where everybody is local: each change is one event."""

    def __init__(self, engine: RoomEngine, clock: Callable[[], int]) -> None:
        self._engine = engine
        self._clock = clock

    async def _send(
        self, sender: str, room_id: str, target: str, membership: str, reason: str | None
    ) -> None:
        content = {"membership": membership} | ({} if reason is None else {"reason": reason})
        event = EventDraft(room_id, "m.room.member", sender, content, self._clock(), target)
        [outcome] = await self._engine.send([event])
        if isinstance(outcome, Rejected):
            status = 404 if outcome.errcode == "M_NOT_FOUND" else 403
            raise MembershipError(outcome.errcode, status, outcome.reason)

    async def join(self, user_id: str, room_id: str, via: Any = (), reason: str | None = None) -> None:
        await self._send(user_id, room_id, user_id, "join", reason)

    async def knock(self, user_id: str, room_id: str, via: Any = (), reason: str | None = None) -> None:
        await self._send(user_id, room_id, user_id, "knock", reason)

    async def leave(self, user_id: str, room_id: str, reason: str | None = None) -> None:
        view = await self._engine.view(room_id)
        own = None if view is None else view.get("m.room.member", user_id)
        if own is not None and own.content["membership"] == "leave":
            return
        await self._send(user_id, room_id, user_id, "leave", reason)

    async def invite(
        self, sender: str, room_id: str, target: str, reason: str | None = None, *, is_direct: bool = False
    ) -> None:
        await self._send(sender, room_id, target, "invite", reason)

    async def kick(self, sender: str, room_id: str, target: str, reason: str | None = None) -> None:
        await self._send(sender, room_id, target, "leave", reason)

    async def ban(self, sender: str, room_id: str, target: str, reason: str | None = None) -> None:
        await self._send(sender, room_id, target, "ban", reason)

    unban = kick


class MemoryMarkers:
    """Fully-read markers in a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], JsonObject] = {}

    async def get(self, user_id: str, room_id: str, type_: str) -> JsonObject | None:
        return self.rows.get((user_id, room_id, type_))

    async def put(self, user_id: str, room_id: str, type_: str, content: JsonObject) -> None:
        self.rows[user_id, room_id, type_] = content


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any

    @property
    def errcode(self) -> str | None:
        return self.body.get("errcode") if isinstance(self.body, dict) else None


class User:
    """One device of a user."""

    def __init__(self, client: TestClient[Any, Any], user_id: str, device: str) -> None:
        self._client = client
        self.id = user_id
        self._headers = {"Authorization": f"Bearer {user_id}|{device}"}

    async def call(
        self,
        method: str,
        *parts: str,
        body: Any = None,
        raw: bytes | None = None,
        prefix: str = PREFIX,
        **query: Any,
    ) -> Answer:
        """A request; every part of the path is percent-encoded by itself, parts with "/" first
        are taken as they are."""
        path = prefix + "".join(p if p.startswith("/") else "/" + quote(p, safe="") for p in parts)
        url = URL(path, encoded=True).with_query(query) if query else URL(path, encoded=True)
        kwargs: Any = {"data": raw} if raw is not None else {"json": body} if body is not None else {}
        async with self._client.request(method, url, headers=self._headers, **kwargs) as response:
            return Answer(response.status, await response.json())

    async def get(self, *parts: str, **query: Any) -> Answer:
        return await self.call("GET", *parts, **query)

    async def post(self, *parts: str, body: Any = None, **query: Any) -> Answer:
        return await self.call("POST", *parts, body={} if body is None else body, **query)

    async def put(self, *parts: str, body: Any = None, **query: Any) -> Answer:
        return await self.call("PUT", *parts, body={} if body is None else body, **query)

    # -- what tests do all the time -------------------------------------------------------------

    async def create(self, **body: Any) -> str:
        answer = await self.post("/createRoom", body=body)
        assert answer.status == 200, answer
        room_id: str = answer.body["room_id"]
        return room_id

    async def say(self, room_id: str, text: str) -> str:
        answer = await self.put(
            "/rooms",
            room_id,
            "/send/m.room.message",
            f"t{next(_txn)}",
            body={"msgtype": "m.text", "body": text},
        )
        assert answer.status == 200, answer
        event_id: str = answer.body["event_id"]
        return event_id

    async def change(self, room_id: str, what: str, **body: Any) -> Answer:
        """join, leave, invite, kick, ..."""
        return await self.post("/rooms", room_id, "/" + what, body=body)

    async def sync(self, since: str | None = None, **query: str) -> Any:
        if since is not None:
            query["since"] = since
        answer = await self.get("/sync", **query)
        assert answer.status == 200, answer
        return answer.body


class RoomServer:
    """The endpoints of this part of the client API and nothing else."""

    def __init__(self, db: Database) -> None:
        self.world = World(db)
        world = self.world
        membership: Any = LocalMembership(world.engine, world.clock)
        self.markers = MemoryMarkers()
        receipts = world.receipts(self.markers)
        listing = PublicList(db)
        directory = Directory(db, world.engine, world.clock, listing.changed, world.notifier.publish)
        nowhere: Any = None
        self.filters: dict[tuple[str, str], JsonObject] = {}
        nobody: Any = NobodyOnline()
        self.endpoints = [
            RoomEndpoints(
                db,
                world.engine,
                membership,
                directory,
                _no_profile,
                RateLimiter({}),
                world.clock,
                Versions(LM_02_ID),
                _nothing,
                _always,
            ),
            SendEndpoints(world.engine, world.reading, world.typing, directory, world.clock),
            HistoryEndpoints(db, world.reading, world.backfill),
            RelationEndpoints(db, world.reading),
            SyncEndpoints(world.service, self._filter, nobody, LongPolls(_authenticate, world.clock)),
            EphemeralEndpoints(world.reading, world.typing, receipts),
            DirectoryEndpoints(db, directory, world.reading, all_local=False),
            PublicRoomEndpoints(db, directory, listing, nowhere, world.engine.our_name),
        ]
        app = build_app(
            self.endpoints, {Auth.USER: _authenticate, Auth.OPTIONAL_USER: _authenticate}, cors=True
        )
        self.client: TestClient[Any, Any] = TestClient(TestServer(app))

    async def _filter(self, user_id: str, filter_id: str) -> JsonObject | None:
        return self.filters.get((user_id, filter_id))

    async def start(self) -> None:
        await self.client.start_server()

    def user(self, name: str, device: str = "D") -> User:
        return User(self.client, f"@{name}:hub.test", device)

    async def close(self) -> None:
        await self.client.close()
        await self.world.close()


async def _authenticate(request: Request) -> None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    user_id, _, device = token.partition("|")
    if scheme != "Bearer" or not ids.is_user_id(user_id):
        raise ApiError(401, "M_MISSING_TOKEN", "Missing access token")
    request.requester = Requester(user_id, device)


async def _nothing(user_id: str, room_id: str) -> None:
    """Nothing follows a join."""


async def _always(user_id: str, room_id: str) -> bool:
    return True


async def _no_profile(user_id: str) -> dict[str, Any]:
    return {"displayname": ids.localpart_of(user_id).title()}
