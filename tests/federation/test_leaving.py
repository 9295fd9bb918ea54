"""Invites declined from outside the room: by the hub's hand, later, or without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lmserver.rooms import handshakes
from lmserver.rooms.declines import tell
from lmserver.rooms.turns import Turns
from lmserver.storage.database import Connection
from tests.federation.sites import Person, Site, sites
from tests.kit.postgres import Cluster
from tests.kit.rooms import HUB, PARTICIPANT
from tests.kit.waiting import eventually

Two = tuple[Site, Site]


@pytest.fixture
async def two(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Two]:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        yield hub, participant


async def carol_invited_beside_bob(two: Two) -> tuple[Person, Person, Person, str]:
    """Alice at the hub has invited Bob, who came, and Carol of the same server."""
    hub, participant = two
    alice = await hub.user("alice")
    bob, carol = await participant.user("bob"), await participant.user("carol")
    room_id = await alice.create(preset="private_chat")
    await alice.act("invite", room_id, bob)
    await bob.act("join", room_id)
    await carol.sync()
    await alice.act("invite", room_id, carol)
    await carol.until("invite", room_id)
    return alice, bob, carol, room_id


async def test_an_invite_is_declined_with_a_reason_and_made_again(two: Two) -> None:
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    room_id = await alice.create(preset="private_chat")
    await bob.sync()
    await alice.act("invite", room_id, bob)
    await bob.until("invite", room_id)
    await bob.act("leave", room_id, reason="no time")
    await bob.until("leave", room_id)
    view = await hub.engine.view(room_id)
    assert view is not None
    event = view.get("m.room.member", bob.user_id)
    assert event is not None
    assert event.content == {"membership": "leave", "reason": "no time"}
    await bob.act("leave", room_id)  # leaving what one has left changes nothing
    await alice.act("invite", room_id, bob)
    await bob.until("invite", room_id)
    await bob.act("join", room_id)
    await bob.act("leave", room_id)
    assert await hub.membership(room_id, bob.user_id) == "leave"


async def test_an_invite_that_came_before_the_list_ended_is_declined(two: Two) -> None:
    """Carol's server was in the room when she was invited, and is not any more."""
    hub, _ = two
    alice, bob, carol, room_id = await carol_invited_beside_bob(two)
    await bob.act("leave", room_id)
    await alice.say(room_id, "alone again", "1")
    await carol.act("leave", room_id)
    await carol.until("leave", room_id)
    assert await hub.membership(room_id, carol.user_id) == "leave"
    assert await carol.pending() == {}


