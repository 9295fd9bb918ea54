"""Spaces and room summaries, here and across servers: who is told what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import ClientSession

from lmserver.federation_client.errors import Unreachable
from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.spaces import Spaces, Walk, _in_order, _of_answer
from lmserver.storage.database import Database
from tests.attacks.conftest import arena, config
from tests.client_api.test_ignoring import Club, club
from tests.evilpeer.arena import Arena
from tests.federation.sites import Person, sites
from tests.kit.postgres import Cluster
from tests.kit.reading_world import World
from tests.kit.rooms import ALICE, HUB, PARTICIPANT, ROOM, opening

__all__ = ["arena", "club", "config"]

V1 = "/_matrix/client/v1"
SPACE = {"creation_content": {"type": "m.space"}}


def child(key: str, order: Any = None, at: int = 1, **content: Any) -> dict[str, Any]:
    content = {"via": ["x.test"], **content} | ({} if order is None else {"order": order})
    return {
        "type": "m.space.child",
        "state_key": key,
        "sender": "@a:x.test",
        "content": content,
        "origin_server_ts": at,
    }


def test_children_in_the_order_of_the_specification() -> None:
    made = [child("!d:x"), child("!c:x", at=0), child("!b:x", "b"), child("!a:x", "a"), child("!e:x", "\n"),
            child("!f:x", 5), child("!g:x", "x" * 51), None]  # fmt: skip
    assert [c["state_key"] for c in _in_order(made)] == [
        "!a:x", "!b:x", "!c:x", "!d:x", "!e:x", "!f:x", "!g:x",
    ]  # fmt: skip


def test_of_another_servers_space_only_what_is_specified_is_kept() -> None:
    good = {"room_id": "!s:x.test", "num_joined_members": 1, "world_readable": False, "guest_can_join": False}
    junk: list[Any] = [5, {}, child("no room"), child("!a:x", via=[]), child("!a:x", via="x"), child("!a:x", via=[5]),
        {**child("!a:x"), "content": 5}, {**child("!a:x"), "origin_server_ts": "1"}, {**child("!a:x"), "sender": 5},
        {**child("!a:x"), "type": "m.room.member"}, {**child("!ok:x"), "evil": 1}]  # fmt: skip
    room = _of_answer({**good, "children_state": junk, "evil": 1, "room_version": "I.1"}, "!s:x.test")
    assert room is not None
    assert room.entry == {**good, "room_version": "I.1"}
    assert [(c["state_key"], "evil" in c) for c in room.children] == [("!ok:x", False)]
    for answer in (None, 5, {}, {**good, "room_id": "!other:x.test"}):
        assert _of_answer(answer, "!s:x.test") is None
    assert _of_answer({**good, "children_state": 5}, "!s:x.test") is not None


class Spacious:
    """Calls under /v1 for the users of a club."""

    def __init__(self, club: Club) -> None:
        self.club = club

    async def call(self, who: str, path: str) -> tuple[int, Any]:
        token = self.club.tokens.get(who)
        return await self.club.api.call("GET", V1 + path, None, token)

    async def tree(self, who: str, room_id: str, query: str = "") -> list[str]:
        status, answer = await self.call(who, f"/rooms/{quote(room_id, safe='')}/hierarchy{query}")
        assert status == 200, answer
        return [room["name"] for room in answer["rooms"]]

    async def room(self, name: str, **body: Any) -> str:
        room_id: str = (await self.club.ok("alice", "POST", "/createRoom", {"name": name, **body}))["room_id"]
        return room_id

    async def put(self, space: str, room_id: str, **content: Any) -> None:
        path = f"/rooms/{quote(space, safe='')}/state/m.space.child/{quote(room_id, safe='')}"
        await self.club.ok("alice", "PUT", path, {"via": ["hub.test"], **content})


async def test_a_space_as_each_user_may_know_it(club: Club) -> None:
    s = Spacious(club)
    top = await s.room("top", preset="public_chat", **SPACE)
    below = await s.room("below", preset="public_chat", **SPACE)
    open_, closed = await s.room("open", preset="public_chat"), await s.room("closed")
    leaf, knock = await s.room("leaf", preset="public_chat"), await s.room("knock")
    await club.ok(
        "alice", "PUT", f"/rooms/{quote(knock, safe='')}/state/m.room.join_rules", {"join_rule": "knock"}
    )
    await s.put(top, below, order="a")
    await s.put(top, open_, order="b", suggested=True)
    await s.put(top, closed, order="c")
    await s.put(top, knock, order="d")
    await s.put(below, leaf)
    await s.put(below, top)  # a circle
    await s.put(top, "!none:hub.test", order="e")
    assert await s.tree("alice", top) == ["top", "below", "leaf", "open", "closed", "knock"]
    assert await s.tree("carol", top) == ["top", "below", "leaf", "open", "knock"]
    assert await s.tree("carol", top, "?max_depth=1") == ["top", "below", "open", "knock"]
    assert await s.tree("carol", top, "?max_depth=0") == ["top"]
    assert await s.tree("carol", top, "?suggested_only=true") == ["top", "open"]
    await club.ok("alice", "POST", f"/rooms/{quote(closed, safe='')}/invite", {"user_id": "@carol:hub.test"})
    assert "closed" in await s.tree("carol", top)
    pages, token = [], ""
    path = f"/rooms/{quote(top, safe='')}/hierarchy"
    while True:
        answer = (await s.call("carol", f"{path}?limit=2{token}"))[1]
        pages.append([room["name"] for room in answer["rooms"]])
        if "next_batch" not in answer:
            break
        token = f"&from={answer['next_batch']}"
    assert pages == [["top", "below"], ["leaf", "open"], ["closed", "knock"]]
    first = (await s.call("carol", path))[1]["rooms"][0]
    assert (first["room_type"], first["num_joined_members"], first["join_rule"]) == ("m.space", 1, "public")
    assert [c["state_key"] for c in first["children_state"]] == [
        below,
        open_,
        closed,
        knock,
        "!none:hub.test",
    ]
    assert set(first["children_state"][0]) == {"type", "state_key", "sender", "content", "origin_server_ts"}
    # Leaves out what is taken out again; refuses what makes no sense.
    await club.ok(
        "alice", "PUT", f"/rooms/{quote(top, safe='')}/state/m.space.child/{quote(below, safe='')}", {}
    )
    assert await s.tree("carol", top) == ["top", "open", "closed", "knock"]
    hidden = quote(await s.room("hidden", **SPACE), safe="")
    for bad, status in ((f"/rooms/{hidden}/hierarchy", 403), ("/rooms/%21none%3Ahub.test/hierarchy", 403),
        ("/rooms/x/hierarchy", 403), (f"{path}?from=2_x_true", 400), (f"{path}?from=x", 400),
        (f"{path}?max_depth=x", 400), (f"{path}?suggested_only=1", 400), (f"{path}?limit=x", 400), (f"{path}?max_depth={'1' * 30}", 400), (f"{path}?limit=0", 200)):  # fmt: skip
        assert (await s.call("carol", bad))[0] == status, bad


async def test_summaries_of_what_one_may_know(club: Club) -> None:
    s = Spacious(club)
    open_ = await s.room("open", preset="public_chat", room_alias_name="open", initial_state=[
        {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}])  # fmt: skip
    closed = await s.room("closed")
    for path in (quote(open_, safe=""), quote("#open:hub.test", safe="")):
        status, summary = await s.call("carol", f"/room_summary/{path}")
        assert (status, summary["room_id"], summary["membership"]) == (200, open_, "leave")
        assert (summary["encryption"], summary["name"]) == ("m.megolm.v1.aes-sha2", "open")
    status, summary = await s.call("nobody", f"/room_summary/{quote(open_, safe='')}")
    assert (status, "membership" in summary) == (200, False)
    assert (await s.call("alice", f"/room_summary/{quote(closed, safe='')}"))[1]["membership"] == "join"
    for who, room, expected in (("carol", closed, 404), ("nobody", closed, 404), ("carol", "!none:hub.test", 404),
        ("carol", "#none:hub.test", 404), ("carol", "room", 400)):  # fmt: skip
        assert (await s.call(who, f"/room_summary/{quote(room, safe='')}"))[0] == expected, room
    for path in (f"summary/{quote(open_, safe='')}", f"rooms/{quote(open_, safe='')}/summary"):
        unstable = f"/_matrix/client/unstable/im.nheko.summary/{path}"
        assert (await club.api.call("GET", unstable, None, club.tokens["carol"]))[0] == 200


async def ask(person: Person, path: str) -> Any:
    url = person.site.http.make_url(V1 + path.partition("?")[0]).with_query(path.partition("?")[2])
    who = {"Authorization": f"Bearer {person.token}"}
    async with ClientSession() as session, session.get(url, headers=who) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def test_a_space_with_rooms_of_other_servers(cluster: Cluster, tmp_path: Path) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        space = await alice.create(name="theirs", preset="public_chat", **SPACE)
        for name, preset in (("open", "public_chat"), ("closed", "private_chat")):
            inner = await alice.create(name=name, preset=preset)
            path = f"/rooms/{quote(space)}/state/m.space.child/{quote(inner)}"
            await alice.ok("PUT", path, {"via": [HUB]})
        top = await bob.create(name="ours", **SPACE)
        path = f"/rooms/{quote(top)}/state/m.space.child/{quote(space)}"
        await bob.ok("PUT", path, {"via": ["gone.test", HUB]})
        tree = await ask(bob, f"/rooms/{quote(top)}/hierarchy")
        assert [room["name"] for room in tree["rooms"]] == ["ours", "theirs", "open"]
        summary = await ask(bob, f"/room_summary/{quote(space)}?via={HUB}")
        assert (summary["name"], summary["membership"]) == ("theirs", "leave")


async def test_b14_a_server_is_told_of_what_it_may_know(arena: Arena) -> None:
    """A room of invited people: its participants are told, others not that it is there."""
    path = f"/_matrix/federation/v1/hierarchy/{quote(ROOM, safe='!:')}"
    status, answer = await arena.ask("GET", path)
    assert (status, answer["room"]["room_id"], answer["children"]) == (200, ROOM, [])
    for room_id, rule in (("!closed:hub.test", "invite"), ("!open:hub.test", "knock")):
        await arena.engine.create(LM_02, opening(room_id=room_id, join_rule=rule))
    assert (await arena.ask("GET", "/_matrix/federation/v1/hierarchy/!open:hub.test"))[0] == 200
    closed = await arena.ask("GET", "/_matrix/federation/v1/hierarchy/!closed:hub.test")
    assert closed == await arena.ask("GET", "/_matrix/federation/v1/hierarchy/!none:hub.test")
    assert closed[0] == 404
    assert (await arena.ask("GET", "/_matrix/federation/v1/hierarchy/x"))[0] == 404


async def test_r12_a_space_full_of_silent_servers_ends(db: Database) -> None:
    """Servers that are named and do not answer are asked so often and for so long, and not again soon."""
    asked: list[str] = []
    now = [0.0]

    class Silent:
        async def send_json(self, method: str, server: str, path: str, **_: Any) -> Any:
            asked.append(server)
            now[0] += 5.0
            raise Unreachable("silent")

    world = World(db)
    create = replace(opening()[0], content={"room_version": LM_02.id, "type": "m.space"})
    await world.engine.create(LM_02, [create, *opening()[1:]])
    for n in range(10):
        await world.state("m.space.child", {"via": [f"a{n}.test", f"b{n}.test"]}, key=f"!r{n}:x.test")
    silent: Any = Silent()
    spaces = Spaces(db, world.engine, silent, lambda: now[0])
    for expected in (5, 10, 15):
        found, more = await spaces.hierarchy(ALICE, ROOM, Walk(0, 50, None, suggested_only=False))
        assert ([room["room_id"] for room in found], more) == ([ROOM], False)
        assert len(asked) == expected
    await world.close()
