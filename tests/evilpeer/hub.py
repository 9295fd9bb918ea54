"""A hub that keeps a room in memory, signs with its own key, and answers as dishonestly as a test wants."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from yarl import URL

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
    """`template` is the answer of make_*, `change` alters that of send_join, `joins` what came.

    An LPDU that is sent to it is appended once and kept in `taken`; `names` says whether the answer
    names its event, `shows` whether GET event and backfill show the room.
    """

    def __init__(self, network: Network, name: str = HUB, room: RoomBuilder | None = None) -> None:
        super().__init__(network, name)
        self.room = room or RoomBuilder()
        self.template: Any = {"room_version": LM_02_ID, "event": {}}
        self.change: Callable[[JoinAnswer], JoinAnswer] = lambda answer: answer
        self.joins: list[Lpdu] = []
        self.taken: list[Lpdu] = []
        self.names = True
        self.shows = True
        self.answers["send"] = self._send
        self.answers["event"] = self._event
        self.answers["backfill"] = self._backfill
        self.answers["make_join"] = self._make
        self.answers["make_leave"] = self._make
        self.answers["make_knock"] = self._make
        self.answers["send_join"] = self._send_join
        self.answers["send_knock"] = self._send_leave
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

    def echo_of(self, lpdu: Lpdu) -> Pdu:
        """The event that stands in the room for an LPDU."""
        return next(pdu for pdu in self.room.pdus if pdu.lpdu_hash == lpdu.lpdu_hash)

    async def _send(self, request: Received) -> web.StreamResponse:
        named: dict[str, str] = {}
        for item in request.json.get("pdus", []):
            sent = parse_lpdu(item, LM_02)
            if all(pdu.lpdu_hash != sent.lpdu_hash for pdu in self.room.pdus):
                self.room.add(sent)
            self.taken.append(sent)
            named[sent.event_id] = self.echo_of(sent).event_id
        body = {"failed_pdus": {}, **({"org.lmserver.accepted": named} if self.names else {})}
        return web.json_response(body)

    async def _event(self, request: Received) -> web.StreamResponse:
        event_id = unquote(request.path.rpartition("/")[2])
        found = [pdu for pdu in self.room.pdus if pdu.event_id == event_id]
        if not found or not self.shows:
            return web.json_response({"errcode": "M_NOT_FOUND", "error": "no"}, status=404)
        return web.Response(body=found[0].canonical, content_type="application/json")

    async def _backfill(self, request: Received) -> web.StreamResponse:
        query = URL(request.path, encoded=True).query
        ids = [pdu.event_id for pdu in self.room.pdus]
        if query["v"] not in ids or not self.shows:
            return web.json_response({"errcode": "M_NOT_FOUND", "error": "no"}, status=404)
        end = ids.index(query["v"]) + 1
        page = self.room.pdus[max(0, end - int(query["limit"])) : end]
        body = canonical_json.encode({"pdus": [pdu.fields for pdu in page]})
        return web.Response(body=body, content_type="application/json")

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
