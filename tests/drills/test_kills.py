"""D2 and D3 with real processes: a server killed while it sends, a server killed before it could answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest
from aiohttp import web

from lmserver.protocol import canonical_json
from lmserver.protocol.events import EventDraft, Pdu, parse_pdu
from lmserver.protocol.participant import build_lpdu
from lmserver.protocol.room_versions import LM_02, LM_02_ID
from tests.drills.long import rounds
from tests.evilpeer.hub import EvilHub
from tests.evilpeer.network import Network
from tests.evilpeer.peer import UNSTABLE, EvilPeer, Received
from tests.kit.databases import dsn_of, execute
from tests.kit.faultproxy import FaultProxy
from tests.kit.processes import ServerProcess, configure, free_port, lmserver
from tests.kit.rooms import RoomBuilder, draft, member, message, now
from tests.kit.users import User, register
from tests.kit.waiting import HANGS, eventually

KILLS = rounds(3, 20)
MESSAGES = 30 * KILLS


def localhost(network: Network) -> str:
    """The name of a server on a free port of loopback, which `network` knows."""
    port = free_port()
    name = f"localhost:{port}"
    network.ports[name] = port
    return name


def plain(folder: Path, label: str, network: Network, *peers: str) -> ServerProcess:
    """A server that speaks plain HTTP with these peers."""
    server = configure(folder, label, federation={
        "tls_certificate": None, "tls_private_key": None, "ca_file": None, "plain_http_servers": list(peers)})  # fmt: skip
    network.ports[server.name] = int(server.name.rpartition(":")[2])
    return server


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


# -- D2 -------------------------------------------------------------------------------------------


class Recorder:
    """A participant that is slow, and notes every transaction that reaches it."""

    def __init__(self, peer: EvilPeer) -> None:
        self.peer = peer
        self.answered: set[str] = set()
        self.in_flight: set[str] = set()
        self.lost: set[str] = set()
        self.wrong: list[str] = []
        self.bodies: dict[str, bytes] = {}
        peer.answers["send"] = self._take

    async def _take(self, request: Received) -> web.StreamResponse:
        txn_id = request.path.rpartition("/")[2]
        if self.in_flight - {txn_id} - self.lost:
            self.wrong.append(f"{txn_id} while {self.in_flight} was in flight")
        if self.bodies.setdefault(txn_id, request.body) != request.body:
            self.wrong.append(f"{txn_id} came with other bytes")
        if self.lost - {txn_id}:
            self.wrong.append(f"{txn_id} before {self.lost} was answered")
        self.lost.discard(txn_id)
        self.in_flight.add(txn_id)
        try:
            await asyncio.sleep(random.uniform(0.01, 0.06))
        finally:
            self.in_flight.discard(txn_id)
        self.answered.add(txn_id)
        return web.json_response({"failed_pdus": {}})

    async def busy(self, transactions: int) -> None:
        """Return in the middle of one, when so many more have been answered."""
        goal = len(self.answered) + transactions
        async with asyncio.timeout(HANGS):
            while len(self.answered) < goal or not self.in_flight:
                await asyncio.sleep(0.002)

    def messages(self) -> list[str]:
        """The bodies of all messages, by transaction in the order of arrival."""
        pdus = [p for body in self.bodies.values() for p in canonical_json.parse_object(body)["pdus"]]
        events = [parse_pdu(pdu, LM_02) for pdu in pdus]
        return [e.content["body"] for e in events if e.type == "m.room.message"]


async def join(peer: EvilPeer, server: ServerProcess, room_id: str) -> None:
    user = f"@watcher:{peer.name}"
    event = EventDraft(room_id, "m.room.member", user, {"membership": "join"}, now(), user)
    lpdu = build_lpdu(event, LM_02, server.name, peer.key)
    status, answer = await peer.ask(
        server.name, "POST", f"{UNSTABLE}/send_join/{quote(lpdu.event_id)}", lpdu.fields
    )
    assert status == 200, answer


async def talk(alice: User, room: str, sent: list[str]) -> None:
    """Send until all is said; what was not answered is repeated under its transaction ID."""
    for number in range(MESSAGES):
        text = f"message {number}"
        while True:
            try:
                path = f"{room}/send/m.room.message/t{number}"
                status, _ = await alice.call("PUT", path, {"msgtype": "m.text", "body": text})
                if status == 200:
                    break
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(0.05)
        sent.append(text)
        await asyncio.sleep(0.02)


async def fan_out_with_kills(
    tmp_path: Path, http: aiohttp.ClientSession, *, forget: bool
) -> tuple[Recorder, list[str]]:
    """Kill the hub while it sends; `forget` loses what it was sending, as a wrong sender would."""
    network, sent = Network(), []
    peer = EvilPeer(network, localhost(network))
    recorder = Recorder(peer)
    server = plain(tmp_path, "hub", network, peer.name)
    await peer.start()
    try:
        await server.start()
        alice = await register(http, server, "alice")
        room_id = (await alice.ok("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]
        await join(peer, server, room_id)
        talking = asyncio.create_task(talk(alice, f"/rooms/{quote(room_id)}", sent))
        for _ in range(KILLS):
            await recorder.busy(3)
            dsn = dsn_of(server)
            server.kill()
            recorder.lost |= recorder.in_flight
            if forget:
                await execute(dsn, "DELETE FROM outbound_transactions")
            await server.start()
        await talking
        await eventually(lambda: _has(recorder, sent[-1]), 4 * HANGS)
    finally:
        server.stop()
        await peer.stop()
    return recorder, sent


async def _has(recorder: Recorder, text: str) -> bool:
    return text in recorder.messages()


async def test_d2_killed_while_sending_every_event_arrives_once_with_the_same_bytes(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    recorder, sent = await fan_out_with_kills(tmp_path, http, forget=False)
    assert recorder.wrong == []
    assert recorder.messages() == sent
    done = lmserver("verify", "--config", str(tmp_path / "hub.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


async def test_d2_control_a_sender_that_forgets_is_noticed(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    recorder, sent = await fan_out_with_kills(tmp_path, http, forget=True)
    assert recorder.wrong != []
    assert recorder.messages() != sent


# -- D3 -------------------------------------------------------------------------------------------


async def participant_of(
    tmp_path: Path, http: aiohttp.ClientSession
) -> tuple[ServerProcess, EvilHub, FaultProxy, str]:
    """A participant process in a room of a hub that reaches it through a proxy."""
    network = Network()
    name = localhost(network)
    alice, room_id = f"@alice:{name}", f"!room:{name}"
    opening = [
        draft("m.room.create", {"room_version": LM_02_ID}, sender=alice, state_key="", room_id=room_id),
        member("join", sender=alice, room_id=room_id),
        draft("m.room.join_rules", {"join_rule": "public"}, sender=alice, state_key="", room_id=room_id),
    ]
    evil = EvilHub(network, name, RoomBuilder(opening))
    server = plain(tmp_path, "participant", network, name)
    proxy = FaultProxy(network.ports[server.name])
    await evil.start()
    await server.start()
    await proxy.start()
    network.ports[server.name] = proxy.port
    bob = await register(http, server, "bob")
    await bob.ok("POST", f"/join/{quote(room_id)}", {})
    return server, evil, proxy, room_id


async def stored(server: ServerProcess, room_id: str) -> Counter[str]:
    db = await asyncpg.connect(dsn_of(server))
    rows = await db.fetch("SELECT event_id FROM events WHERE room_id = $1 AND position IS NOT NULL", room_id)
    await db.close()
    return Counter(row["event_id"] for row in rows)


@pytest.mark.parametrize("loses", [False, True], ids=["d3", "control"])
async def test_d3_killed_before_it_could_answer_a_participant_has_each_event_once(
    tmp_path: Path, http: aiohttp.ClientSession, loses: bool
) -> None:
    """The hub repeats what was not answered. The control loses what was committed."""
    server, evil, proxy, room_id = await participant_of(tmp_path, http)
    alice = f"@alice:{evil.name}"
    sent: list[Pdu] = []
    try:
        for number in range(KILLS):
            batch = [evil.room.add(message(f"{number}.{n}", sender=alice, room_id=room_id)) for n in range(5)]
            sent += batch
            proxy.faults.cut_answer_after = 0
            with pytest.raises((aiohttp.ClientError, OSError)):
                await evil.deliver(server.name, f"txn{number}", *batch)
            dsn = dsn_of(server)
            server.kill()
            if loses:
                await execute(dsn, "DELETE FROM events WHERE event_id = $1", batch[0].event_id)
            await server.start()
            proxy.faults.cut_answer_after = None
            first = await evil.deliver(server.name, f"txn{number}", *batch)
            assert await evil.deliver(server.name, f"txn{number}", *batch) == first == {}
        assert proxy.cuts >= KILLS
        found = await stored(server, room_id)
        assert all(found[pdu.event_id] == 1 for pdu in sent) is not loses
        assert max(found.values()) == 1
    finally:
        server.stop()
        await proxy.stop()
        await evil.stop()
    verified = lmserver("verify", "--config", str(server.config))
    assert (verified.returncode == 0) is not loses, verified.stdout + verified.stderr
