"""A hub that does not give back what we sent it, or something else (B9, B10), and own LPDUs in general."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from lmserver.protocol import hub
from lmserver.protocol.events import Lpdu, parse_lpdu, parse_pdu
from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.echo_watch import MAX_CHECKS, MAX_SENDS
from lmserver.rooms.outcomes import Accepted, ClientTxn, Outcome, Rejected
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.storage import client_transactions, evidence, lpdus
from tests.evilpeer.peer import Received
from tests.evilpeer.prey import Prey
from tests.kit.rooms import BOB, HUB, PARTICIPANT, ROOM, draft, key_of, member, message
from tests.kit.waiting import HANGS

TXN = ClientTxn(BOB, "PHONE", "t1")


@pytest.fixture
async def bob(prey: Prey) -> Prey:
    await prey.join()
    await prey.victim.server.sender.start()
    return prey


def waits(prey: Prey, seconds: float) -> None:
    """How long our users wait for the hub's answer."""
    prey.victim.server.engine._own_lpdus._answer_seconds = seconds


async def says(prey: Prey, text: str = "hello", txn: ClientTxn = TXN) -> Outcome:
    [outcome] = await prey.victim.engine.send([message(text, sender=BOB)], txn)
    return outcome


async def statuses(prey: Prey) -> list[str]:
    return [r["status"] for r in await prey.db.fetch("SELECT status FROM outbound_lpdus ORDER BY seq")]


async def until(prey: Prey, status: str) -> None:
    async with asyncio.timeout(HANGS):
        while await statuses(prey) != [status]:
            await asyncio.sleep(0.01)


async def taken(prey: Prey, times: int) -> Lpdu:
    """The LPDU, once the hub has been given it so often; it is the same every time."""
    async with asyncio.timeout(HANGS):
        while len(prey.hub.taken) < times:
            await asyncio.sleep(0.01)
    assert len({lpdu.canonical for lpdu in prey.hub.taken}) == 1
    return prey.hub.taken[0]


async def time_passes(prey: Prey, *, hub_answers: bool = True) -> int:
    """Until everything is due that waits for a while, and is looked after."""
    async with asyncio.timeout(HANGS):
        while hub_answers and await prey.db.fetchval("SELECT count(*) FROM outbound_transactions"):
            await asyncio.sleep(0.01)
    await prey.db.execute("UPDATE outbound_lpdus SET check_at = 0, resend_at = 0")
    return await prey.victim.server.echo_watch.check()


async def kinds(prey: Prey) -> list[str]:
    return [case.kind for case in await evidence.of_room(prey.db, ROOM)]


async def test_an_honest_echo_is_placed(bob: Prey) -> None:
    outcome = await says(bob)
    sent = await taken(bob, 1)
    echo = bob.hub.echo_of(sent)
    assert outcome == Accepted(echo.event_id, None)
    assert await statuses(bob) == ["accepted"]
    await bob.hub.deliver(PARTICIPANT, "echo", echo)
    assert await statuses(bob) == ["placed"]
    assert await says(bob) == outcome
    assert await time_passes(bob) == 0
    assert await kinds(bob) == []


async def test_b10_a_withheld_echo_is_asked_for_and_taken(bob: Prey) -> None:
    """The hub names the event and delivers neither it nor what stands before it."""
    bob.hub.room.add(message("withheld too"))
    outcome = await says(bob)
    assert isinstance(outcome, Accepted)
    assert await time_passes(bob) == 1
    assert await statuses(bob) == ["placed"]
    view = await bob.victim.engine.view(ROOM)
    assert view is not None and view.head_event_id == outcome.event_id
    assert await bob.victim.problems(ROOM) == []


