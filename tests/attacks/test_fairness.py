"""One slow or hostile peer or room does not slow another.

Each check compares times of the same run with each other, never with a number of seconds (but for one that
stands for "never"), and is run against a broken variant too, which it has to catch.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any

import pytest
from aiohttp import web

from lmserver.protocol import canonical_json
from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.outcomes import RoomBusy
from lmserver.web import request as web_request
from lmserver.web import slots
from lmserver.web.request import Request
from tests.evilpeer.arena import Arena
from tests.evilpeer.forging import evil
from tests.evilpeer.peer import UNSTABLE, Received
from tests.kit.rooms import ALICE, BOB, HUB, MALLORY, PARTICIPANT, ROOM, draft, lpdu, message, opening
from tests.kit.waiting import HANGS

_numbers = count()
OTHER = f"!other:{HUB}"
TIMES = 15
GIVEN_UP = 2.0
"""Seconds after which a measurement stands for "stuck"."""
AT_ONCE = 60
"""Requests of a flood in progress at any time."""

ATTACKERS = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="attacker")
UNDER_WAY: set[Future[int]] = set()
BACKLOG = int(os.environ.get("LMSERVER_BACKLOG", "4000"))


async def seconds(work: Callable[[], Awaitable[Any]], given_up: float = GIVEN_UP) -> float:
    started = time.perf_counter()
    try:
        await asyncio.wait_for(work(), given_up)
    except TimeoutError:
        return given_up
    return time.perf_counter() - started


async def fastest(work: Callable[[], Awaitable[Any]]) -> float:
    """What it costs where nothing else happens to run."""
    return min([await seconds(work, HANGS) for _ in range(TIMES)])


async def median(work: Callable[[], Awaitable[Any]], times: int = TIMES, given_up: float = GIVEN_UP) -> float:
    return statistics.median([await seconds(work, given_up) for _ in range(times)])


async def transaction(arena: Arena, origin: str = PARTICIPANT) -> None:
    """An honest server's transaction with one message."""
    sender = BOB if origin == PARTICIPANT else MALLORY
    event = lpdu(message(f"m{next(_numbers)}", sender=sender))
    status, body = await arena.send(f"t{next(_numbers)}", [event.fields], origin=origin)
    assert (status, list(body["org.lmserver.accepted"])) == (200, [event.event_id])


# -- one slow room (B22) ----------------------------------------------------------------------------


