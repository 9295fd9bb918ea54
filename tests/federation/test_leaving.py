"""Invites declined from outside the room: by the hub's hand, later, or without it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.federation.sites import Site, sites
from tests.kit.postgres import Cluster
from tests.kit.rooms import HUB, PARTICIPANT
from tests.kit.users import eventually

Two = tuple[Site, Site]


@pytest.fixture
async def two(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Two]:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        yield hub, participant


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
    hub, participant = two
    alice = await hub.user("alice")
    bob, carol = await participant.user("bob"), await participant.user("carol")
    room_id = await alice.create(preset="private_chat")
    await alice.act("invite", room_id, bob)
    await bob.act("join", room_id)
    await carol.sync()
    await alice.act("invite", room_id, carol)
    await carol.until("invite", room_id)
    await bob.act("leave", room_id)
    await alice.say(room_id, "alone again", "1")
    await carol.act("leave", room_id)
    await carol.until("leave", room_id)
    assert await hub.membership(room_id, carol.user_id) == "leave"
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
    await bob.act("leave", room_id)
    await bob.until("leave", room_id)
    assert await bob.pending() == {}
    assert await hub.membership(room_id, bob.user_id) == "invite"
    await hub.victim.listen()
    participant.server.sender.peer_alive(HUB)

    async def declined() -> bool:
        return await hub.membership(room_id, bob.user_id) == "leave"

    await eventually(declined)
    await alice.act("invite", room_id, bob)
    await bob.until("invite", room_id)


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
    assert await participant.db.fetchval("SELECT count(*) FROM outbound_lpdus") == 0