async def test_b10_the_same_lpdu_is_sent_again_and_given_up_in_the_end(bob: Prey) -> None:
    bob.hub.shows = False
    assert isinstance(await says(bob), Accepted)
    for check in range(1, MAX_CHECKS):
        await until(bob, "accepted")
        assert await time_passes(bob) == 1
        await taken(bob, check + 1)
    await until(bob, "accepted")
    await time_passes(bob)
    assert await statuses(bob) == ["given_up"]
    assert await kinds(bob) == ["withheld_echo"]
    # Its client, which has been told an event ID, learns what became of it when it asks again.
    refused = await says(bob)
    assert isinstance(refused, Rejected) and refused.errcode == "M_UNKNOWN"
    # The list has the last word.
    await bob.hub.deliver(PARTICIPANT, "late", bob.hub.echo_of(bob.hub.taken[0]))
    assert await statuses(bob) == ["placed"]
    assert isinstance(await says(bob), Accepted)


async def test_b10_silence_is_pending_for_the_client_until_it_is_given_up(bob: Prey) -> None:
    bob.hub.names = False
    waits(bob, 0.2)
    with pytest.raises(HubSilent):
        await says(bob)
    await taken(bob, 1)
    with pytest.raises(HubSilent):
        await says(bob)
    await bob.db.execute("UPDATE outbound_lpdus SET sends = $1", MAX_SENDS)
    waits(bob, HANGS)
    waiting = asyncio.create_task(says(bob))
    await asyncio.sleep(0.05)
    await time_passes(bob)
    for outcome in (await waiting, await says(bob)):
        assert isinstance(outcome, Rejected) and "never answers" in outcome.reason
    assert await statuses(bob) == ["given_up"]


async def test_b10_control_without_the_watcher_nothing_is_noticed(bob: Prey) -> None:
    bob.hub.shows = False
    await says(bob)
    await bob.db.execute("UPDATE outbound_lpdus SET check_at = 0")
    assert await statuses(bob) == ["accepted"]
    assert await kinds(bob) == []


async def test_b10_a_hub_that_is_away_withholds_nothing(bob: Prey) -> None:
    await says(bob)
    await bob.hub.stop()
    for _ in range(MAX_CHECKS + 1):
        await time_passes(bob)
    assert await statuses(bob) == ["accepted"]
    assert await kinds(bob) == []
    await bob.hub.start()


async def test_b10_the_end_of_the_wait_is_a_week_without_any_answer(bob: Prey) -> None:
    await bob.hub.stop()
    waits(bob, 0.2)
    with pytest.raises(HubSilent):
        await says(bob)
    await bob.db.execute("UPDATE outbound_lpdus SET created_ts = 0")
    await time_passes(bob, hub_answers=False)
    assert await statuses(bob) == ["given_up"]
    await bob.hub.start()


async def test_b9_an_echo_with_other_content_is_an_error_for_the_client(bob: Prey) -> None:
    bob.hub.names = False
    waiting = asyncio.create_task(says(bob, "true"))
    sent = await taken(bob, 1)
    echo = bob.hub.echo_of(sent)
    forged = parse_pdu({**echo.fields, "content": {"msgtype": "m.text", "body": "false"}}, LM_02)
    await bob.hub.deliver(PARTICIPANT, "echo", forged)
    outcome = await waiting
    assert isinstance(outcome, Rejected) and "altered" in outcome.reason
    assert await says(bob) == outcome
    assert sorted(await kinds(bob)) == ["altered", "forged_echo"]
    [case] = [c for c in await evidence.of_room(bob.db, ROOM) if c.kind == "forged_echo"]
    assert case.related == sent.canonical
    assert await bob.victim.problems(ROOM) == []


async def test_b9_an_extra_field_in_the_echo_counts_as_forged(bob: Prey) -> None:
    await says(bob)
    echo = bob.hub.echo_of(await taken(bob, 1))
    await bob.hub.deliver(PARTICIPANT, "echo", parse_pdu({**echo.fields, "extra": 1}, LM_02))
    assert "forged_echo" in await kinds(bob)
    assert isinstance(await says(bob), Rejected)


