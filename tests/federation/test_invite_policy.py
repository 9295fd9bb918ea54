"""Users who do not want to be invited, and invites that are too many (attacks I4, R11)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lmserver.accounts import invite_policy
from lmserver.accounts.invite_policy import matches_glob
from tests.federation.sites import Person, Site, sites
from tests.kit.postgres import Cluster
from tests.kit.rooms import HUB, PARTICIPANT

Two = tuple[Site, Site]


@pytest.fixture
async def two(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Two]:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        yield hub, participant


async def wishes(who: Person, type_: str, content: dict[str, Any]) -> None:
    await who.ok("PUT", f"/user/{quote(who.user_id)}/account_data/{type_}", content)


BLOCKS: list[tuple[str, dict[str, Any], bool]] = [
    ("m.ignored_user_list", {"ignored_users": {f"@alice:{HUB}": {}}}, True),
    ("m.ignored_user_list", {"ignored_users": {f"@other:{HUB}": {}}}, False),
    ("m.ignored_user_list", {"ignored_users": [f"@alice:{HUB}"]}, False),
    ("m.invite_permission_config", {"default_action": "block"}, True),
    ("m.invite_permission_config", {"default_action": "sing"}, False),
    ("m.invite_permission_config", {"default_action": "block", "enabled": False}, False),
    ("org.matrix.msc4155.invite_permission_config", {"blocked_users": [f"@al*:{HUB}"]}, True),
    ("org.matrix.msc4155.invite_permission_config", {"blocked_servers": ["*.test"]}, True),
    ("org.matrix.msc4155.invite_permission_config", {"ignored_servers": ["hub.tes?"]}, True),
    (
        "org.matrix.msc4155.invite_permission_config",
        {"allowed_users": [f"@alice:{HUB}"], "blocked_servers": ["*"], "default_action": "block"},
        False,
    ),
    ("m.invite_permission_config", {"blocked_users": 5, "allowed_servers": {}, "x": None}, False),
]


@pytest.mark.parametrize(("type_", "content", "blocked"), BLOCKS)
async def test_a_user_refuses_invites_from_near_and_far(
    two: Two, type_: str, content: dict[str, Any], blocked: bool
) -> None:
    hub, participant = two
    alice, near, far = await hub.user("alice"), await hub.user("near"), await participant.user("far")
    for who in (near, far):
        await wishes(who, type_, content)
    room_id = await alice.create(preset="private_chat")
    for who in (near, far):
        status, answer = await alice.room("invite", room_id, {"user_id": who.user_id})
        assert (status, answer.get("errcode")) == ((403, "M_INVITE_BLOCKED") if blocked else (200, None))
        assert await hub.membership(room_id, who.user_id) == ("leave" if blocked else "invite")
        assert await who.pending() == ({} if blocked else {"invite": [room_id]})


async def test_an_invite_that_needed_no_asking_is_not_shown(two: Two) -> None:
    """The invited user's server is in the room, so the hub appends the invite as any event."""
    hub, participant = two
    alice = await hub.user("alice")
    bob, carol = await participant.user("bob"), await participant.user("carol")
    room_id = await alice.create(preset="public_chat")
    await bob.ok("POST", f"/join/{quote(room_id)}", {})
    await wishes(carol, "m.invite_permission_config", {"default_action": "block"})
    await alice.act("invite", room_id, carol)
    other = await alice.create(preset="public_chat")
    await bob.until("join", room_id)
    status, answer = await alice.room("invite", other, {"user_id": carol.user_id})
    assert (status, answer["errcode"]) == (403, "M_INVITE_BLOCKED")
    status, answer = await bob.room("invite", room_id, {"user_id": carol.user_id})
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    assert await carol.pending() == {}
    await wishes(carol, "m.invite_permission_config", {})
    await carol.shows({"invite": [room_id]})


async def test_an_invite_disappears_when_its_sender_is_ignored(two: Two) -> None:
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    room_id = await alice.create(preset="private_chat")
    await alice.act("invite", room_id, bob)
    await bob.shows({"invite": [room_id]})
    await wishes(bob, "m.ignored_user_list", {"ignored_users": {alice.user_id: {}}})
    assert await bob.pending() == {}


@pytest.mark.parametrize("limit", ["invites_from_user", "invites_from_server", "invites_to_user"])
async def test_i4_invites_from_elsewhere_are_limited(cluster: Cluster, tmp_path: Path, limit: str) -> None:
    limits = {limit: {"per_second": 0.001, "burst": 3}, "invite": {"burst": 1000}}
    limits["registration"] = limits["login"] = limits["create_room"] = {"burst": 1000}
    async with sites(cluster, tmp_path, HUB, PARTICIPANT, limits=limits) as [hub, participant]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        rooms = [await alice.create(preset="private_chat") for _ in range(4)]
        for room_id in rooms[:3]:
            await alice.act("invite", room_id, bob)
        status, answer = await alice.room("invite", rooms[3], {"user_id": bob.user_id})
        assert (status, answer["errcode"]) == (429, "M_LIMIT_EXCEEDED")
        assert answer["retry_after_ms"] > 1000
        assert await hub.membership(rooms[3], bob.user_id) == "leave"
        await bob.shows({"invite": sorted(rooms[:3])})


async def test_i4_only_so_many_invites_wait_for_a_user(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invite_policy, "MAX_PENDING", 2)
    hub, participant = two
    alice, bob = await hub.user("alice"), await participant.user("bob")
    rooms = [await alice.create(preset="private_chat") for _ in range(3)]
    for room_id in rooms[:2]:
        await alice.act("invite", room_id, bob)
    status, answer = await alice.room("invite", rooms[2], {"user_id": bob.user_id})
    assert (status, answer["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    await bob.act("leave", rooms[0])
    await alice.act("invite", rooms[2], bob)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("*", "", True), ("", "", True), ("", "a", False), ("a*c", "abbc", True), ("a*c", "abbd", False),
        ("*.evil.test", "a.evil.test", True), ("*.evil.test", "evil.test", False), ("??", "ab", True),
        ("??", "abc", False), ("[ab]", "a", False), ("a**b*", "axxbyy", True), ("*a*b", "ab ab b a", False),
    ],
)  # fmt: skip
def test_globs(pattern: str, text: str, expected: bool) -> None:
    assert matches_glob(pattern, text) is expected


def test_r11_a_glob_made_to_be_slow_is_not() -> None:
    started = time.process_time()
    assert not matches_glob("*a" * 100 + "b", "a" * 255)
    assert time.process_time() - started < 5.0  # tried in every way it would take years
