"""Durable fan-out: order, one transaction in flight, the same bytes until taken, answers, backoff."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from lmserver.federation_client import destination_sender
from lmserver.federation_client.client import Response
from lmserver.federation_client.errors import BadResponse, Unreachable
from lmserver.federation_client.sender import Sender
from lmserver.federation_client.transaction_builder import MAX_EDUS
from lmserver.protocol import canonical_json
from lmserver.protocol.events import parse_pdu
from lmserver.protocol.room_versions import LM_02
from lmserver.storage import destinations, outbound
from lmserver.storage.database import Connection, Database
from lmserver.storage.outbound import NewEdu
from tests.kit.engines import EngineKit, engine_kit
from tests.kit.rooms import BOB, EVIL, HUB, MALLORY, PARTICIPANT, ROOM, lpdu, member, message, now, opening
from tests.kit.waiting import HANGS, eventually

Handler = Callable[[dict[str, Any]], Response]


class Peer:
    """Takes transactions; `handler` may refuse, `gate` may hold them up."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []
        self.handler: Handler = lambda content: Response(200, {"failed_pdus": {}})
        self.gate: asyncio.Event | None = None
        self.in_flight: dict[str, int] = {}
        self.most_in_flight = 0

    async def request(
        self,
        method: str,
        destination: str,
        path: str,
        *,
        content: bytes,
        timeout: float = 1.0,
        max_response: int = 0,
    ) -> Response:
        assert 0 < max_response <= 256 * 1024
        self.seen.append((destination, path.rsplit("/", 1)[1], content))
        self.in_flight[destination] = self.in_flight.get(destination, 0) + 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight[destination])
        try:
            if self.gate is not None:
                await self.gate.wait()
            return self.handler(canonical_json.parse_object(content))
        finally:
            self.in_flight[destination] -= 1

    def ids(self, destination: str) -> list[str]:
        """Event IDs received, in order; repeated transactions once."""
        bodies = {txn: body for to, txn, body in self.seen if to == destination}
        items = [pdu for body in bodies.values() for pdu in canonical_json.parse_object(body)["pdus"]]
        return [parse_pdu(item, LM_02).event_id for item in items]


class Answers:
    def __init__(self) -> None:
        self.accepted: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    async def __call__(self, hub: str, accepted: Any, failed: Any) -> None:
        self.accepted.update(accepted)
        self.failed.update(failed)


def make(db: Database, peer: Peer, answers: Answers | None = None, clock: Callable[[], int] = now) -> Sender:
    return Sender(db, peer, answers or Answers(), clock, poll_seconds=0.05, linger_seconds=0.01)


@pytest.fixture
async def kit(db: Database) -> AsyncIterator[EngineKit]:
    made = engine_kit(db, HUB)
    await made.engine.create(LM_02, opening())
    await made.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
    yield made
    await made.engine.close()


async def test_events_arrive_once_in_order_and_nothing_is_left(kit: EngineKit) -> None:
    peer = Peer()
    sender = make(kit.db, peer)
    await sender.start()
    sent: list[str] = []
    for n in range(60):
        sent += [o.event_id for o in await kit.engine.send([message(str(n))])]  # type: ignore[union-attr]
        sender.wake([PARTICIPANT])
    await eventually(lambda: len(peer.ids(PARTICIPANT)) == 60)
    await sender.stop()
    assert peer.ids(PARTICIPANT) == sent
    assert peer.most_in_flight == 1
    assert await outbound.transaction(kit.db, PARTICIPANT) is None
    assert await destinations.with_work(kit.db, now(), 10) == []


async def test_work_is_found_without_a_hint(kit: EngineKit) -> None:
    await kit.engine.send([message()])
    peer = Peer()
    sender = make(kit.db, peer)
    await sender.start()
    await eventually(lambda: len(peer.ids(PARTICIPANT)) == 1)
    await sender.stop()


