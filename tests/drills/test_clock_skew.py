"""D11: a server's clock is wrong by an hour or a year, and is set right again. The list keeps its order, tokens
only grow, nothing spins, and nothing waits for a moment that a wrong clock set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lmserver.protocol import canonical_json
from lmserver.storage import destinations, inbound, room_reads
from lmserver.storage.database import Database
from tests.drills.sending import Stage, in_order_once
from tests.kit.clock import HOUR, YEAR
from tests.kit.rooms import BOB, EVIL, HUB, PARTICIPANT, ROOM, draft, lpdu, message

SKEWS = [HOUR, -HOUR, YEAR, -YEAR]


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with Stage(database_url, tmp_path) as made:
        yield made


def at(stage: Stage, text: str) -> object:
    """A message with the time the hub believes in."""
    event = message(text)
    return type(event)(event.room_id, event.type, event.sender, event.content, stage.clock(), event.state_key)


async def positions(db: Database) -> list[int]:
    rows = await db.fetch(
        "SELECT position FROM events WHERE room_id = $1 ORDER BY stream_xid, position", ROOM
    )
    return [row["position"] for row in rows]


@pytest.mark.parametrize("skew", SKEWS)
async def test_d11_a_wrong_clock_changes_no_order_and_is_forgotten_when_set_right(
    stage: Stage, skew: int
) -> None:
    hub, peer = stage.hub, stage.peer
    sent = [await hub.send(at(stage, "before"))]  # type: ignore[arg-type]
    token = (await room_reads.stream_positions(hub.db))[0]
    await stage.delivered(peer, sent)
    for offset in (skew, 0, skew, 0):
        stage.clock.offset = offset
        sent.append(await hub.send(at(stage, f"at {offset}")))  # type: ignore[arg-type]
        bobs = lpdu(draft("m.room.message", {"body": f"bob at {offset}"}, sender=BOB))
        [taken] = await hub.server.engine.accept_lpdus(ROOM, [bobs])
        sent.append(taken.event_id)  # type: ignore[union-attr]
        await stage.delivered(peer, sent)
        moved = (await room_reads.stream_positions(hub.db))[0]
        assert moved > token
        token = moved
    assert in_order_once(peer.events(), sent)
    places = await positions(hub.db)
    assert places == sorted(places) == list(range(len(places)))
    assert await hub.problems(ROOM) == []


@pytest.mark.parametrize("skew", [HOUR * 3, YEAR])
async def test_d11_a_pause_set_by_a_clock_that_was_ahead_does_not_last(stage: Stage, skew: int) -> None:
    """The peer fails while the clock is ahead; set right, it is tried within the longest pause."""
    stage.clock.offset = skew
    stage.leave()
    sent = [await stage.hub.send(message())]
    failing = await stage.failed(1)
    assert failing.retry_at > stage.clock() - skew + HOUR
    stage.proxy.faults.refuse = False
    stage.clock.offset = 0
    stage.try_again(0)
    await stage.delivered(stage.peer, sent)


async def test_d11_control_a_pause_that_is_believed_lasts_as_long_as_the_clock_was_wrong(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmserver.federation_client import sender

    monkeypatch.setattr(destinations, "LONGEST_PAUSE_MS", 10 * YEAR)
    monkeypatch.setattr(sender, "LONGEST_PAUSE_MS", 10 * YEAR)
    stage.clock.offset = YEAR
    stage.leave()
    sent = [await stage.hub.send(message())]
    await stage.failed(1)
    stage.proxy.faults.refuse = False
    stage.clock.offset = 0
    stage.try_again(HOUR)
    with pytest.raises(TimeoutError):
        await stage.delivered(stage.peer, sent, seconds=1)


async def test_d11_leases_of_a_clock_that_was_ahead_do_not_last(db: Database) -> None:
    now = 1_800_000_000_000
    assert await destinations.take_lease(db, PARTICIPANT, "a", now + YEAR, now + YEAR + 30_000) is not None
    assert await destinations.take_lease(db, PARTICIPANT, "b", now, now + 30_000) is not None
    assert await destinations.take_lease(db, PARTICIPANT, "c", now, now + 30_000) is None
    ahead = await inbound.claim(db, EVIL, "send", "one", now + YEAR, now + YEAR + 30_000)
    assert ahead.fence is not None
    assert (await inbound.claim(db, EVIL, "send", "two", now, now + 30_000)).fence is not None
    assert (await inbound.claim(db, EVIL, "send", "three", now, now + 30_000)).fence is None


async def test_d11_a_clock_behind_by_a_year_does_not_make_the_sender_spin(stage: Stage) -> None:
    """Pauses are set by a clock that then goes back: the tries stay few."""
    stage.leave()
    await stage.hub.send(message())
    await stage.failed(1)
    tried = stage.proxy.accepted
    for offset in (-YEAR, YEAR, -YEAR, 0):
        stage.clock.offset = offset
        for _ in range(20):
            stage.hub.server.sender.wake([PARTICIPANT])
            await asyncio.sleep(0.005)
    assert stage.proxy.accepted - tried <= 4 * 2 * 2


@pytest.mark.parametrize("skew", SKEWS)
async def test_d11_keys_that_a_wrong_clock_publishes_are_valid_for_hours_and_no_longer(
    stage: Stage, skew: int
) -> None:
    stage.clock.offset = skew
    status, document = await stage.other.ask(HUB, "GET", "/_matrix/key/v2/server")
    assert status == 200
    assert HOUR < document["valid_until_ts"] - stage.clock() <= 7 * 24 * HOUR
    assert canonical_json.encode(document)