async def test_b9_an_event_that_is_not_ours_is_not_our_echo(bob: Prey) -> None:
    """The hub answers with the ID of somebody else's event: then the true one is found and told."""
    other = bob.hub.room.add(message("somebody else's"))

    async def lies(request: Received) -> web.StreamResponse:
        [item] = request.json["pdus"]
        sent = parse_lpdu(item, LM_02)
        bob.hub.taken.append(sent)
        return web.json_response(
            {"failed_pdus": {}, "org.lmserver.accepted": {sent.event_id: other.event_id}}
        )

    honest = bob.hub.answers["send"]
    bob.hub.answers["send"] = lies
    assert await says(bob) == Accepted(other.event_id, None)
    bob.hub.answers["send"] = honest
    await time_passes(bob)
    assert await kinds(bob) == ["forged_echo"]
    sent = await taken(bob, 2)
    await until(bob, "accepted")
    await bob.hub.deliver(PARTICIPANT, "echo", other, bob.hub.echo_of(sent))
    assert await statuses(bob) == ["placed"]
    assert await says(bob) == Accepted(bob.hub.echo_of(sent).event_id, None)


async def test_b9_an_echo_under_another_id_than_named_is_held_and_told(bob: Prey) -> None:
    await says(bob)
    echo = bob.hub.echo_of(await taken(bob, 1))
    await bob.db.execute("UPDATE outbound_lpdus SET pdu_event_id = '$another'")
    await bob.hub.deliver(PARTICIPANT, "echo", echo)
    assert await kinds(bob) == ["forged_echo"]
    assert await says(bob) == Accepted(echo.event_id, None)


async def test_an_event_the_hub_appends_against_the_rules_is_an_error_for_its_client(bob: Prey) -> None:
    """The state changed at the hub before the LPDU came; a hub that appends it all the same cheats."""
    bob.hub.names = False
    view = bob.hub.room.view
    waiting = asyncio.create_task(says(bob))
    sent = await taken(bob, 1)
    bob.hub.room.view = view
    bob.hub.room.pdus.pop()
    banned = bob.hub.room.add(member("ban", target=BOB))
    appended = bob.hub.room.force(hub.complete_lpdu(sent, bob.hub.room.view, key_of(HUB)))
    await bob.hub.deliver(PARTICIPANT, "echo", banned, appended)
    outcome = await waiting
    assert isinstance(outcome, Rejected)
    assert await statuses(bob) == ["rejected"]
    assert await kinds(bob) == ["auth"]


async def test_what_is_settled_is_forgotten_in_the_end(bob: Prey) -> None:
    await says(bob)
    await bob.hub.deliver(PARTICIPANT, "echo", bob.hub.echo_of(await taken(bob, 1)))
    await bob.hub.stop()
    waits(bob, 0.2)
    with pytest.raises(HubSilent):
        await bob.victim.engine.send([draft("m.x", sender=BOB)], ClientTxn(BOB, "PHONE", "t2"))
    await lpdus.purge(bob.db, 2**60)
    await client_transactions.purge(bob.db, 2**60)
    assert await statuses(bob) == ["pending"]
    assert await bob.db.fetchval("SELECT count(*) FROM client_transactions") == 1
    await bob.hub.start()


@pytest.mark.parametrize(
    "answer",
    [
        {"org.lmserver.accepted": "$\0"},
        {"org.lmserver.accepted": "$a b"},
        {"failed_pdus": {"error": "because\0"}},
    ],
)
async def test_b9_what_cannot_be_kept_of_a_hubs_answer_does_not_stop_its_queue(
    bob: Prey, answer: dict[str, object]
) -> None:
    honest = bob.hub.answers["send"]

    async def junk(request: Received) -> web.StreamResponse:
        [lpdu] = request.json["pdus"]
        lpdu_id = parse_lpdu(lpdu, LM_02).event_id
        return web.json_response({kind: {lpdu_id: said} for kind, said in answer.items()})

    refused = "failed_pdus" in answer
    waits(bob, HANGS if refused else 0.2)
    bob.hub.answers["send"] = junk
    if refused:
        assert isinstance(await says(bob), Rejected)
        bob.hub.answers["send"] = honest
    else:
        with pytest.raises(HubSilent):
            await says(bob)
        assert await statuses(bob) == ["pending"]
        bob.hub.answers["send"] = honest
        await time_passes(bob)
    waits(bob, HANGS)
    assert isinstance(await says(bob, "next", ClientTxn(BOB, "PHONE", "t2")), Accepted)
