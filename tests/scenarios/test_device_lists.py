"""Who has to look up whose devices again, on one server and across two: on joining, leaving, joining
again and with new keys (CS API §Tracking the device list for a user)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.federation.sites import Person, Site, sites
from tests.kit.cross_signing import Identity, SigningDevice, only
from tests.kit.postgres import Cluster
from tests.kit.rooms import HUB, PARTICIPANT
from tests.kit.waiting import HANGS


@pytest.fixture
async def servers(cluster: Cluster, tmp_path: Path) -> AsyncIterator[list[Site]]:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as made:
        yield made


class Client:
    """A person with a device, who follows the lists of devices."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.user_id = person.user_id
        self.device = SigningDevice(person.user_id, "")
        self.identity = Identity(person.user_id)
        self.since = ""
        self.start = ""

    async def new_keys(self) -> None:
        """Publish keys; the device's own change with each call."""
        device_id = (await self.person.ok("GET", "/account/whoami"))["device_id"]
        self.device = SigningDevice(self.user_id, device_id)
        await self.person.ok("POST", "/keys/upload", {"device_keys": self.device.keys})

    async def sync(self) -> Any:
        answer = await self.person.ok("GET", f"/sync?timeout=0&since={self.since}")
        self.start, self.since = self.start or answer["next_batch"], answer["next_batch"]
        return answer["device_lists"]

    async def follows(self) -> Client:
        """From now on."""
        self.since = self.start = ""
        await self.sync()
        return self

    async def hears(
        self, changed: Iterable[str] = (), left: Iterable[str] = (), on_the_way: str = ""
    ) -> None:
        """These changes come, together or one by one, and no others but that somebody leaves who comes
        back; and /keys/changes has what they come to."""
        seen: dict[str, set[str]] = {"changed": set(), "left": set()}
        wanted = {"changed": set(changed), "left": set(left)}
        begin = self.since
        async with asyncio.timeout(HANGS):
            while seen != wanted:
                found = await self.sync()
                for kind, users in seen.items():
                    users |= set(found[kind]) - {self.user_id, on_the_way if kind == "left" else ""}
                    assert users <= wanted[kind], (seen, wanted)
                await asyncio.sleep(0.02)
        found = await self.person.ok("GET", f"/keys/changes?from={begin}&to={self.since}")
        assert {kind: set(users) - {self.user_id} for kind, users in found.items()} == wanted


async def client(site: Site, name: str) -> Client:
    made = Client(await site.user(name))
    await made.new_keys()
    return made


async def joined(owner: Client, *others: Client) -> str:
    room_id = await owner.person.create(preset="public_chat")
    for other in others:
        await join(other, room_id, owner)
    return room_id


async def join(who: Client, room_id: str, via: Client) -> None:
    server = via.user_id.partition(":")[2]
    await who.person.ok("POST", f"/join/{quote(room_id)}?server_name={server}", {})


# The server of whom the lists are of, where the rooms are made, and who follows the lists.
PLACES = [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize(("here", "there"), PLACES, ids=["local", "from the hub", "from the participant"])
async def test_joining_leaving_and_joining_again(servers: list[Site], here: int, there: int) -> None:
    alice, bob = await client(servers[here], "alice"), await client(servers[there], "bob")
    owner = await client(servers[0], "owner")
    room_id = await joined(owner, alice)
    await alice.follows()
    await join(bob, room_id, owner)
    await alice.hears(changed={bob.user_id})
    await bob.new_keys()
    await alice.hears(changed={bob.user_id})
    await bob.person.act("leave", room_id)
    await alice.hears(left={bob.user_id})
    await bob.new_keys()
    assert await alice.sync() == {"changed": [], "left": []}
    await join(bob, room_id, owner)
    await alice.hears(changed={bob.user_id})
    # Out and in again between two answers.
    await bob.person.act("leave", room_id)
    await bob.new_keys()
    await join(bob, room_id, owner)
    await alice.hears(changed={bob.user_id}, on_the_way=bob.user_id)


@pytest.mark.parametrize(("here", "there"), PLACES, ids=["local", "from the hub", "from the participant"])
async def test_when_it_is_oneself_who_joins_and_leaves(servers: list[Site], here: int, there: int) -> None:
    alice, bob = await client(servers[here], "alice"), await client(servers[there], "bob")
    carol = await client(servers[there], "carol")
    room_id = await joined(bob, carol)
    await alice.follows()
    await join(alice, room_id, bob)
    await alice.hears(changed={bob.user_id, carol.user_id})
    await alice.person.act("leave", room_id)
    await alice.hears(left={bob.user_id, carol.user_id})
    await bob.new_keys()
    assert await alice.sync() == {"changed": [], "left": []}
    await join(alice, room_id, bob)
    await alice.hears(changed={bob.user_id, carol.user_id})
    # Out and in again between two answers, while others have new keys or leave unseen.
    await alice.person.act("leave", room_id)
    await bob.new_keys()
    await carol.person.act("leave", room_id)
    await join(alice, room_id, bob)
    await alice.hears(changed={bob.user_id}, left={carol.user_id})


async def test_another_shared_room_is_still_a_shared_room(servers: list[Site]) -> None:
    alice, bob = await client(servers[0], "alice"), await client(servers[1], "bob")
    first, second = await joined(alice, bob), await joined(alice, bob)
    await alice.follows()
    await bob.person.act("leave", first)
    await bob.new_keys()
    await alice.hears(changed={bob.user_id})
    await bob.person.act("leave", second)
    await alice.hears(left={bob.user_id})


async def test_signatures_and_logouts_change_the_list(servers: list[Site]) -> None:
    alice, bob = await client(servers[0], "alice"), await client(servers[1], "bob")
    await joined(alice, bob)
    await alice.follows()
    await bob.person.ok("POST", "/keys/device_signing/upload", bob.identity.body)
    await alice.hears(changed={bob.user_id})
    signed = only(bob.device.keys, bob.identity.self_signing)
    signatures = {bob.user_id: {bob.device.device_id: signed}}
    assert (await bob.person.ok("POST", "/keys/signatures/upload", signatures))["failures"] == {}
    await alice.hears(changed={bob.user_id})
    seen = await alice.person.ok("POST", "/keys/query", {"device_keys": {bob.user_id: []}})
    assert seen["master_keys"][bob.user_id]["keys"] == bob.identity.master_key["keys"]
    device = seen["device_keys"][bob.user_id][bob.device.device_id]
    assert bob.identity.self_signing.key_id in device["signatures"][bob.user_id]
    await bob.person.ok("POST", "/logout")
    await alice.hears(changed={bob.user_id})


async def test_what_keys_changes_is_asked_wrongly(servers: list[Site]) -> None:
    alice = await client(servers[0], "alice")
    for query, errcode in (
        ("", "M_MISSING_PARAM"),
        ("?from=x", "M_INVALID_PARAM"),
        ("?from=s1_1&to=x", "M_INVALID_PARAM"),
    ):
        status, answer = await alice.person.call("GET", f"/keys/changes{query}")
        assert (status, answer["errcode"]) == (400, errcode)
    await alice.follows()
    assert (await alice.person.ok("GET", f"/keys/changes?from={alice.since}"))["changed"] == []
    assert (await alice.person.ok("GET", f"/keys/changes?from={alice.since}&to=s1_1"))["left"] == []
