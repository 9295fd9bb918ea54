"""D14: a peer answers with what is no answer. The same transaction, to the byte, is sent until it is taken; and
one that never takes it is told of, and can be helped by its operator's decision."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from lmserver.commands.destinations import skip_transaction
from lmserver.federation_client.transaction_builder import Contents
from lmserver.storage import destinations, lpdus, outbound
from lmserver.storage.database import Database
from lmserver.storage.outbound import OutboundTransaction
from tests.drills.long import rounds
from tests.drills.sending import Stage, in_order_once, taken
from tests.kit.clock import HOUR
from tests.kit.rooms import BOB, HUB, PARTICIPANT, ROOM, lpdu, message
from tests.kit.waiting import eventually


@pytest.fixture
async def stage(database_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with Stage(database_url, tmp_path) as made:
        yield made


async def not_json() -> web.StreamResponse:
    return web.Response(text="OK", content_type="application/json")


async def html() -> web.StreamResponse:
    return web.Response(status=502, text="<html><h1>Bad Gateway</h1></html>", content_type="text/html")


async def limited() -> web.StreamResponse:
    return web.json_response(
        {"errcode": "M_LIMIT_EXCEEDED", "error": "", "retry_after_ms": 1_800_000}, status=429
    )


async def limited_with_junk() -> web.StreamResponse:
    return web.json_response({"errcode": ["M"], "retry_after_ms": "1e400"}, status=429)


async def bad_state() -> web.StreamResponse:
    return web.json_response({"errcode": "M_BAD_STATE", "error": "another is in flight"}, status=400)


async def too_large() -> web.StreamResponse:
    return web.json_response({"errcode": "M_TOO_LARGE", "error": "no"}, status=413)


async def no_content() -> web.StreamResponse:
    return web.Response(status=204)


ANSWERS = [not_json, html, limited, limited_with_junk, too_large, no_content]


async def test_d14_what_was_not_taken_is_sent_again_to_the_byte(stage: Stage) -> None:
    peer = stage.peer
    sent: list[str] = []
    for number in range(rounds(1, 10)):
        for answer in ANSWERS:
            peer.plan = [answer]
            sent.append(await stage.hub.send(message(f"{number} {answer.__name__}")))
            failing = await stage.failed(1)
            if answer is limited:
                assert failing.retry_at - stage.clock() > 1_700_000
            # More is due by now, and must not change what is sent again.
            sent.append(await stage.hub.send(message("meanwhile")))
            stage.try_again()
            await stage.delivered(peer, sent)
            await stage.settled()
    assert in_order_once(peer.events(), sent)
    assert repeated_unchanged(peer.transactions)


def repeated_unchanged(transactions: list[tuple[str, bytes]]) -> bool:
    """Whether each ID had one body, and no ID came again after another one."""
    runs = [t for i, t in enumerate(transactions) if i == 0 or transactions[i - 1] != t]
    return len({txn for txn, _ in runs}) == len(runs)


async def test_d14_an_answer_cut_off_in_the_middle_is_none(stage: Stage) -> None:
    sent: list[str] = []
    for length in (0, 20, 170):
        stage.proxy.faults.cut_answer_after = length
        sent.append(await stage.hub.send(message(f"cut after {length}")))
        await stage.failed(1)
        stage.proxy.faults.cut_answer_after = None
        stage.try_again()

        async def settled() -> bool:
            return await outbound.transaction(stage.hub.db, PARTICIPANT) is None

        await eventually(settled)
    assert stage.proxy.cuts >= 3
    assert in_order_once(stage.peer.events(), sent)
    assert repeated_unchanged(stage.peer.transactions)


async def test_d14_a_peer_that_is_still_busy_gets_the_same_again(stage: Stage) -> None:
    stage.peer.plan = [bad_state, bad_state]
    sent = [await stage.hub.send(message())]
    await stage.delivered(stage.peer, sent)
    assert len(stage.peer.transactions) >= 3
    assert repeated_unchanged(stage.peer.transactions)


async def test_d14_control_a_sender_that_builds_anew_is_caught(stage: Stage) -> None:
    """The stored transaction is lost after each failure, as a sender without one would lose it."""
    sent: list[str] = []
    for _ in range(2):
        stage.peer.plan = [html]
        sent.append(await stage.hub.send(message()))
        await stage.failed(1)
        await stage.hub.db.execute("DELETE FROM outbound_transactions")
        sent.append(await stage.hub.send(message("meanwhile")))
        stage.try_again()
        await stage.delivered(stage.peer, sent)
        await stage.settled()
    bodies = [body for _, body in stage.peer.transactions]
    assert len({txn for txn, _ in stage.peer.transactions}) == len(bodies)
    assert not set(stage.peer.transactions) <= set(stage.peer.taken)


async def test_d14_a_transaction_refused_for_ever_is_told_of_and_can_be_given_up(stage: Stage) -> None:
    peer, db = stage.peer, stage.hub.db
    peer.then = too_large
    sent = [await stage.hub.send(message("poison"))]
    started = stage.clock()
    for times in range(1, 8):
        await stage.failed(times)
        stage.try_again(HOUR + 1)
    failing = await stage.failed(8)
    assert failing.last_failure == "status 413 M_TOO_LARGE"
    assert failing.failing_since < started + HOUR
    assert await destinations.count_failing(db, stage.clock() - HOUR) == 1
    assert len(set(peer.transactions[-8:])) == 1
    # Nobody else waits for it.
    sent.append(await stage.hub.send(message("for everybody")))
    await stage.delivered(stage.other, sent)
    # The peer speaks to us: it is tried at once, and what is known of it stays known.
    await peer.ask(stage.hub.name, "GET", "/_matrix/federation/unstable/org.lmserver/heads")

    async def tried() -> bool:
        found = await stage.failing()
        return found is not None and found.failures == 1

    await eventually(tried)
    peer.then = taken
    events = await db.run(lambda connection: skip_transaction(connection, PARTICIPANT))
    assert events is not None and events >= 1
    assert await stage.failing() is None
    stage.try_again()
    await stage.delivered(peer, sent[1:])
    assert sent[0] not in peer.events()
    assert await db.run(lambda connection: skip_transaction(connection, PARTICIPANT)) is None


async def test_d14_our_users_are_told_when_what_they_wrote_is_given_up(db: Database) -> None:
    """An LPDU in a transaction that is given up is refused to its sender, not forgotten."""
    written = lpdu(message("to a hub that refuses it", sender=BOB))
    await lpdus.queue(
        db, room_id=ROOM, lpdu_id=written.event_id, lpdu_hash=written.lpdu_hash or "", destination=HUB,
        lpdu=written.canonical, user_id=BOB, device_id="D", txn_id="t", now_ms=1, check_at=1,
    )  # fmt: skip
    lease = await destinations.take_lease(db, HUB, "us", 1, 2)
    assert lease is not None
    contents = Contents(lpdus=((ROOM, written.event_id),))
    body = b'{"pdus":[' + written.canonical + b"]}"
    stored = OutboundTransaction("txn", body, contents.encode())
    assert await outbound.store_transaction(db, HUB, lease.fence, stored, 1)
    assert await db.run(lambda connection: skip_transaction(connection, HUB)) == 1
    given_up = await lpdus.get(db, ROOM, written.event_id)
    assert given_up is not None and given_up.status == "rejected"
    assert await outbound.transaction(db, HUB) is None
    # Whoever was sending it then has lost the right to record anything.
    assert not await destinations.extend_lease(db, HUB, lease.fence, 3)
