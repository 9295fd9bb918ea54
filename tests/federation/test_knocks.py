"""Knocks at rooms of another hub: asked, denied, asked again, taken back, let in (D04 §Knocks)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.federation.sites import Person, Site, sites
from tests.kit.postgres import Cluster
from tests.kit.rooms import EVIL, HUB, PARTICIPANT

Two = tuple[Site, Site]


@pytest.fixture
async def two(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Two]:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        yield hub, participant


async def knockable(alice: Person, alias: str | None = None) -> str:
    """A room of Alice's at which anybody may knock."""
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    body = {"preset": "private_chat", "name": "the door", "initial_state": [rule]}
    return await alice.create(**body, **({} if alias is None else {"room_alias_name": alias}))


async def knock(who: Person, room_id: str, reason: str | None = None, query: str = "") -> None:
    body = {} if reason is None else {"reason": reason}
    answer = await who.ok("POST", f"/knock/{quote(room_id)}{query}", body)
    assert answer["room_id"].startswith("!")


async def test_a_knock_is_seen_on_both_sides_and_let_in(two: Two) -> None:
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    await bob.ok("PUT", f"/profile/{bob.user_id}/displayname", {"displayname": "Bob"})
    await alice.sync()
    room_id = await knockable(alice, "door")
    await knock(bob, f"#door:{HUB}", "it is me")
    section = await bob.until("knock", room_id)
    events = {(e["type"], e["state_key"]): e for e in section["knock_state"]["events"]}
    assert events["m.room.name", ""]["content"] == {"name": "the door"}
    content = {"membership": "knock", "displayname": "Bob", "reason": "it is me"}
    assert events["m.room.member", bob.user_id]["content"] == content
    seen = await alice.until("join", room_id)
    while not any(e["content"].get("reason") == "it is me" for e in seen["timeline"]["events"]):
        seen = await alice.until("join", room_id)
    await alice.act("invite", room_id, bob)
    await bob.until("invite", room_id)
    await bob.shows({"invite": [room_id]})
    await bob.act("join", room_id)
    await bob.shows({"join": [room_id]})
    assert await hub.victim.problems(room_id) == [] == await participant.victim.problems(room_id)


async def test_a_knock_is_denied_made_again_and_taken_back(two: Two) -> None:
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    room_id = await knockable(alice)
    await bob.sync()
    await knock(bob, room_id, "please")
    await bob.until("knock", room_id)
    await alice.act("kick", room_id, bob, reason="no")
    left = await bob.until("leave", room_id)
    assert left["timeline"]["events"][0]["content"] == {"membership": "leave", "reason": "no"}
    await knock(bob, room_id, "pretty please")
    await bob.until("knock", room_id)
    assert await hub.membership(room_id, bob.user_id) == "knock"
    await bob.act("leave", room_id)
    await bob.until("leave", room_id)
    assert await hub.membership(room_id, bob.user_id) == "leave"
    assert await bob.pending() == {}
    await knock(bob, room_id)
    await alice.act("ban", room_id, bob)
    await bob.until("leave", room_id)
    assert (await bob.call("POST", f"/knock/{quote(room_id)}", {}))[0] == 403


async def test_a_late_denial_does_not_undo_the_next_knock(two: Two) -> None:
    """The denial waits at the hub while the user, who was let know in another way, knocks again."""
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    room_id = await knockable(alice)
    await bob.sync()
    await knock(bob, room_id)
    await bob.until("knock", room_id)
    await hub.server.sender.stop()
    await alice.act("kick", room_id, bob)
    await knock(bob, room_id, "once more")
    await hub.server.sender.start()
    await alice.act("kick", room_id, bob, reason="really")
    left = await bob.until("leave", room_id)
    assert left["timeline"]["events"][0]["content"].get("reason") == "really"


async def test_rooms_without_a_door_refuse_a_knock(two: Two) -> None:
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    private = await alice.create(preset="private_chat")
    status, answer = await bob.call("POST", f"/knock/{quote(private)}", {})
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    status, answer = await bob.call("POST", f"/knock/{quote('!none:' + HUB)}", {})
    assert (status, answer["errcode"]) == (404, "M_NOT_FOUND")
    status, answer = await bob.call("POST", f"/knock/{quote('!none:nowhere.test')}", {})
    assert (status, answer["errcode"]) == (502, "M_UNKNOWN")
    assert (await bob.call("POST", "/knock/nonsense", {}))[0] == 400
    assert await bob.pending() == {}


async def test_the_second_user_of_a_server_knocks_through_send(two: Two) -> None:
    """Its server is in the room: the knock is an event like any other."""
    hub, participant = two
    alice = await hub.user("alice")
    bob, carol = await participant.user("bob"), await participant.user("carol")
    room_id = await knockable(alice)
    await alice.act("invite", room_id, bob)
    await bob.act("join", room_id)
    await carol.sync()
    await knock(carol, room_id)
    await carol.until("knock", room_id)
    assert await hub.membership(room_id, carol.user_id) == "knock"
    await alice.act("kick", room_id, carol)
    await carol.until("leave", room_id)
    assert await hub.victim.problems(room_id) == [] == await participant.victim.problems(room_id)


async def test_a_participant_names_the_hub_to_who_knocks_or_joins(cluster: Cluster, tmp_path: Path) -> None:
    """The client knows only a participant of the room, and that the room ID's server is away."""
    async with sites(cluster, tmp_path, HUB, PARTICIPANT, EVIL) as [hub, participant, third]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        carol = await third.user("carol")
        room_id = await knockable(alice)
        await alice.act("invite", room_id, bob)
        await bob.act("join", room_id)
        for make in ("make_join", "make_knock", "make_leave"):
            path = f"/_matrix/federation/v1/{make}/{quote(room_id)}/{quote(carol.user_id)}"
            response = await third.server.client.request("GET", PARTICIPANT, path)
            assert (response.status, response.json["errcode"]) == (400, "M_WRONG_SERVER")
            assert response.json["org.lmserver.hub"] == HUB
        await carol.sync()
        await knock(carol, room_id, query=f"?server_name={PARTICIPANT}&via={PARTICIPANT}")
        await carol.until("knock", room_id)
