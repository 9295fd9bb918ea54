"""The federation listener of a hub over real HTTP, and servers that sign their requests to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote

from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from lmserver.accounts.push_rules import PushRules
from lmserver.federation_server.authenticator import ServerAuthenticator
from lmserver.federation_server.edus import EduDispatcher
from lmserver.federation_server.events import EventEndpoints
from lmserver.federation_server.keys import KeyEndpoints
from lmserver.federation_server.membership import MembershipEndpoints
from lmserver.federation_server.timestamps import TimestampEndpoints
from lmserver.federation_server.transactions import TransactionEndpoints
from lmserver.protocol import canonical_json, transport
from lmserver.protocol.signatures import VerifyKey
from lmserver.rooms.invites import Invites
from lmserver.rooms.outsiders import Outsiders
from lmserver.rooms.push.outside_invites import OutsideInvites
from lmserver.rooms.reading import Reading
from lmserver.rooms.timestamps import Timestamps
from lmserver.storage.database import Database
from lmserver.storage.to_device import RemoteMessage
from lmserver.web.app import build_app
from lmserver.web.endpoint import Auth
from lmserver.web.limits import RateLimiter
from tests.kit.engines import StaticVerifier, engine_kit
from tests.kit.rooms import HUB, KEYS, PARTICIPANT, key_of, now

UNSTABLE = "/_matrix/federation/unstable/org.matrix.i-d.ralston-mimi-linearized-matrix.02"


class RemoteUsers:
    """Every user of the hub exists; invites of others are signed by their server at once."""

    async def is_active(self, user_id: str) -> bool:
        return True

    def server_limit(self, origin: str) -> None:
        return None

    async def refusal(self, user_id: str, sender: str) -> None:
        return None

    async def invite(
        self, server: str, version: str, event_id: str, event: dict[str, Any], stripped: list[Any]
    ) -> dict[str, Any]:
        return event


class World:
    def __init__(self, db: Database) -> None:
        self.db = db
        self.kit = engine_kit(db, HUB)
        self.engine = self.kit.engine
        self.alive: list[str] = []
        self.to_device: list[RemoteMessage] = []
        remote: Any = RemoteUsers()
        verifier = self.verifier = StaticVerifier()
        pushes = OutsideInvites(PushRules(db, lambda keys: None).compiled, lambda users: None, now)
        invites = Invites(
            db, key_of(HUB), remote, verifier, self.kit.turns, remote, remote, pushes, lambda keys: None
        )
        self.transactions = TransactionEndpoints(
            db,
            self.engine,
            Outsiders(db, HUB, remote, pushes, lambda keys: None),
            verifier,
            self._settled,
            EduDispatcher(HUB, self._to_device, {}),
            RateLimiter({}),
            now,
        )
        self.membership = MembershipEndpoints(db, self.engine, verifier, invites, RateLimiter({}), now)
        keys = KeyEndpoints(key_of(HUB), {}, self, now, linearized=True)
        nowhere: Any = None
        timestamps = TimestampEndpoints(db, Timestamps(db, Reading(db, now), nowhere, HUB))
        app = build_app(
            [self.transactions, self.membership, EventEndpoints(db, self.engine), keys, timestamps],
            {Auth.SERVER: ServerAuthenticator(HUB, self._keys, self.alive.append)},
        )
        self.http = TestClient(TestServer(app))

    async def __aenter__(self) -> World:
        await self.http.start_server()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.close()
        await self.transactions.close()
        await self.membership.close()
        await self.engine.close()

    async def documents(self, wanted: Mapping[str, int]) -> Mapping[str, list[dict[str, Any]]]:
        return {name: [] for name in wanted}

    async def _keys(self, server: str, key_ids: Iterable[str]) -> Mapping[str, VerifyKey]:
        return KEYS[server]

    async def _settled(self, room_id: str) -> None:
        return None

    async def _to_device(self, origin: str, messages: Any) -> None:
        self.to_device += messages

    async def ask(
        self,
        method: str,
        path: str,
        content: Any = None,
        *,
        origin: str = PARTICIPANT,
        signed: str | None = None,
    ) -> tuple[int, Any]:
        """A request signed by `origin` (for the path `signed`, if given)."""
        header = transport.authorization_header(method, signed or path, HUB, content, key_of(origin))
        body = None if content is None else canonical_json.encode(content)
        url = URL(path, encoded=True)
        async with self.http.request(method, url, data=body, headers={"Authorization": header}) as response:
            return response.status, await response.json()

    async def send(
        self, txn_id: str, pdus: Any, *, origin: str = PARTICIPANT, **more: Any
    ) -> tuple[int, Any]:
        return await self.ask("PUT", f"{UNSTABLE}/send/{txn_id}", {"pdus": pdus, **more}, origin=origin)


def path(*segments: str) -> str:
    return "/".join(quote(segment, safe="") for segment in segments)