async def test_what_is_told_while_a_transaction_is_in_flight_goes_next(kit: EngineKit) -> None:
    peer = Peer()
    sender = Sender(kit.db, peer, Answers(), now, poll_seconds=3600.0, linger_seconds=3600.0)
    await sender.start()
    for told in ("before any", "in flight", "after an answer, while the sender lingers"):
        peer.gate = asyncio.Event()
        await kit.engine.send([message(told)])
        seen = len(peer.seen)
        sender.wake([PARTICIPANT])
        await eventually(lambda: len(peer.seen) == seen + 1)  # noqa: B023
        await kit.engine.send([message(f"{told}, again")])
        sender.wake([PARTICIPANT])
        peer.gate.set()
        await eventually(lambda: len(peer.seen) == seen + 2)  # noqa: B023
    await sender.stop()
    assert len(set(peer.ids(PARTICIPANT))) == len(peer.ids(PARTICIPANT)) == 6


async def test_a_backlog_goes_in_transactions_of_fifty(kit: EngineKit) -> None:
    for n in range(60):
        await kit.engine.send([message(str(n))])
    peer = Peer()
    sender = make(kit.db, peer)
    await sender.start()
    await eventually(lambda: len(peer.ids(PARTICIPANT)) == 60)
    await sender.stop()
    sizes = [len(canonical_json.parse_object(body)["pdus"]) for _, _, body in peer.seen]
    assert sizes == [50, 10]


async def test_the_same_bytes_and_id_after_a_failure_and_a_restart(kit: EngineKit) -> None:
    await kit.engine.send([message("first")])
    peer = Peer()

    def unreachable(content: dict[str, Any]) -> Response:
        raise Unreachable("no")

    peer.handler = unreachable
    sender = make(kit.db, peer)
    await sender.start()
    await eventually(lambda: len(peer.seen) == 1)
    await sender.stop()
    await kit.engine.send([message("second")])
    later = now() + 10_000_000
    peer.handler = lambda content: Response(200, {})
    again = make(kit.db, peer, clock=lambda: later)
    await again.start()
    await eventually(lambda: len(peer.ids(PARTICIPANT)) == 2)
    await again.stop()
    assert peer.seen[0] == peer.seen[1]
    assert peer.seen[2][1] != peer.seen[0][1]


async def test_events_of_rooms_are_stored_once_more_for_no_destination(kit: EngineKit) -> None:
    """Where they stand is stored, and the bytes are made of it; other bytes are never sent in their place."""
    await kit.engine.send([message("first")])
    peer = Peer()

    def unreachable(content: dict[str, Any]) -> Response:
        raise Unreachable("no")

    peer.handler = unreachable
    sender = make(kit.db, peer)
    await sender.start()
    await eventually(lambda: len(peer.seen) == 1)
    await sender.stop()
    stored = await outbound.transaction(kit.db, PARTICIPANT)
    assert stored is not None and stored.body is None
    await kit.db.execute(
        "UPDATE events SET pdu = pdu || ' ' WHERE position = (SELECT max(position) FROM events)"
    )
    peer.handler = lambda content: Response(200, {})
    again = make(kit.db, peer, clock=lambda: now() + 10_000_000)
    await again.start()
    await eventually(lambda: len(peer.seen) == 2)
    await again.stop()
    assert peer.seen[1][1] != peer.seen[0][1]


