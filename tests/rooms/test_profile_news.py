"""A changed profile reaches every room of its user, whoever is away and however often it changes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from lmserver.rooms import profile_news
from tests.federation.sites import Person, Site, sites
from tests.kit.postgres import Cluster
from tests.kit.rooms import HUB, PARTICIPANT
from tests.kit.waiting import HANGS


async def name_in(site: Site, room_id: str, user_id: str) -> object:
    view = await site.engine.view(room_id)
    member = None if view is None else view.get("m.room.member", user_id)
    return None if member is None else member.content.get("displayname")


async def call_oneself(person: Person, name: str) -> None:
    path = f"/profile/{quote(person.user_id, safe='')}/displayname"
    await person.ok("PUT", path, {"displayname": name})


async def test_a_hub_that_is_away_is_told_later_and_keeps_nobody_waiting(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        theirs = await alice.create(preset="public_chat")
        await bob.act("join", theirs)
        ours = [await bob.create() for _ in range(3)]
        await hub.victim.unlisten()
        monkeypatch.setattr(profile_news, "WAIT_SECONDS", 0.5)
        started = time.monotonic()
        await call_oneself(bob, "Bob B.")
        assert time.monotonic() - started < 10  # other events wait fifteen seconds for their hub
        for room_id in ours:
            assert await name_in(participant, room_id, bob.user_id) == "Bob B."
        await hub.victim.listen()
        await alice.say(theirs, "here again", "1")
        async with asyncio.timeout(HANGS):
            while await name_in(hub, theirs, bob.user_id) != "Bob B.":
                await asyncio.sleep(0.05)


async def test_of_changes_at_once_the_last_is_told_everywhere(cluster: Cluster, tmp_path: Path) -> None:
    async with sites(cluster, tmp_path, HUB) as [hub]:
        alice = await hub.user("alice")
        rooms = [await alice.create() for _ in range(4)]
        await asyncio.gather(*(call_oneself(alice, f"Alice {n}") for n in range(6)))
        profile = await alice.ok("GET", f"/profile/{quote(alice.user_id, safe='')}")
        async with asyncio.timeout(HANGS):
            while {await name_in(hub, r, alice.user_id) for r in rooms} != {profile["displayname"]}:
                await asyncio.sleep(0.05)
        # The same again is no news.
        before = [(await hub.engine.view(r)).head_position for r in rooms]  # type: ignore[union-attr]
        await call_oneself(alice, profile["displayname"])
        assert [(await hub.engine.view(r)).head_position for r in rooms] == before  # type: ignore[union-attr]