@pytest.mark.parametrize("first", ["answer", "news"])
async def test_a_declined_invite_does_not_show_again(
    two: Two, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub tells of the leave twice, in its answer and as news; both are the same leave for a client,
    also while another transaction is open, which hides what was committed since."""
    hub, participant = two
    _, bob, carol, room_id = await carol_invited_beside_bob(two)
    await bob.act("leave", room_id)

    async def heard() -> bool:
        sql = "SELECT count(*) FROM outside_memberships WHERE user_id = $1 AND event IS NOT NULL"
        return bool(await participant.db.fetchval(sql, carol.user_id))

    begun, done = asyncio.Event(), asyncio.Event()

    async def open_transaction(db: Connection) -> None:
        await db.execute("SELECT pg_current_xact_id()")
        begun.set()
        await done.wait()

    async def after_the_news(api: Any, leave: Any) -> Any:
        answer = await tell(api, leave)
        await eventually(heard)
        await carol.until("leave", room_id)
        await hold()
        return answer

    async def hold() -> None:
        holding.append(asyncio.create_task(participant.db.run(open_transaction)))
        await begun.wait()

    holding: list[asyncio.Task[None]] = []
    if first == "news":
        monkeypatch.setattr(handshakes, "tell", after_the_news)
        await carol.act("leave", room_id)
    else:
        await hub.server.sender.stop()
        await carol.act("leave", room_id)
        await carol.until("leave", room_id)
        await hold()
        await hub.server.sender.start()
        await eventually(heard)
    assert await carol.pending() == {}
    done.set()
    await asyncio.gather(*holding)
    assert await carol.pending() == {}


async def test_a_hub_that_is_away_is_told_later(two: Two) -> None:
    """For the user the invite is gone at once; the hub hears of it when it is back."""
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    room_id = await alice.create(preset="private_chat")
    await bob.sync()
    await alice.act("invite", room_id, bob)
    await bob.until("invite", room_id)
    await hub.victim.unlisten()
    await bob.act("leave", room_id, reason="no")
    left = await bob.until("leave", room_id)
    assert left["timeline"]["events"] == []
    assert await bob.pending() == {}
    assert await hub.membership(room_id, bob.user_id) == "invite"
    await due(participant)
    assert await participant.server.declines.check() == 1
    assert await participant.server.declines.check() == 0
    await hub.victim.listen()
    await due(participant)
    assert await participant.server.declines.check() == 1
    view = await hub.engine.view(room_id)
    assert view is not None
    told = view.get("m.room.member", bob.user_id)
    assert told is not None
    assert told.content == {"membership": "leave", "reason": "no"}
    await due(participant)
    assert await participant.server.declines.check() == 0
    await alice.act("invite", room_id, bob)
    await bob.until("invite", room_id)


@pytest.mark.parametrize("change", ["invited", "joined"])
async def test_what_came_after_a_leave_is_not_undone_by_it(two: Two, change: str) -> None:
    """The hub never heard of the leave, and is back before it is told: the newest wish counts."""
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    room_id = await alice.create(preset="private_chat")
    await alice.act("invite", room_id, bob)
    await hub.victim.unlisten()
    await bob.act("leave", room_id)
    await hub.victim.listen()
    if change == "joined":
        await bob.act("join", room_id)
    else:
        await alice.act("invite", room_id, bob)
    await due(participant)
    assert await participant.server.declines.check() == 0
    expected = {"joined": "join", "invited": "invite"}[change]
    await bob.shows({expected: [room_id]})
    assert await hub.membership(room_id, bob.user_id) == expected


async def due(site: Site) -> None:
    """Let the time come at which a hub is asked again."""
    await site.db.execute("UPDATE outside_memberships SET tell_at = 0 WHERE tell_at IS NOT NULL")


async def test_a_hub_that_refuses_cannot_hold_an_invite_open(two: Two) -> None:
    """Withdrawn at the hub, and the news is still on its way: declining is no error."""
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    room_id = await alice.create(preset="private_chat")
    await bob.sync()
    await alice.act("invite", room_id, bob)
    await bob.until("invite", room_id)
    await hub.server.sender.stop()
    await alice.act("kick", room_id, bob)
    await bob.act("leave", room_id)
    await bob.until("leave", room_id)
    await due(participant)
    assert await participant.server.declines.check() == 1  # had the invite no place yet?
    await due(participant)
    assert await participant.server.declines.check() == 0


@pytest.mark.parametrize("late", ["", "late news"])
async def test_an_invite_declined_before_the_hub_placed_it_ends_at_the_hub_too(
    two: Two, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """Also when what the hub said before the invite comes after the leave."""
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    room_id = await alice.create(preset="private_chat")
    await alice.act("invite", room_id, bob)
    await bob.act("leave", room_id)
    await bob.sync()
    if late:
        await hub.server.sender.stop()
        await alice.act("ban", room_id, bob)
        await alice.act("unban", room_id, bob)
    declined = asyncio.Event()
    submit = Turns.submit

    async def later(self: Turns, room_id: str, proposals: Any) -> Any:
        if any(proposal.completed for proposal in proposals):
            await declined.wait()
        return await submit(self, room_id, proposals)

    monkeypatch.setattr(Turns, "submit", later)
    invite = asyncio.create_task(alice.act("invite", room_id, bob))
    await bob.until("invite", room_id)
    await bob.act("leave", room_id)
    if late:
        await hub.server.sender.start()
        await eventually(lambda: delivered(hub))
    declined.set()
    await invite
    assert await hub.membership(room_id, bob.user_id) == "invite"
    await due(participant)
    assert await participant.server.declines.check() == 1
    assert await hub.membership(room_id, bob.user_id) == "leave"
    await bob.shows({})
    await alice.act("ban", room_id, bob)
    outside = "SELECT count(*) FROM outside_memberships WHERE membership = 'ban'"
    await eventually(lambda: told_of(participant, outside))


async def delivered(hub: Site) -> bool:
    """Whether nothing waits to be sent."""
    waiting = "SELECT count(*) FROM outbound_ranges AS o JOIN rooms AS r USING (room_id) WHERE acked_position < head_position AND until_position IS NULL OR acked_position < until_position"
    return bool(await hub.db.fetchval(waiting) == 0)


async def told_of(site: Site, query: str) -> bool:
    return bool(await site.db.fetchval(query) == 1)


async def test_the_second_user_declines_through_send(two: Two) -> None:
    """Its server is in the room: the leave is an event like any other."""
    hub, _ = two
    _, _, carol, room_id = await carol_invited_beside_bob(two)
    await carol.act("leave", room_id, reason="busy")
    left = await carol.until("leave", room_id)
    assert left["timeline"]["events"][-1]["content"] == {"membership": "leave", "reason": "busy"}
    assert await hub.membership(room_id, carol.user_id) == "leave"
    handshakes = "SELECT count(*) FROM inbound_transactions WHERE endpoint = 'send_leave'"
    assert await hub.db.fetchval(handshakes) == 0
