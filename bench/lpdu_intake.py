"""Hub intake: 50-event transactions of LPDUs from one participant, each answered when durable."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

import orjson

from bench.http import Answers, Http
from bench.servers import Measured, free_port
from lmserver.protocol import canonical_json, transport, unpadded_base64
from lmserver.protocol.events import EventDraft, Lpdu
from lmserver.protocol.participant import build_lpdu
from lmserver.protocol.room_versions import LM_02, LM_02_ID
from lmserver.protocol.signatures import SigningKey, sign_json

UNSTABLE = f"/_matrix/federation/unstable/{LM_02_ID}"
BATCH = 50


@dataclass(frozen=True)
class Intake:
    """Events accepted and durable a second, server CPU microseconds an event, events lost."""

    per_second: float
    cpu_us: float
    lost: int


class Participant:
    """A participant server that is nothing but keys and a user."""

    def __init__(self) -> None:
        self.port = free_port()
        self.name = f"localhost:{self.port}"
        self.key = SigningKey.from_seed(self.name, "ed25519:b1", secrets.token_bytes(32))
        self.user = f"@bench:{self.name}"
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        document = {
            "server_name": self.name,
            "valid_until_ts": int(time.time() * 1000) + 3_600_000,
            "m.linearized": True,
            "verify_keys": {self.key.key_id: {"key": unpadded_base64.encode(self.key.verify_key.key_bytes)}},
            "old_verify_keys": {},
        }
        answers = {
            "/_matrix/key/v2/server": orjson.dumps(sign_json(document, self.key)),
            "": b'{"failed_pdus":{}}',
        }
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Answers(answers), "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    def signed(self, method: str, uri: str, hub: str, content: Any) -> tuple[dict[str, str], bytes]:
        header = transport.authorization_header(method, uri, hub, content, self.key)
        body = b"" if content is None else canonical_json.encode(content)
        return {"Authorization": header, "Content-Type": "application/json"}, body

    async def request(
        self, http: Http, hub: Measured, method: str, uri: str, content: Any = None
    ) -> dict[str, Any]:
        headers, body = self.signed(method, uri, hub.name, content)
        status, answer = await http.request(hub.federation_url, method, uri, body, headers)
        if status != 200:
            raise RuntimeError(f"{uri}: {status} {answer[:500]!r}")
        return cast("dict[str, Any]", orjson.loads(answer))

    def draft(
        self,
        room_id: str,
        type_: str,
        content: dict[str, Any],
        state_key: str | None = None,
        sender: str = "",
    ) -> EventDraft:
        return EventDraft(room_id, type_, sender or self.user, content, int(time.time() * 1000), state_key)

    async def join(self, http: Http, hub: Measured, room_id: str) -> None:
        """Bring the server's own user into a room."""
        lpdu = self.lpdu(hub, self.draft(room_id, "m.room.member", {"membership": "join"}, self.user))
        await self.request(http, hub, "POST", f"{UNSTABLE}/send_join/{quote(lpdu.event_id)}", lpdu.fields)

    def lpdu(self, hub: Measured, draft: EventDraft) -> Lpdu:
        return build_lpdu(draft, LM_02, hub.name, self.key)

    async def send(self, http: Http, hub: Measured, pdus: Sequence[Lpdu]) -> dict[str, str]:
        """One transaction; LPDU IDs to the IDs of the accepted events."""
        content = {"pdus": [pdu.fields for pdu in pdus], "edus": []}
        answer = await self.request(http, hub, "PUT", f"{UNSTABLE}/send/{secrets.token_hex(8)}", content)
        return dict(answer["org.lmserver.accepted"])


async def measure(hub: Measured, participant: Participant, room_id: str, transactions: int) -> Intake:
    """Join, prepare signed transactions beforehand, send one after the other, count."""
    async with Http() as http:
        await participant.join(http, hub, room_id)
        prepared = []
        for number in range(transactions):
            pdus = [
                participant.lpdu(
                    hub,
                    participant.draft(room_id, "m.room.message",
                                      {"msgtype": "m.text", "body": f"event {number}/{i}: " + "x" * 300}),
                ).fields
                for i in range(BATCH)
            ]  # fmt: skip
            uri = f"{UNSTABLE}/send/{secrets.token_hex(8)}"
            prepared.append((uri, *participant.signed("PUT", uri, hub.name, {"pdus": pdus, "edus": []})))
        cpu, started, accepted = hub.cpu_seconds(), time.monotonic(), 0
        for uri, headers, body in prepared:
            _, answer = await http.request(hub.federation_url, "PUT", uri, body, headers)
            accepted += len(orjson.loads(answer)["org.lmserver.accepted"])
        elapsed, used = time.monotonic() - started, hub.cpu_seconds() - cpu
        total = transactions * BATCH
        return Intake(total / elapsed, used / total * 1e6, total - accepted)
