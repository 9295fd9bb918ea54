"""Deactivating with `erase`: what the user sent is whole for who was there, redacted for who comes later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.erasures import Erasures
from lmserver.rooms.visible_ranges import Span
from lmserver.storage.database import Database
from tests.kit.client_api import PASSWORD, V3, Api, serve
from tests.kit.sliding import Phone, window

SECRET = "xyzzy"
_txn = count(1)


def part(*names: str) -> str:
    return "".join("/" + quote(name, safe="") for name in names)


async def send(user: Phone, room_id: str, content: JsonObject, type_: str = "m.room.message") -> str:
    path = f"/rooms{part(room_id)}/send/{type_}/e{next(_txn)}"
    event_id: str = (await user.ok("PUT", path, content))["event_id"]
    return event_id


async def relate(user: Phone, room_id: str, parent: str, rel: str, **more: Any) -> str:
    relation = {"rel_type": rel, "event_id": parent}
    text = {"msgtype": "m.text", "body": f"{SECRET} {rel}"}
    return await send(user, room_id, {**text, **more, "m.relates_to": relation})


async def erase(user: Phone, *, erase: bool = True) -> None:
    proof = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user.id},
        "password": PASSWORD,
    }
    await user.ok("POST", "/account/deactivate", {"auth": proof, "erase": erase})


class Scene:
    """Alice, who is erased, told Bob a secret in many ways; Carol comes later."""

    def __init__(self, api: Api, alice: Phone, bob: Phone, carol: Phone) -> None:
        self.api, self.alice, self.bob, self.carol = api, alice, bob, carol
        self.room_id = self.told = self.asked = self.before = ""

    async def play(self, *, erased: bool = True) -> Scene:
        alice, bob, carol = self.alice, self.bob, self.carol
        await alice.ok("PUT", f"/profile{part(alice.id)}/displayname", {"displayname": SECRET})
        self.room_id = room_id = await alice.create(
            name="The room", power_level_content_override={"users": {alice.id: 100, bob.id: 101}}
        )
        await bob.change(room_id, "join")
        self.asked = await send(bob, room_id, {"msgtype": "m.text", "body": "asked"})
        await relate(alice, room_id, self.asked, "m.thread")
        self.told = await send(alice, room_id, {"msgtype": "m.text", "body": SECRET})
        edited = {"msgtype": "m.text", "body": f"{SECRET} again"}
        await relate(alice, room_id, self.told, "m.replace", **{"m.new_content": edited})
        await relate(bob, room_id, self.told, "m.thread", body="answered")
        await carol.settle()
        self.before = (await carol.ok("GET", "/sync"))["next_batch"]
        await erase(alice, erase=erased)
        await carol.change(room_id, "join")
        await carol.settle()
        return self


Path_ = Callable[[Scene, Phone], Awaitable[Any]]


def get(path: str) -> Path_:
    async def asked(scene: Scene, user: Phone) -> Any:
        names = {
            "room": f"/rooms{part(scene.room_id)}",
            "v1": f"/_matrix/client/v1/rooms{part(scene.room_id)}",
            "told": quote(scene.told, safe=""),
            "asked": quote(scene.asked, safe=""),
            "alice": quote(scene.alice.id, safe=""),
            "before": scene.before,
        }
        where = path.format(**names)
        status, answer = await scene.api.call(
            "GET", where if where[:2] == "/_" else V3 + where, None, user.token
        )
        assert status == 200, answer
        return answer

    return asked


async def search(scene: Scene, user: Phone) -> Any:
    body = {"search_categories": {"room_events": {"search_term": SECRET}}}
    found = (await user.ok("POST", "/search", body))["search_categories"]["room_events"]
    return found["results"], found["count"] and SECRET


async def search_around(scene: Scene, user: Phone) -> Any:
    body = {"search_term": "asked", "event_context": {"include_profile": True}, "include_state": True}
    found = await user.ok("POST", "/search", {"search_categories": {"room_events": body}})
    return found["search_categories"]["room_events"]["results"]


async def slide(scene: Scene, user: Phone) -> Any:
    state = [("m.room.member", "*")]
    return await user.slide(conn=f"c{next(_txn)}", lists={"a": window([0, 9], limit=50, state=state)})


async def slide_lazily(scene: Scene, user: Phone) -> Any:
    state = [("m.room.member", "$LAZY")]
    return await user.slide(conn=f"c{next(_txn)}", lists={"a": window([0, 9], limit=50, state=state)})


PATHS: dict[str, Path_] = {
    "messages": get("{room}/messages?dir=b&limit=100"),
    "messages forwards": get("{room}/messages?dir=f&limit=100&filter=%7B%22lazy_load_members%22:true%7D"),
    "event": get("{room}/event/{told}"),
    "context": get("{room}/context/{told}?limit=20"),
    "context of another": get("{room}/context/{asked}?limit=1"),
    "members": get("{room}/members"),
    "state": get("{room}/state"),
    "one state entry": get("{room}/state/m.room.member/{alice}"),
    "relations": get("{v1}/relations/{asked}"),
    "edits": get("{v1}/relations/{told}/m.replace"),
    "bundled thread": get("{room}/event/{asked}"),
    "threads": get("{v1}/threads"),
    "search": search,
    "search around": search_around,
    "sync": get("/sync"),
    "sync with lazy members": get(
        "/sync?filter=%7B%22room%22:%7B%22state%22:%7B%22lazy_load_members%22:true%7D%7D%7D"
    ),
    "sync goes on": get("/sync?since={before}&full_state=true"),
    "sliding sync": slide,
    "sliding sync with lazy members": slide_lazily,
}


def tells(answer: Any) -> bool:
    return SECRET in orjson.dumps(answer).decode()


@pytest.fixture
async def scene(api: Api, alice: Phone, bob: Phone) -> Scene:
    return Scene(api, alice, bob, await Phone.register(api, "carol"))


@pytest.mark.parametrize("name", list(PATHS))
async def test_c7_who_comes_later_gets_redacted_copies(scene: Scene, name: str) -> None:
    await scene.play()
    # What one reader was given is kept in memory, and must not decide what the next one gets.
    for user, expected in ((scene.bob, True), (scene.carol, False), (scene.bob, True)):
        answer = await PATHS[name](scene, user)
        assert tells(answer) is expected, (user.id, answer)


async def test_a_redacted_copy_and_what_stays_whole(scene: Scene) -> None:
    await scene.play()
    event = await PATHS["event"](scene, scene.carol)
    assert (event["event_id"], event["content"], event["sender"]) == (scene.told, {}, scene.alice.id)
    # What the room is called is the room's, and who was in it has to be known.
    name = f"/rooms{part(scene.room_id)}/state/m.room.name"
    assert await scene.carol.ok("GET", name) == {"name": "The room"}
    assert await PATHS["one state entry"](scene, scene.carol) == {"membership": "join"}
    # Of what relates to it nothing that a redacted copy does not say.
    assert (await PATHS["edits"](scene, scene.carol))["chunk"] == []
    assert (await PATHS["edits"](scene, scene.bob))["chunk"] != []


async def test_what_was_replaced_is_not_told_to_who_came_later(scene: Scene) -> None:
    await scene.play()
    bob, carol = scene.bob, scene.carol
    readers = []
    for user, expected in ((bob, True), (carol, False)):
        since = (await user.ok("GET", "/sync"))["next_batch"]
        lists = {"a": window([0, 9], limit=50)}
        pos = (await user.slide(lists=lists))["pos"]
        readers.append((user, since, pos, lists, expected))
    await bob.change(scene.room_id, "kick", scene.alice)
    await bob.settle()
    for user, since, pos, lists, expected in readers:
        answer = await user.ok("GET", f"/sync?since={since}")
        slid = await user.slide(pos, lists=lists)
        for events in (
            answer["rooms"]["join"][scene.room_id]["timeline"]["events"],
            slid["rooms"][scene.room_id]["timeline"],
        ):
            assert [e["unsigned"]["prev_content"]["membership"] for e in events] == ["join"]
            assert tells(events) is expected


async def test_without_erase_everything_stays_whole(scene: Scene) -> None:
    await scene.play(erased=False)
    assert tells(await PATHS["messages"](scene, scene.carol))


async def test_it_is_known_after_a_restart_and_ends_when_the_user_is_back(
    scene: Scene, db: Database, tmp_path: Path
) -> None:
    await scene.play()
    again = await serve(db, tmp_path)
    try:
        scene.api = again
        for user, expected in ((scene.bob, True), (scene.carol, False)):
            assert tells(await PATHS["messages"](scene, user)) is expected
        await again.server.accounts.reactivate(scene.alice.id, PASSWORD)
        assert tells(await PATHS["messages"](scene, scene.carol))
    finally:
        await again.close()


LEFT_AND_BACK = (Span(10, 20, "join"), Span(20, 50, "leave"), Span(50, None, "join"))


@pytest.mark.parametrize(
    ("memberships", "position", "hidden"),
    [
        ((), 5, True),
        ((Span(10, None, "join"),), 5, False),
        ((Span(10, None, "join"),), 99, False),
        ((Span(31, None, "join"),), 5, True),
        ((Span(10, None, "invite"),), 15, True),
        (LEFT_AND_BACK, 5, False),
        (LEFT_AND_BACK, 20, False),
        (LEFT_AND_BACK, 25, True),
        (LEFT_AND_BACK, None, False),
        ((Span(31, None, "join"),), None, True),
    ],
)
def test_who_was_joined_before_the_erasure_sees_what_they_saw(
    memberships: tuple[Span, ...], position: int | None, hidden: bool
) -> None:
    erasures = Erasures({"@a:x": 30}, memberships)
    assert erasures.hide("@a:x", "m.room.message", None, position) is hidden
    assert not erasures.hide("@b:x", "m.room.message", None, position)
    assert not erasures.hide("@a:x", "m.room.encryption", "", position)
    assert not erasures.hide("@a:x", "m.mls.commit", None, position)
    assert erasures.hide("@a:x", "m.room.member", "@b:x", position) is hidden
