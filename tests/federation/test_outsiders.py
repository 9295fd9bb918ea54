"""Users of servers that are not in the room: kicks, bans and withdrawals reach them all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.federation.sites import Person, Site, sites
from tests.kit.postgres import Cluster
from tests.kit.rooms import HUB, PARTICIPANT


@pytest.fixture
async def two(cluster: Cluster, tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        yield hub, participant


async def invited(alice: Person, bob: Person) -> str:
    """A private room of Alice's that Bob is invited to and knows of."""
    room_id = await alice.create(preset="private_chat", name="private")
    await bob.sync()
    await alice.act("invite", room_id, bob)
    section = await bob.until("invite", room_id)
    assert "m.room.name" in [event["type"] for event in section["invite_state"]["events"]]
    return room_id


async def test_a_withdrawn_invite_disappears_with_its_reason(two: tuple[Site, Site]) -> None:
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    room_id = await invited(alice, bob)
    await alice.act("kick", room_id, bob, reason="wrong room")
    left = await bob.until("leave", room_id)
    [event] = left["timeline"]["events"]
    assert event["sender"] == alice.user_id
    assert event["content"] == {"membership": "leave", "reason": "wrong room"}
    assert await bob.pending() == {}
    assert (await bob.room("join", room_id))[0] == 403
    await bob.act("leave", room_id)
    await bob.act("forget", room_id)
    assert await participant.db.fetchval("SELECT count(*) FROM outside_memberships") == 0


async def test_an_invited_user_is_banned_unbanned_and_invited_again(two: tuple[Site, Site]) -> None:
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    room_id = await invited(alice, bob)
    await alice.act("ban", room_id, bob)
    left = await bob.until("leave", room_id)
    assert left["timeline"]["events"][0]["content"]["membership"] == "ban"
    assert (await bob.room("leave", room_id))[0] in (403, 404)
    await alice.act("unban", room_id, bob)
    left = await bob.until("leave", room_id)
    assert left["timeline"]["events"][0]["content"]["membership"] == "leave"
    await alice.act("invite", room_id, bob)
    await bob.until("invite", room_id)
    await bob.act("join", room_id)
    await bob.until("join", room_id)
    assert await participant.db.fetchval("SELECT count(*) FROM outside_memberships") == 0
    assert await hub.victim.problems(room_id) == [] == await participant.victim.problems(room_id)


async def test_the_second_user_is_told_after_the_first_has_left(two: tuple[Site, Site]) -> None:
    """Carol's invite came while Bob was in the room; the list ends when he leaves."""
    hub, participant = two
    alice = await hub.user("alice")
    bob, carol = await participant.user("bob"), await participant.user("carol")
    room_id = await invited(alice, bob)
    await bob.act("join", room_id)
    await carol.sync()
    await alice.act("invite", room_id, carol)
    await carol.until("invite", room_id)
    await bob.act("leave", room_id)
    await alice.say(room_id, "not for them", "1")
    await alice.act("kick", room_id, carol)
    left = await carol.until("leave", room_id)
    assert [e["content"]["membership"] for e in left["timeline"]["events"]] == ["leave"]
    assert await carol.pending() == {}


async def test_b16_fan_out_stops_with_the_ban_of_a_servers_last_user(two: tuple[Site, Site]) -> None:
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    room_id = await invited(alice, bob)
    await bob.act("join", room_id)
    await bob.until("join", room_id)
    await alice.act("ban", room_id, bob, reason="enough")
    left = await bob.until("leave", room_id)
    assert left["timeline"]["events"][-1]["content"]["membership"] == "ban"
    secret = await alice.say(room_id, "among ourselves", "1")
    await alice.act("unban", room_id, bob)
    left = await bob.until("leave", room_id)
    assert [e["content"]["membership"] for e in left["timeline"]["events"]] == ["leave"]
    stored = await participant.db.fetchval("SELECT count(*) FROM events WHERE event_id = $1", secret)
    assert stored == 0
    assert await participant.membership(room_id, bob.user_id) == "ban"
    assert await participant.victim.problems(room_id) == []
