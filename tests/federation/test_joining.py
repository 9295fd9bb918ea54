"""Joining rooms elsewhere: at once, through others, while somebody is inviting."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

import orjson
import pytest

from tests.federation.sites import Person, Site, sites
from tests.kit.postgres import Cluster
from tests.kit.rooms import EVIL, HUB, PARTICIPANT
from tests.kit.waiting import eventually


async def join(who: Person, room_id: str, query: str = "") -> None:
    await who.ok("POST", f"/join/{quote(room_id)}{query}", {})


async def agree(room_id: str, *servers: Site) -> None:
    """All heads are the same in the end, and every list verifies."""

    async def same() -> bool:
        views = [await server.engine.view(room_id) for server in servers]
        return len({None if view is None else view.head_event_id for view in views}) == 1

    await eventually(same)
    for server in servers:
        assert await server.victim.problems(room_id) == []


async def test_users_of_one_server_who_join_at_once_need_one_handshake(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice = await hub.user("alice")
        crowd = [await participant.user(f"u{n}") for n in range(5)]
        room_id = await alice.create(preset="public_chat")
        await asyncio.gather(*(join(user, room_id) for user in crowd))
        for user in crowd:
            assert await participant.membership(room_id, user.user_id) == "join"
        await agree(room_id, hub, participant)
        handshakes = "SELECT count(*) FROM inbound_transactions WHERE endpoint = 'joined'"
        assert await hub.db.fetchval(handshakes) == 1


async def test_r7_a_join_that_a_full_room_cannot_take_may_be_tried_again(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        room_id = await alice.create(preset="public_chat")
        with monkeypatch.context() as full:
            full.setattr("lmserver.rooms.turns.MAX_WAITING", 0)
            status, answer = await bob.call("POST", f"/join/{quote(room_id)}", {})
        assert (status, answer["errcode"], answer["retry_after_ms"]) == (429, "M_LIMIT_EXCEEDED", 1000)
        await join(bob, room_id)


async def test_two_processes_of_a_server_may_join_at_once(cluster: Cluster, tmp_path: Path) -> None:
    """The database decides whose answer begins the list; the other's join comes as an event."""
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice = await hub.user("alice")
        bob, carol = await participant.user("bob"), await participant.user("carol")
        room_id = await alice.create(preset="public_chat")
        other = Site(participant.db, participant.victim.network, PARTICIPANT, tmp_path)
        await other.http.start_server()
        try:
            twin = Person(other, carol.user_id, carol.token)
            await asyncio.gather(join(bob, room_id), join(twin, room_id))

            async def both() -> bool:
                members = "SELECT count(*) FROM room_state WHERE to_position IS NULL AND membership = 'join'"
                return bool(await participant.db.fetchval(members) == 3)

            await eventually(both)
        finally:
            await other.stop()
        participant.engine._turns.forget(room_id)
        await agree(room_id, hub, participant)


async def test_a_join_and_an_invite_at_the_same_moment(cluster: Cluster, tmp_path: Path) -> None:
    """Whichever the hub takes first: the user is in, and no invite stays behind."""
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice = await hub.user("alice")
        for n in range(8):
            bob = await participant.user(f"bob{n}")
            room_id = await alice.create(preset="public_chat")
            invite = alice.room("invite", room_id, {"user_id": bob.user_id})
            (status, answer), _ = await asyncio.gather(invite, join(bob, room_id))
            assert status in (200, 403), answer
            await agree(room_id, hub, participant)
            assert await hub.membership(room_id, bob.user_id) == "join"
            await bob.shows({"join": [room_id]})


async def test_an_invite_of_a_second_user_while_the_first_joins(cluster: Cluster, tmp_path: Path) -> None:
    """Asked or told: the invite reaches the user, however the first user's join fell."""
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice = await hub.user("alice")
        for n in range(8):
            bob, carol = await participant.user(f"bob{n}"), await participant.user(f"carol{n}")
            room_id = await alice.create(preset="public_chat")
            await asyncio.gather(alice.act("invite", room_id, carol), join(bob, room_id))
            await agree(room_id, hub, participant)
            await carol.shows({"invite": [room_id]})


async def test_a_join_through_a_participant_that_names_the_hub(cluster: Cluster, tmp_path: Path) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT, EVIL) as [hub, participant, third]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        carol = await third.user("carol")
        room_id = await alice.create(preset="public_chat")
        await join(bob, room_id)
        await join(carol, room_id, f"?via={PARTICIPANT}")
        await agree(room_id, hub, participant, third)
        dave = await third.user("dave")
        await join(dave, room_id)
        await agree(room_id, hub, participant, third)


async def test_a_direct_room_says_so_to_who_is_invited(cluster: Cluster, tmp_path: Path) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice = await hub.user("alice")
        for who in (await participant.user("bob"), await hub.user("carol")):
            body = {"preset": "trusted_private_chat", "is_direct": True, "invite": [who.user_id]}
            room_id = await alice.create(**body)
            section = await who.until("invite", room_id)
            [own] = [e for e in section["invite_state"]["events"] if e["state_key"] == who.user_id]
            assert own["content"]["is_direct"] is True


async def test_leaving_and_coming_back_many_times(cluster: Cluster, tmp_path: Path) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        room_id = await alice.create(preset="public_chat")
        for n in range(4):
            await join(bob, room_id)
            await alice.say(room_id, f"hello {n}", f"h{n}")
            await agree(room_id, hub, participant)
            await bob.act("leave", room_id)
            await alice.say(room_id, f"gone {n}", f"g{n}")
        assert await hub.victim.problems(room_id) == [] == await participant.victim.problems(room_id)
        assert await hub.db.fetchval("SELECT count(*) FROM outbound_ranges") == 0


async def test_c7_a_server_that_comes_after_an_erasure_reads_redacted_copies(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The state it joins with, and what its users scroll up to, are accepted and verify."""
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice, carol = await hub.user("alice"), await hub.user("carol")
        bob = await participant.user("bob")
        await hub.server.accounts.set_profile(alice.user_id, "displayname", "xyzzy")
        room_id = await alice.create(preset="public_chat", name="The room")
        await join(carol, room_id)
        event_id = await alice.say(room_id, "xyzzy", "t1")
        await hub.server.accounts.deactivate(alice.user_id, erase=True)
        await join(bob, room_id)
        for path in ("messages?dir=b&limit=100", "members", "state", f"event/{quote(event_id)}"):
            for reader, expected in ((carol, True), (bob, False)):
                found = orjson.dumps(await reader.ok("GET", f"/rooms/{quote(room_id)}/{path}"))
                assert (b"xyzzy" in found) is expected, (path, reader.user_id, found)
        await agree(room_id, hub, participant)
