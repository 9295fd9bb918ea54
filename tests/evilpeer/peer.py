"""A server that is nothing but a name, a key and bad intentions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from lmserver.protocol import canonical_json, transport, unpadded_base64
from lmserver.protocol.room_versions import LM_02_ID
from lmserver.protocol.signatures import SigningKey, sign_json
from tests.evilpeer.network import Network
from tests.kit.rooms import key_of

STABLE = "/_matrix/federation"
UNSTABLE = f"/_matrix/federation/unstable/{LM_02_ID}"
FOREVER = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Received:
    """One request to the peer, as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return canonical_json.parse(self.body)


Answer = Callable[[Received], Awaitable[web.StreamResponse]]


class EvilPeer:
    """Serves its key, remembers every request, answers them by `answers` (endpoint name to answer).

    `old_keys` are key ID to (key, when it expired) and stand in its key document.
    """

    def __init__(self, network: Network, name: str) -> None:
        self.name = name
        self.key = key_of(name)
        self.old_keys: dict[str, tuple[SigningKey, int]] = {}
        self.received: list[Received] = []
        self.answers: dict[str, Answer] = {}
        self._network = network
        self._runner: web.ServerRunner | None = None
        self._http: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        self._http = aiohttp.ClientSession()
        self._runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=0.1)
        await self._runner.setup()
        port = self._network.port(self.name)
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._http is not None:
            await self._http.close()

    # -- what others ask of it -------------------------------------------------------------------

    def key_document(self) -> dict[str, Any]:
        document = {
            "server_name": self.name,
            "valid_until_ts": FOREVER,
            "m.linearized": True,
            "verify_keys": {self.key.key_id: {"key": unpadded_base64.encode(self.key.verify_key.key_bytes)}},
            "old_verify_keys": {
                key_id: {"key": unpadded_base64.encode(key.verify_key.key_bytes), "expired_ts": expired}
                for key_id, (key, expired) in self.old_keys.items()
            },
        }
        return sign_json(document, self.key)

    def requests(self, endpoint: str) -> list[Received]:
        """Those whose path has the endpoint's name in it."""
        return [request for request in self.received if f"/{endpoint}/" in request.path]

    async def _serve(self, raw: web.BaseRequest) -> web.StreamResponse:
        request = Received(raw.method, raw.raw_path, dict(raw.headers), await raw.read())
        if request.path == "/_matrix/key/v2/server" and "keys" not in self.answers:
            return web.json_response(self.key_document())
        self.received.append(request)
        segments = request.path.partition("?")[0].split("/")
        for name, answer in self.answers.items():
            if name in segments or (name == "keys" and "key" in segments):
                return await answer(request)
        if "send" in segments:
            return web.json_response({"failed_pdus": {}})
        return web.json_response({"errcode": "M_UNRECOGNIZED", "error": "no"}, status=404)

    # -- what it asks of others ------------------------------------------------------------------

    def authorization(
        self, method: str, path: str, destination: str, body: bytes | None, key: SigningKey | None = None
    ) -> str:
        """A header that is valid for exactly these bytes."""
        return transport.authorization_header_of_body(method, path, destination, body, key or self.key)

    async def ask(
        self, victim: str, method: str, path: str, content: Any = None, *, signed: str | None = None
    ) -> tuple[int, Any]:
        """A request with a valid signature (for the path `signed`, if given)."""
        body = None if content is None else canonical_json.encode(content)
        return await self.ask_raw(
            victim, method, path, body, self.authorization(method, signed or path, victim, body)
        )

    async def ask_raw(
        self, victim: str, method: str, path: str, body: bytes | None, *authorization: str
    ) -> tuple[int, Any]:
        """Any bytes with any headers; the answer must be JSON and never 5xx."""
        if self._http is None:
            raise RuntimeError("the peer is not started")
        url = URL(f"http://127.0.0.1:{self._network.ports[victim]}{path}", encoded=True)
        headers = [("Authorization", value) for value in authorization]
        async with self._http.request(method, url, data=body, headers=headers) as response:
            assert response.status < 500, (path, response.status, await response.text())
            return response.status, await response.json()

    async def send(self, victim: str, txn_id: str, pdus: Any, **more: Any) -> tuple[int, Any]:
        """A transaction."""
        return await self.ask(victim, "PUT", f"{UNSTABLE}/send/{txn_id}", {"pdus": pdus, **more})
