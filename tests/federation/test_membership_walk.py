"""Random lives of membership: whatever users of three servers do at once, everybody is told the
same in the end as the hub's list says."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.federation.sites import Person, Site, sites
from tests.kit.postgres import Cluster
from tests.kit.rooms import EVIL, HUB, PARTICIPANT
from tests.kit.waiting import eventually

STEPS = 12
AT_ONCE = 3
OWN = ("join", "join", "leave", "knock")
OTHERS = ("invite", "invite", "kick", "ban", "unban")
SHOWN = {"join": "join", "invite": "invite", "knock": "knock"}


class Walk:
    """One room of Alice's on the hub, and two users of each server."""

    def __init__(self, servers: list[Site], people: list[Person], room_id: str, seed: int) -> None:
        self.servers = servers
        self.alice, *self.others = people
        self.room_id = room_id
        self.chance = random.Random(seed)
        self.log: list[str] = []

    async def step(self) -> None:
        """Some things at once; refusals are as good as successes, failures of a server are not."""
        work = [self._act() for _ in range(AT_ONCE)]
        if self.chance.random() < 0.3:
            rule = self.chance.choice(["public", "knock", "invite"])
            path = f"/rooms/{self.room_id}/state/m.room.join_rules/"
            work.append(self._call(self.alice, "PUT", path, {"join_rule": rule}))
        away = self.chance.choice(self.servers) if self.chance.random() < 0.2 else None
        if away is not None:
            self.log.append(f"{away.name} is away")
            await away.victim.unlisten()
        await asyncio.gather(*work)
        if away is not None:
            await away.victim.listen()

    async def meet(self) -> None:
        """Everybody has everybody's keys: a first request while a server is away is another story."""
        for server in self.servers:
            for other in self.servers:
                if server is not other:
                    path = f"/_matrix/federation/v1/make_leave/!none:{other.name}/@none:{server.name}"
                    assert (await server.server.client.request("GET", other.name, path)).status == 404

    async def settle(self) -> None:
        """Nobody waits for a time to come that is only a matter of waiting."""
        for server in self.servers:
            for other in self.servers:
                server.server.sender.peer_alive(other.name)
            await server.db.execute("UPDATE outside_memberships SET tell_at = 0 WHERE tell_at IS NOT NULL")
            await server.server.declines.check()

    async def _act(self) -> None:
        who = self.chance.choice(self.others)
        if self.chance.random() < 0.5:
            action = self.chance.choice(OWN)
            path = f"/knock/{self.room_id}" if action == "knock" else f"/rooms/{self.room_id}/{action}"
            await self._call(who, "POST", path, {})
        else:
            path = f"/rooms/{self.room_id}/{self.chance.choice(OTHERS)}"
            await self._call(self.alice, "POST", path, {"user_id": who.user_id})

    async def _call(self, who: Person, method: str, path: str, body: dict[str, str]) -> None:
        status, answer = await who.call(method, path, body)
        self.log.append(f"{who.user_id} {path.rsplit('/', 2)[-1]} {body.get('user_id', '')} -> {status}")
        assert status < 500 or status in (502, 504), (self.log, answer)

    async def disagreement(self) -> str | None:
        """What somebody is told that is not so, if anything."""
        hub = self.servers[0]
        view = await hub.engine.view(self.room_id)
        assert view is not None
        for person in self.others:
            membership = view.membership(person.user_id)
            expected = {SHOWN[membership]: [self.room_id]} if membership in SHOWN else {}
            shown = await person.pending()
            if shown != expected:
                return f"{person.user_id} is {membership} and sees {shown}"
        for server in self.servers[1:]:
            joined = any(p.site is server and view.membership(p.user_id) == "join" for p in self.others)
            theirs = await server.engine.view(self.room_id)
            if joined and (theirs is None or theirs.head_event_id != view.head_event_id):
                return f"{server.name} is behind"
        return None


@pytest.mark.parametrize("seed", range(4))
async def test_everybody_is_told_what_the_hub_says(cluster: Cluster, tmp_path: Path, seed: int) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT, EVIL) as servers:
        hub, near, far = servers
        names = [(hub, "alice"), (hub, "h"), (near, "p1"), (near, "p2"), (far, "t1"), (far, "t2")]
        people = [await site.user(name) for site, name in names]
        room_id = await people[0].create(preset="public_chat")
        walk = Walk(servers, people, room_id, seed)
        await walk.meet()
        for _ in range(STEPS):
            await walk.step()
        await walk.settle()
        found: str | None = None

        async def agreed() -> bool:
            nonlocal found
            found = await walk.disagreement()
            return found is None

        try:
            await eventually(agreed)
        except AssertionError:
            raise AssertionError(f"{found} after\n" + "\n".join(walk.log)) from None
        for server in servers:
            assert await server.victim.problems(room_id) == []