async def test_backoff_is_kept_and_ends_when_the_peer_speaks(kit: EngineKit) -> None:
    await kit.engine.send([message()])
    peer = Peer()
    peer.handler = lambda content: Response(429, {"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 900_000})
    start = now()
    sender = make(kit.db, peer, clock=lambda: start)
    await sender.start()
    await eventually(lambda: len(peer.seen) == 1)
    await eventually(lambda: destinations.backing_off(kit.db, start, 10))
    assert await destinations.backing_off(kit.db, start, 10) == {PARTICIPANT: start + 900_000}
    await asyncio.sleep(0.2)
    assert len(peer.seen) == 1
    peer.handler = lambda content: Response(200, {})
    sender.peer_alive(PARTICIPANT)
    await eventually(lambda: len(peer.seen) == 2)
    await sender.stop()
    assert peer.seen[0] == peer.seen[1]


def coded(content: dict[str, Any]) -> Response:
    return Response(400, {"errcode": "M_\0"})


def encoded(content: dict[str, Any]) -> Response:
    raise BadResponse("response has an unknown encoding", "\udcff")


@pytest.mark.parametrize(("handler", "kept"), [(coded, "status 400 M_\ufffd"), (encoded, "?")])
async def test_a_refusal_that_no_text_column_takes_is_backed_off_from(
    kit: EngineKit, handler: Handler, kept: str
) -> None:
    """JSON may have NUL in an error code and a header bytes that are no text, the database may not: such
    a server was tried again every half minute for ever."""
    await kit.engine.send([message()])
    peer = Peer()
    peer.handler = handler
    start = now()
    sender = make(kit.db, peer, clock=lambda: start)
    await sender.start()
    await eventually(lambda: peer.seen)
    await eventually(lambda: PARTICIPANT in sender._retry_at)
    await sender.stop()
    [failing] = await destinations.failing(kit.db, 10)
    assert failing.failures == 1 and failing.last_failure == kept


async def test_bad_state_is_repeated_soon(kit: EngineKit) -> None:
    await kit.engine.send([message()])
    peer = Peer()
    answers = iter([Response(400, {"errcode": "M_BAD_STATE"}), Response(200, {})])
    peer.handler = lambda content: next(answers)
    sender = make(kit.db, peer)
    await sender.start()
    await eventually(lambda: len(peer.seen) == 2)
    await sender.stop()
    assert peer.seen[0] == peer.seen[1]


async def test_a_slow_destination_holds_up_nobody(kit: EngineKit) -> None:
    await kit.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=MALLORY))])
    peer, slow = Peer(), asyncio.Event()
    request = peer.request

    async def one_is_slow(method: str, destination: str, path: str, **options: Any) -> Response:
        if destination == EVIL:
            await slow.wait()
        return await request(method, destination, path, **options)

    peer.request = one_is_slow  # type: ignore[method-assign]
    sender = make(kit.db, peer)
    await sender.start()
    await kit.engine.send([message()])
    sender.wake([EVIL, PARTICIPANT])
    await eventually(lambda: len(peer.ids(PARTICIPANT)) == 2)
    assert peer.ids(EVIL) == []
    slow.set()
    await eventually(lambda: len(peer.ids(EVIL)) == 1)
    await sender.stop()