async def backlog_and_other(arena: Arena) -> tuple[float, float]:
    """The seconds until a backlog of one room is stored, and the median of another room meanwhile."""
    await arena.engine.create(LM_02, opening(room_id=OTHER))
    await arena.engine.send([message("warm", room_id=OTHER)])
    started = time.perf_counter()
    batch = 100
    waiting = [
        asyncio.create_task(arena.engine.send([message(f"{n} {k}") for k in range(batch)]))
        for n in range(BACKLOG // batch)
    ]
    await asyncio.sleep(0)
    other = []
    while not other or not waiting[-1].done():
        other.append(await seconds(lambda: arena.engine.send([message("other", room_id=OTHER)]), HANGS))
    await asyncio.gather(*waiting)
    return time.perf_counter() - started, statistics.median(other)


def others_are_served(backlog: float, other: float) -> bool:
    return other < backlog / 5


async def test_b22_a_backlog_of_one_room_waits_alone(arena: Arena) -> None:
    backlog, other = await backlog_and_other(arena)
    assert others_are_served(backlog, other), (backlog, other)


async def test_b22_control_with_one_queue_for_all_rooms_the_check_fails(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = arena.engine._turns
    one_queue, submit = asyncio.Lock(), turns.submit

    async def in_one_queue(room_id: str, proposals: Any) -> Any:
        async with one_queue:
            return await submit(room_id, proposals)

    monkeypatch.setattr(turns, "submit", in_one_queue)
    backlog, other = await backlog_and_other(arena)
    assert not others_are_served(backlog, other), (backlog, other)


async def test_r7_a_full_room_refuses_more_and_no_other_room_does(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A room's queue has an end; what comes over it is told to come back."""
    monkeypatch.setattr("lmserver.rooms.turns.MAX_WAITING", 500)
    await arena.engine.create(LM_02, opening(room_id=OTHER))
    sends = [arena.engine.send([message(f"{n} {k}") for k in range(100)]) for n in range(20)]
    results = asyncio.gather(*sends, return_exceptions=True)
    await asyncio.sleep(0)
    await arena.engine.send([message("other", room_id=OTHER)])
    refused = [result for result in await results if isinstance(result, BaseException)]
    assert 0 < len(refused) < 20
    assert {type(error) for error in refused} == {RoomBusy}
    assert await arena.problems() == []


# -- a destination that hangs -----------------------------------------------------------------------


class Deliveries:
    """When the honest server got which event of the room."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._seen: dict[str, asyncio.Event] = {}
        self.release = asyncio.Event()
        arena.peers[PARTICIPANT].answers["send"] = self._receive

    async def _receive(self, request: Received) -> web.StreamResponse:
        for pdu in request.json["pdus"]:
            self._seen.setdefault(str(pdu["content"].get("body")), asyncio.Event()).set()
        return web.json_response({"failed_pdus": {}})

    async def hang(self, _: Received) -> web.StreamResponse:
        await self.release.wait()
        return web.json_response({"failed_pdus": {}})

    async def one(self) -> None:
        """A message of our user until the honest server has it."""
        text = f"m{next(_numbers)}"
        seen = self._seen.setdefault(text, asyncio.Event())
        await self._arena.engine.send([message(text)])
        await seen.wait()


async def delivered_while_one_hangs(arena: Arena, given_up: float) -> bool:
    """Whether messages reach the honest server while the other answers nothing."""
    deliveries = Deliveries(arena)
    await arena.victim.server.sender.start()
    await deliveries.one()
    arena.evil.answers["send"] = deliveries.hang
    try:
        async with asyncio.timeout(given_up):
            for _ in range(5):
                await deliveries.one()
    except TimeoutError:
        return False
    finally:
        deliveries.release.set()
    return True


async def test_r12_a_destination_that_hangs_holds_up_nobody_else(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmserver.federation_client.destination_sender.REQUEST_SECONDS", 2 * HANGS)
    assert await delivered_while_one_hangs(arena, HANGS)


async def test_r12_control_with_one_request_at_a_time_the_check_fails(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = arena.victim.server.client
    one_at_a_time, request = asyncio.Lock(), client.request

    async def one(*arguments: Any, **more: Any) -> Any:
        async with one_at_a_time:
            return await request(*arguments, **more)

    monkeypatch.setattr(client, "request", one)
    assert not await delivered_while_one_hangs(arena, GIVEN_UP)


# -- a peer that sends as much as it can ------------------------------------------------------------


@asynccontextmanager
async def flood(request: Callable[[], Awaitable[Any]]) -> AsyncIterator[None]:
    """AT_ONCE hostile requests in progress at any time."""

    async def again() -> None:
        while True:
            await request()

    tasks = [asyncio.create_task(again()) for _ in range(AT_ONCE)]
    try:
        await request()
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results
        await asyncio.to_thread(wait, list(UNDER_WAY))


async def turns_before_us(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, request: Callable[[], Awaitable[Any]]
) -> float:
    """The turns given to others while an honest request is answered; the median of some."""
    given, take = 0, slots.Slots.take

    async def counted(self: slots.Slots, *arguments: Any) -> slots.Held:
        nonlocal given
        held = await take(self, *arguments)
        given += 1
        return held

    monkeypatch.setattr(slots.Slots, "take", counted)
    await transaction(arena)
    ours, others = given, []
    async with flood(request):
        for _ in range(3):
            before = given
            await transaction(arena)
            others.append(given - before - ours)
    return statistics.median(others)


def exchange(port: int, method: str, path: str, header: str, body: bytes | None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Authorization": header})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


async def outside(arena: Arena, method: str, path: str, header: str, body: bytes | None) -> int:
    """A hostile request from a thread: its work is not the work of the victim's event loop."""
    work = partial(exchange, arena.victim.port, method, path, header, body)
    under_way = ATTACKERS.submit(work)
    UNDER_WAY.add(under_way)
    under_way.add_done_callback(UNDER_WAY.discard)
    status = await asyncio.wrap_future(under_way)
    assert status in (200, 400, 413, 429)
    return status


def costly_transaction(arena: Arena) -> Callable[[], Awaitable[Any]]:
    """Fifty events whose signatures are wrong, and a hundred EDUs."""
    forged = [{**evil(f"f{n}"), "origin_server_ts": n} for n in range(50)]
    typing = {"type": "m.typing", "sender": MALLORY, "content": {"room_id": ROOM, "typing": True}}

    async def send() -> None:
        status, _ = await arena.send(f"f{next(_numbers)}", forged, edus=[typing] * 100)
        assert status in (200, 400, 429)

    return send


def waits_its_turn(before_us: float) -> bool:
    """An honest request waits for what is being done just now, not for all that was asked."""
    return before_us < AT_ONCE / 3


async def test_b22_a_peer_with_all_its_transactions_at_once_slows_itself(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_us = await turns_before_us(arena, monkeypatch, costly_transaction(arena))
    assert waits_its_turn(before_us), before_us
    assert await arena.problems() == []


async def test_b22_a_peer_that_asks_for_state_all_the_time_slows_itself(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State with its auth chain is the costliest to make; four at once for each server."""
    for n in range(150):
        await arena.engine.send([draft("m.test", {"n": n}, sender=ALICE, state_key=str(n))])
    view = await arena.engine.view(ROOM)
    assert view is not None
    path = f"{UNSTABLE}/state/{ROOM}?event_id={view.head_event_id}"

    header = arena.evil.authorization("GET", path, HUB, None)
    before_us = await turns_before_us(arena, monkeypatch, lambda: outside(arena, "GET", path, header, None))
    assert waits_its_turn(before_us), before_us


async def test_b22_control_without_turns_the_check_fails(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every server in one line, the honest request waits behind the flood."""
    take = slots.Slots.take

    def one_line(self: slots.Slots, key: object, at_once: int, waiting: int, wait: float) -> Any:
        return take(self, "everybody", 1, 10_000, 60.0)

    monkeypatch.setattr(slots.Slots, "take", one_line)
    before_us = await turns_before_us(arena, monkeypatch, costly_transaction(arena))
    assert not waits_its_turn(before_us), before_us


BRACKETS = b'{"pdus":[' + b"[]," * 200_000 + b"[]]}"


async def beside_costly_bodies(arena: Arena, times: int) -> tuple[float, float]:
    """The seconds of work that parsing such a body is, and the most that the event loop, where it would be
    done, works while an honest request beside some is answered."""
    started = time.thread_time()
    canonical_json.parse_object(BRACKETS)
    parsing = time.thread_time() - started
    path = f"{UNSTABLE}/send/costly"
    header = arena.evil.authorization("PUT", path, HUB, BRACKETS)
    slowest = 0.0
    await transaction(arena)
    for _ in range(times):
        costly = asyncio.create_task(outside(arena, "PUT", path, header, BRACKETS))
        while not costly.done():
            started = time.thread_time()
            await transaction(arena)
            slowest = max(slowest, time.thread_time() - started)
        await costly
    return parsing, slowest


def nobody_waits_for_parsing(parsing: float, meanwhile: float) -> bool:
    return meanwhile < parsing / 2


async def test_r4_costly_bodies_are_refused_before_they_are_parsed(arena: Arena) -> None:
    """So many brackets, rightly signed, would hold up everybody."""
    parsing, meanwhile = await beside_costly_bodies(arena, 5)
    assert nobody_waits_for_parsing(parsing, meanwhile), (parsing, meanwhile)


async def test_r4_control_parsed_where_they_come_in_the_check_fails(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def parse_at_once(self: Request) -> Any:
        return self._parsed(await self.body())

    monkeypatch.setattr(web_request, "MAX_VALUES", len(BRACKETS))
    monkeypatch.setattr(Request, "json", parse_at_once)
    parsing, meanwhile = await beside_costly_bodies(arena, 1)
    assert not nobody_waits_for_parsing(parsing, meanwhile), (parsing, meanwhile)
