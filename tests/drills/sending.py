"""A hub in this process with a clock of its own, and peers that note every transaction they are sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from lmserver.protocol import canonical_json
from lmserver.protocol.events import parse_pdu
from lmserver.protocol.room_versions import LM_02
from lmserver.storage import destinations
from lmserver.storage.destinations import FailingDestination
from tests.evilpeer.network import Network
from tests.evilpeer.peer import EvilPeer, Received
from tests.kit.clock import HOUR, Clock
from tests.kit.faultproxy import FaultProxy
from tests.kit.federation import Node
from tests.kit.rooms import BOB, EVIL, HUB, MALLORY, PARTICIPANT, ROOM, lpdu, member, opening
from tests.kit.waiting import HANGS, eventually

Answer = Callable[[], Awaitable[web.StreamResponse]]


async def taken() -> web.StreamResponse:
    return web.json_response({"failed_pdus": {}})


class Peer(EvilPeer):
    """Gives the next of `plan`, and when that is empty `then`."""

    def __init__(self, network: Network, name: str) -> None:
        super().__init__(network, name)
        self.plan: list[Answer] = []
        self.then: Answer = taken
        self.transactions: list[tuple[str, bytes]] = []
        self.taken: list[tuple[str, bytes]] = []
        self._seen: set[tuple[str, bytes]] = set()
        self._events: list[str] = []
        self.answers["send"] = self._send

    async def _send(self, request: Received) -> web.StreamResponse:
        transaction = request.path.rpartition("/")[2], request.body
        self.transactions.append(transaction)
        answer = self.plan.pop(0) if self.plan else self.then
        response = await answer()
        if answer is taken:
            if transaction not in self._seen:
                self._seen.add(transaction)
                pdus = canonical_json.parse_object(request.body)["pdus"]
                self._events += [parse_pdu(pdu, LM_02).event_id for pdu in pdus]
            self.taken.append(transaction)
        return response

    def events(self) -> list[str]:
        """What was taken, in order, each transaction once."""
        return list(self._events)


class Stage:
    """A hub and two peers in ROOM; the first is reached through a proxy."""

    def __init__(self, dsn: str, folder: Path) -> None:
        network = Network()
        self.clock = Clock()
        self.hub = Node(HUB, dsn, network, folder)
        self.hub.clock = self.clock
        self.peer = Peer(network, PARTICIPANT)
        self.other = Peer(network, EVIL)
        self.proxy = FaultProxy(0)
        self._network = network

    async def __aenter__(self) -> Stage:
        for part in (self.peer, self.other, self.hub):
            await part.start()
        self.proxy.target = self._network.ports[PARTICIPANT]
        await self.proxy.start()
        self._network.ports[PARTICIPANT] = self.proxy.port
        await self.hub.server.engine.create(LM_02, opening())
        joins = [lpdu(member("join", sender=user)) for user in (BOB, MALLORY)]
        await self.hub.server.engine.accept_lpdus(ROOM, joins)
        await self.delivered(self.peer, (await self.hub.chain(ROOM))[-1:])
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.hub.stop()
        await self.proxy.stop()
        for peer in (self.peer, self.other):
            await peer.stop()

    async def failing(self) -> FailingDestination | None:
        found = [f for f in await destinations.failing(self.hub.db, 10) if f.destination == PARTICIPANT]
        return found[0] if found else None

    async def failed(self, times: int) -> FailingDestination:
        """Wait until the peer has failed so often in a row."""

        async def often() -> bool:
            found = await self.failing()
            return found is not None and found.failures >= times

        await eventually(often)
        found = await self.failing()
        assert found is not None
        return found

    def leave(self) -> None:
        """The peer is away: every connection to it is reset."""
        self.proxy.faults.refuse = True
        self.proxy.cut()

    def try_again(self, after: int = 2 * HOUR) -> None:
        """Let the pause pass, and say so."""
        self.clock.pass_(after)
        self.hub.server.sender.wake([PARTICIPANT])

    async def settled(self) -> None:
        """Wait until the hub has heard that the peer took what it failed to take before: the peer has it
        earlier."""

        async def none_failing() -> bool:
            return await self.failing() is None

        await eventually(none_failing)

    async def delivered(self, peer: Peer, events: list[str], seconds: float = HANGS) -> None:
        async def all_there() -> bool:
            return set(events) <= set(peer.events())

        await eventually(all_there, seconds)


def in_order_once(received: list[str], sent: list[str]) -> bool:
    """Whether what was sent was received, each once and in its order."""
    wanted = set(sent)
    return [event for event in received if event in wanted] == sent and max(Counter(received).values()) == 1
