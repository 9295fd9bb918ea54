"""Gaps over the wire: only the hub is asked, and what it answers is checked event by event (B11, S3, R4)."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from lmserver.protocol import canonical_json
from lmserver.rooms.gaps import UNVERIFIED_AFTER
from lmserver.storage import gaps, room_log
from tests.evilpeer.peer import Received
from tests.evilpeer.prey import Prey
from tests.kit.rooms import MALLORY, PARTICIPANT, ROOM, member, message


async def head(prey: Prey) -> str:
    row = await room_log.room(prey.db, ROOM)
    assert row is not None
    return row.head_event_id


async def again(prey: Prey) -> None:
    await prey.db.execute("UPDATE room_gaps SET retry_at = 0")
    await prey.victim.server.gaps.retry_due()


async def test_b11_a_gap_is_filled_from_the_hub_and_nobody_else(prey: Prey) -> None:
    await prey.join()
    for n in range(5):
        prey.hub.room.add(message(str(n)))
    assert await prey.hub.deliver(PARTICIPANT, "t", prey.hub.room.pdus[-1]) == {}
    assert await head(prey) == prey.hub.room.pdus[-1].event_id
    assert prey.hub.requests("backfill") and not prey.evil.requests("backfill")
    assert await prey.victim.problems(ROOM) == []


async def test_b11_another_server_can_open_no_gap(prey: Prey) -> None:
    await prey.join()
    prey.hub.room.add(message("missing"))
    await prey.evil.send(PARTICIPANT, "t", [prey.hub.room.add(message("relayed")).fields])
    assert await gaps.get(prey.db, ROOM) is None
    assert prey.hub.requests("backfill") == []


def unsigned(pdu: dict[str, Any]) -> Any:
    return {**pdu, "signatures": {}}


def altered(pdu: dict[str, Any]) -> Any:
    return {**pdu, "sender": "@other:hub.test"}


def junk(pdu: dict[str, Any]) -> Any:
    return ["junk", None]


@pytest.mark.parametrize("spoil", [unsigned, altered, junk])
async def test_s3_one_forged_event_in_a_page_stops_there_until_the_true_one_comes(
    prey: Prey, spoil: Any
) -> None:
    await prey.join()
    before = await head(prey)
    missing = [prey.hub.room.add(message(str(n))) for n in range(4)]
    last = prey.hub.room.add(message("sent"))
    honest = prey.hub.answers["backfill"]

    async def spoiled(request: Received) -> web.StreamResponse:
        pdus = [dict(pdu.fields) for pdu in missing]
        pdus[1] = spoil(pdus[1])
        return web.Response(body=canonical_json.encode({"pdus": [*pdus, last.fields]}))

    prey.hub.answers["backfill"] = spoiled
    assert await prey.hub.deliver(PARTICIPANT, "t", last) == {}
    assert await head(prey) in (before, missing[0].event_id)
    prey.hub.answers["backfill"] = honest
    await again(prey)
    assert await head(prey) == last.event_id
    assert await prey.victim.problems(ROOM) == []


async def answer_of(status: int, body: bytes, **headers: str) -> web.StreamResponse:
    return web.Response(status=status, body=body, headers=headers)


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"[]"), (200, b"{"), (200, b'{"pdus":5}'), (200, b'{"pdus":[]}'), (404, b"{}"), (500, b"boom"),
     (200, b'{"pdus":' + b"[" * 50_000), (429, b'{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":1}')],
)  # fmt: skip
async def test_b11_whatever_a_hub_answers_the_list_goes_on_later(
    prey: Prey, status: int, body: bytes
) -> None:
    await prey.join()
    prey.hub.room.add(message("missing"))
    last = prey.hub.room.add(message("sent"))
    honest = prey.hub.answers["backfill"]
    prey.hub.answers["backfill"] = lambda request: answer_of(status, body)
    assert await prey.hub.deliver(PARTICIPANT, "t", last) == {}
    assert await gaps.get(prey.db, ROOM) is not None
    prey.hub.answers["backfill"] = honest
    await again(prey)
    assert await head(prey) == last.event_id


async def test_r4_a_page_that_is_a_bomb_is_not_unpacked(prey: Prey) -> None:
    import gzip

    await prey.join()
    prey.hub.room.add(message("missing"))
    last = prey.hub.room.add(message("sent"))
    bomb = gzip.compress(b'{"pdus":[' + b" " * 300_000_000 + b"]}", compresslevel=9)
    prey.hub.answers["backfill"] = lambda request: answer_of(200, bomb, **{"Content-Encoding": "gzip"})
    assert await prey.hub.deliver(PARTICIPANT, "t", last) == {}
    assert await gaps.get(prey.db, ROOM) is not None


async def test_p5_a_participant_that_hides_its_keys_stops_no_room(prey: Prey) -> None:
    """Mallory's server serves its keys to the hub and not to us: what it says is waited for, then
    linked unseen, and the room goes on."""

    async def hidden(request: Received) -> web.StreamResponse:
        return web.json_response({}, status=500)

    await prey.join()
    prey.evil.answers["keys"] = hidden
    for event in (member("join", sender=MALLORY), message("hidden", sender=MALLORY)):
        await prey.hub.deliver(PARTICIPANT, f"t{len(prey.hub.room.pdus)}", prey.hub.room.add(event))
    assert await gaps.get(prey.db, ROOM) is not None
    last = prey.hub.room.add(message("goes on"))
    assert await prey.hub.deliver(PARTICIPANT, "t", last) == {}
    for _ in range(UNVERIFIED_AFTER + 1):
        await again(prey)
    assert await head(prey) == last.event_id
    assert await gaps.get(prey.db, ROOM) is None
    view = await prey.victim.engine.view(ROOM)
    assert view is not None and view.membership(MALLORY) == "leave"
    assert await prey.db.fetchval("SELECT count(*) FROM evidence") == 0
    assert await prey.victim.problems(ROOM) == []


async def test_an_event_that_could_not_be_verified_is_asked_for_though_nothing_follows(prey: Prey) -> None:
    await prey.join()

    async def hidden(request: Received) -> web.StreamResponse:
        return web.json_response({}, status=500)

    prey.evil.answers["keys"] = hidden
    joined = prey.hub.room.add(member("join", sender=MALLORY))
    failed = await prey.hub.deliver(PARTICIPANT, "t", joined)
    assert list(failed) == [joined.event_id]
    gap = await gaps.get(prey.db, ROOM)
    assert gap is not None and gap.target_event_id == joined.event_id
