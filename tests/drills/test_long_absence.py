"""D9: a participant is away for a day and thousands of events. It is tried ever less often, costs the hub no
memory and the others nothing, and catches up in order as soon as it speaks."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lmserver.federation_client import destination_sender
from lmserver.storage import destinations
from tests.drills.long import rounds
from tests.drills.sending import Stage, in_order_once
from tests.kit.clock import DAY, HOUR
from tests.kit.rooms import message

EVENTS = rounds(1_500, 50_000)
STEP = 10 * 60 * 1000
MAX_ATTEMPTS = 90
"""Connections in a day: doubling from a second to an hour, with jitter, leaves about 12 + 24 tries, and
a try that is reset is repeated once by the HTTP client. Every step would be 144 or more."""
MAX_MEMORY = 8 * 1024 * 1024
CATCH_UP = rounds(100, 500)
"""Events a second, hub and peer in one process; benchmarks measure, this only has to fail when it crawls."""


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with Stage(database_url, tmp_path) as made:
        yield made


async def fill(stage: Stage, number: int) -> list[str]:
    sent: list[str] = []
    while len(sent) < number:
        drafts = [message(str(n)) for n in range(min(250, number - len(sent)))]
        outcomes = await stage.hub.server.engine.send(drafts)
        sent += [outcome.event_id for outcome in outcomes]  # type: ignore[union-attr]
    return sent


async def attempts_in_a_day(stage: Stage) -> int:
    """How often the hub tries a peer that resets every connection, while a day passes."""
    stage.leave()
    first = stage.proxy.accepted
    await stage.hub.send(message("to nobody"))
    await stage.failed(1)
    for _ in range(DAY // STEP):
        found = await stage.failed(1)
        stage.try_again(STEP)
        if found.retry_at <= stage.clock():
            await stage.failed(found.failures + 1)
    return stage.proxy.accepted - first


async def test_d9_a_day_away_is_tried_seldom_and_its_first_word_ends_the_pause(stage: Stage) -> None:
    attempts = await attempts_in_a_day(stage)
    assert 10 <= attempts <= MAX_ATTEMPTS
    found = await stage.failed(1)
    stage.try_again()
    found = await stage.failed(found.failures + 1)
    assert found.retry_at - stage.clock() > HOUR // 2
    last = await stage.hub.send(message("waits"))
    stage.proxy.faults.refuse = False
    # No time passes on the hub's clock: only the peer's own request can end the pause.
    await stage.peer.ask(stage.hub.name, "GET", "/_matrix/federation/unstable/org.lmserver/heads")
    await stage.delivered(stage.peer, [last])
    await stage.settled()


async def test_d9_control_without_a_growing_pause_it_is_tried_at_every_step(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destination_sender, "MAX_BACKOFF_MS", 1)
    assert await attempts_in_a_day(stage) > MAX_ATTEMPTS


async def test_d9_a_backlog_costs_no_memory_nor_the_others_time_and_arrives_in_order(stage: Stage) -> None:
    stage.leave()
    warm = await fill(stage, 300)
    await stage.delivered(stage.other, warm)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    sent = await fill(stage, EVENTS)
    await stage.failed(1)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # The other peer is in this process and keeps what it was sent, which is not the hub's memory.
    kept = sum(len(body) for _, body in stage.other.transactions) * 4
    assert after - before - kept < MAX_MEMORY
    await stage.delivered(stage.other, sent, seconds=600)
    probe = await stage.hub.send(message("probe"))
    await stage.delivered(stage.other, [probe])
    assert stage.peer.events()[1:] == []
    # It is back, and writes while it catches up.
    stage.proxy.faults.refuse = False
    started = time.monotonic()
    await stage.peer.ask(stage.hub.name, "GET", "/_matrix/federation/unstable/org.lmserver/heads")
    await stage.delivered(stage.peer, [probe], seconds=600)
    rate = len(sent) / (time.monotonic() - started)
    print(f"caught up {len(sent)} events at {rate:.0f} a second")
    assert rate > CATCH_UP
    received = stage.peer.events()
    assert in_order_once(received, [*warm, *sent, probe])
    # The check can fail: one event missing, one twice, two swapped.
    assert not in_order_once(received[:-1], [*warm, *sent, probe])
    assert not in_order_once([*received, received[-1]], [*warm, *sent, probe])
    assert not in_order_once([*received[:-2], received[-1], received[-2]], [*warm, *sent, probe])
    assert await destinations.with_work(stage.hub.db, stage.clock() + HOUR, 10) == []