async def test_r12_slow_destinations_do_not_take_every_place(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes what it is sent, always just before the deadline: no failure, so no backoff."""
    monkeypatch.setattr(destination_sender, "SLOW_SECONDS", 0.01)
    names = ["slow0.test", "slow1.test"]
    for name in names:
        await queue(db, *(replace(edu(n), destination=name) for n in range(MAX_EDUS * 3)))
    peer, never = Peer(), asyncio.Event()
    request = peer.request

    async def slowly(method: str, destination: str, path: str, **options: Any) -> Response:
        if destination in names:
            await asyncio.sleep(0.05)
            if destination in [to for to, _, _ in peer.seen]:
                await never.wait()
        return await request(method, destination, path, **options)

    peer.request = slowly  # type: ignore[method-assign]  # to be slow only for some
    sender = Sender(db, peer, Answers(), now, max_active=2, poll_seconds=0.05, linger_seconds=0.01)
    await sender.start()
    await eventually(lambda: {to for to, _, _ in peer.seen} == set(names))
    await queue(db, edu(1))
    sender.wake([PARTICIPANT])
    await eventually(lambda: PARTICIPANT in [to for to, _, _ in peer.seen])
    await sender.stop(0.1)


async def test_r12_a_busy_destination_gives_way_to_who_waits(db: Database) -> None:
    await queue(db, *(replace(edu(n), destination="busy.test") for n in range(MAX_EDUS * 9)))
    peer = Peer()
    peer.gate = asyncio.Event()
    sender = Sender(db, peer, Answers(), now, max_active=1, poll_seconds=3600.0, linger_seconds=0.01)
    await sender.start()
    await eventually(lambda: peer.seen)
    await queue(db, edu(1))
    sender.wake([PARTICIPANT])
    peer.gate.set()
    await eventually(lambda: len(peer.seen) == 10)
    await sender.stop()
    assert [to for to, _, _ in peer.seen].index(PARTICIPANT) == 1


async def test_a_lost_lease_records_nothing(kit: EngineKit) -> None:
    """Drill D13: paused in flight, another process took over, then the answer comes."""
    await kit.engine.send([message()])
    peer = Peer()
    peer.gate = asyncio.Event()
    sender = make(kit.db, peer)
    await sender.start()
    await eventually(lambda: len(peer.seen) == 1)
    far = now() + 31_000
    assert await destinations.take_lease(kit.db, PARTICIPANT, "other", far, far + 1000) is not None
    peer.gate.set()
    await asyncio.sleep(0.2)
    await sender.stop()
    assert await outbound.transaction(kit.db, PARTICIPANT) is not None


async def test_what_a_server_gets_ends_with_its_last_users_removal(kit: EngineKit) -> None:
    await kit.engine.send([member("ban", target=BOB)])
    await kit.engine.send([message("not for them")])
    peer = Peer()
    sender = make(kit.db, peer)
    await sender.start()
    await eventually(lambda: len(peer.ids(PARTICIPANT)) == 1)
    await eventually(lambda: kit.db.fetchval("SELECT count(*) = 0 FROM outbound_ranges"))
    await asyncio.sleep(0.2)
    await sender.stop()
    assert len(peer.ids(PARTICIPANT)) == 1


async def test_lpdus_are_answered_and_not_repeated_at_once(db: Database) -> None:
    for n in range(3):
        await db.execute(
            "INSERT INTO outbound_lpdus (room_id, lpdu_id, lpdu_hash, destination, lpdu, user_id, created_ts)"
            " VALUES ($1, $2, $2, $3, $4, $5, 0)",
            ROOM, f"$lpdu{n}", HUB, lpdu(message(str(n), sender=BOB)).canonical, BOB,
        )  # fmt: skip
    peer, answers = Peer(), Answers()
    peer.handler = lambda content: Response(
        200,
        {
            "org.lmserver.accepted": {"$lpdu0": "$pdu0", "$lpdu2": "$\0", "$other": "$x"},
            "failed_pdus": {"$lpdu1": {"error": "no\0"}, "$other2": {"error": "x"}},
        },
    )
    sender = make(db, peer, answers)
    await sender.start()
    await eventually(
        lambda: db.fetchval("SELECT min(resend_at) > 60_000 FROM outbound_lpdus WHERE lpdu_id = '$lpdu2'")
    )
    await asyncio.sleep(0.2)
    await sender.stop()
    assert answers.accepted == {"$lpdu0": "$pdu0"} and answers.failed == {"$lpdu1": "no\ufffd"}
    assert len(peer.seen) == 1


async def test_settling_does_not_wait_for_an_echo_that_is_being_placed(db: Database) -> None:
    """The two take several LPDUs each: waiting for each other would be a deadlock of a second."""
    for name in ("$free", "$locked"):
        await db.execute(
            "INSERT INTO outbound_lpdus (room_id, lpdu_id, lpdu_hash, destination, lpdu, user_id, created_ts)"
            " VALUES ($1, $2, $2, $3, $4, $5, 0)",
            ROOM, name, HUB, lpdu(message(name, sender=BOB)).canonical, BOB,
        )  # fmt: skip
    lease = await destinations.take_lease(db, HUB, "us", now(), now() + 60_000)
    assert lease is not None
    txn = outbound.OutboundTransaction("t", b"{}", b"{}")
    assert await outbound.store_transaction(db, HUB, lease.fence, txn, now())
    taken = outbound.Settlement([], [(ROOM, "$free"), (ROOM, "$locked")], [], 60_000, 60_000)

    async def while_locked(connection: Connection) -> bool:
        await connection.execute("UPDATE outbound_lpdus SET reason = 'x' WHERE lpdu_id = '$locked'")
        async with asyncio.timeout(HANGS):
            return await outbound.settle(db, HUB, lease.fence, "t", taken, now())

    assert await db.run(while_locked)
    sends = await db.fetch("SELECT sends FROM outbound_lpdus ORDER BY lpdu_id")
    assert [row["sends"] for row in sends] == [1, 0]
    assert await outbound.transaction(db, HUB) is None


async def queue(db: Database, *edus: NewEdu) -> int:
    return await db.run(lambda connection: outbound.queue_edus(connection, edus, now()))


def edu(n: int, kind: str = "to_device", key: str | None = None) -> NewEdu:
    data = canonical_json.encode({"type": "m.x", "sender": "@a:hub.test", "content": {"n": n}})
    return NewEdu(PARTICIPANT, kind, data, key)


def numbers(body: bytes) -> list[int]:
    return [e["content"]["n"] for e in canonical_json.parse_object(body).get("edus", [])]


async def test_edus_go_out_once_and_in_order(db: Database) -> None:
    peer = Peer()
    sender = make(db, peer)
    await queue(db, *(edu(n) for n in range(150)))
    await sender.start()
    await eventually(lambda: len(peer.seen) == 2)
    await sender.stop()
    assert [numbers(body) for _, _, body in peer.seen] == [list(range(100)), list(range(100, 150))]
    assert await db.fetchval("SELECT count(*) FROM outbound_edus") == 0


async def test_a_newer_edu_takes_an_older_ones_place_even_while_that_is_sent(db: Database) -> None:
    peer = Peer()
    peer.gate = asyncio.Event()
    sender = make(db, peer)
    await queue(db, edu(1, "receipt", "k"))
    await queue(db, edu(2, "receipt", "k"), edu(7, "receipt", "other"))
    await sender.start()
    await eventually(lambda: len(peer.seen) == 1)
    await queue(db, edu(3, "receipt", "k"))
    peer.gate.set()
    await eventually(lambda: len(peer.seen) == 2)
    await sender.stop()
    assert [numbers(body) for _, _, body in peer.seen] == [[2, 7], [3]]
    assert await outbound.waiting_edus(db) == {}


async def test_what_no_destination_takes_for_very_long_is_given_up(db: Database) -> None:
    await queue(db, edu(1))
    await outbound.purge_edus(db, now() - 1000)
    assert await outbound.waiting_edus(db) == {"to_device": 1}
    await outbound.purge_edus(db, now())
    assert await outbound.waiting_edus(db) == {}
    assert await destinations.with_work(db, now(), 10) == []


async def test_r9_a_full_outbox_drops_the_oldest_of_its_kind(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A destination that is away costs a bounded number of rows, and receipts push out no keys."""
    monkeypatch.setattr(outbound, "MAX_WAITING", 5)
    assert await queue(db, *(edu(n) for n in range(4))) == 0
    assert await queue(db, *(edu(n, "receipt", str(n)) for n in range(9))) == 4
    assert await queue(db, *(edu(n) for n in range(4, 8))) == 3
    assert await outbound.waiting_edus(db) == {"to_device": 5, "receipt": 5}
    waiting = [
        canonical_json.parse_object(e.edu)["content"]["n"]
        for e in (await outbound.due(db, PARTICIPANT, 0, 1, 99)).edus
    ]
    assert waiting == [3, 4, 5, 6, 7, 8, 4, 5, 6, 7]


async def test_a_short_429_is_waited_for_and_is_no_failure(kit: EngineKit) -> None:
    await kit.engine.send([message()])
    peer = Peer()
    limited = Response(429, {"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 20})
    answers = iter([limited, limited, Response(200, {})])
    peer.handler = lambda content: next(answers)
    sender = make(kit.db, peer)
    await sender.start()
    await eventually(lambda: len(peer.seen) == 3)
    assert await destinations.backing_off(kit.db, now(), 10) == {}
    await sender.stop()
    assert peer.seen[0] == peer.seen[1] == peer.seen[2]
