"""A hub that keeps a room in memory, signs with its own key, and answers as dishonestly as a test wants."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from lmserver.protocol import canonical_json
from lmserver.protocol.events import Lpdu, Pdu, parse_lpdu
from lmserver.protocol.room_versions import LM_02, LM_02_ID
from tests.evilpeer.network import Network
from tests.evilpeer.peer import UNSTABLE, EvilPeer, Received
from tests.kit.rooms import HUB, RoomBuilder

Fields = dict[str, Any]


@dataclass
class JoinAnswer:
    """What send_join is answered with."""

    event: Any
    state: Any
    auth_chain: Any


class EvilHub(EvilPeer):
    """`template` is the answer of make_*, `change` alters that of send_join, `joins` what came."""

    def __init__(self, network: Network, name: str = HUB, room: RoomBuilder | None = None) -> None:
        super().__init__(network, name)
        self.room = room or RoomBuilder()
        self.template: Any = {"room_version": LM_02_ID, "event": {}}
        self.change: Callable[[JoinAnswer], JoinAnswer] = lambda answer: answer
        self.joins: list[Lpdu] = []
        self.answers["make_join"] = self._make
        self.answers["make_leave"] = self._make
        self.answers["send_join"] = self._send_join
        self.answers["send_leave"] = self._send_leave

    async def deliver(self, victim: str, txn_id: str, *pdus: Pdu) -> dict[str, Any]:
        """Send events as a hub does; returns `failed_pdus`."""
        status, answer = await self.send(victim, txn_id, [pdu.fields for pdu in pdus])
        assert status == 200, answer
        failed: dict[str, Any] = answer["failed_pdus"]
        return failed

    async def invite(
        self, victim: str, txn_id: str, event: Any, version: Any = LM_02_ID, stripped: Any = ()
    ) -> tuple[int, Any]:
        content = {"event": event, "room_version": version, "invite_room_state": list(stripped)}
        return await self.ask(victim, "POST", f"{UNSTABLE}/invite/{txn_id}", content)

    async def _make(self, request: Received) -> web.StreamResponse:
        return web.json_response(self.template)

    async def _send_join(self, request: Received) -> web.StreamResponse:
        sent = parse_lpdu(request.json, LM_02)
        self.joins.append(sent)
        state = list(self.room.pdus)
        event = self.room.add(sent)
        answer = JoinAnswer(event.fields, [p.fields for p in state], [state[0].fields])
        changed = self.change(copy.deepcopy(answer))
        body = {"event": changed.event, "state": changed.state, "auth_chain": changed.auth_chain}
        return web.Response(body=canonical_json.encode(body), content_type="application/json")

    async def _send_leave(self, request: Received) -> web.StreamResponse:
        return web.json_response({})
