"""Relations, threads, and what is told with an event about others: by whom, to whom, and until when."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest

from lmserver.storage import account_data
from tests.kit.room_clients import Answer, RoomServer, User

_number = count(1)
V1 = "/_matrix/client/v1/rooms"


async def relate(
    user: User,
    room_id: str,
    parent: str,
    rel: str = "m.thread",
    type_: str = "m.room.message",
    **content: Any,
) -> str:
    answer = await send(user, room_id, parent, rel, type_, **content)
    assert answer.status == 200, answer
    event_id: str = answer.body["event_id"]
    return event_id


async def send(
    user: User, room_id: str, parent: str, rel: str, type_: str, txn: str | None = None, **content: Any
) -> Answer:
    key = {"key": content.pop("key")} if "key" in content else {}
    body = {"body": "x", **content, "m.relates_to": {"rel_type": rel, "event_id": parent, **key}}
    return await user.put("/rooms", room_id, "/send", type_, txn or f"r{next(_number)}", body=body)


async def v1(user: User, room_id: str, *parts: str, **query: str) -> Answer:
    return await user.call("GET", room_id, *parts, prefix=V1, **query)


async def related(user: User, room_id: str, *parts: str, **query: str) -> Any:
    answer = await v1(user, room_id, "/relations", *parts, **query)
    assert answer.status == 200, answer
    return answer.body


def ids(page: Any) -> list[str]:
    return [event["event_id"] for event in page["chunk"]]


async def bundled(user: User, room_id: str, event_id: str) -> Any:
    answer = await user.get("/rooms", room_id, "/event", event_id)
    assert answer.status == 200, answer
    return answer.body["unsigned"].get("m.relations", {})


class Two:
    """Alice and Bob in a room."""

    def __init__(self, server: RoomServer) -> None:
        self.alice, self.bob = server.user("alice"), server.user("bob")
        self.db = server.world.db
        self.room_id = ""

    async def open(self, **options: Any) -> Two:
        self.room_id = await self.alice.create(preset="public_chat", **options)
        await self.bob.change(self.room_id, "join")
        return self


@pytest.fixture
async def two(server: RoomServer) -> Two:
    return await Two(server).open()


async def test_relations_are_paged_in_either_direction_by_kind_and_type(two: Two) -> None:
    alice, room_id = two.alice, two.room_id
    root = await alice.say(room_id, "root")
    replies = [await relate(alice, room_id, root) for _ in range(5)]
    reaction = await relate(alice, room_id, root, "m.annotation", "m.reaction", key="+")
    assert ids(await related(alice, room_id, root, limit="3")) == [reaction, *replies[:2:-1]]
    assert ids(await related(alice, room_id, root, "m.annotation")) == [reaction]
    assert ids(await related(alice, room_id, root, "m.thread", "m.reaction")) == []
    for direction, expected in (("b", replies[::-1]), ("f", replies)):
        found, start = [], {}
        while True:
            page = await related(alice, room_id, root, "m.thread", dir=direction, limit="2", **start)
            found += ids(page)
            if "next_batch" not in page:
                break
            start = {"from": page["next_batch"]}
        assert found == expected
    first = await related(alice, room_id, root, "m.thread", limit="2")
    until = await related(alice, room_id, root, "m.thread", to=first["next_batch"], limit="50")
    assert ids(until) == ids(first)


async def test_relations_of_relations_are_followed_when_asked_for(two: Two) -> None:
    alice, room_id = two.alice, two.room_id
    root = await alice.say(room_id, "root")
    reply = await relate(alice, room_id, root)
    edit = await relate(alice, room_id, reply, "m.replace")
    third = await relate(alice, room_id, edit, "m.reference")
    fourth = await relate(alice, room_id, third, "m.reference")
    assert ids(await related(alice, room_id, root)) == [reply]
    page = await related(alice, room_id, root, recurse="true")
    assert ids(page) == [third, edit, reply] and page["recursion_depth"] == 3
    assert fourth not in ids(page)
    assert ids(await related(alice, room_id, root, "m.reference", recurse="true", dir="f")) == [third]


async def test_the_last_edit_of_its_own_sender_is_told(two: Two) -> None:
    alice, bob, room_id = two.alice, two.bob, two.room_id
    event_id = await alice.say(room_id, "tpyo")
    await relate(bob, room_id, event_id, "m.replace", body="forged")
    await relate(alice, room_id, event_id, "m.replace", "org.example.other", body="another type")
    assert await bundled(bob, room_id, event_id) == {}
    await relate(alice, room_id, event_id, "m.replace", body="tyop")
    last = await relate(alice, room_id, event_id, "m.replace", body="typo")
    edit = (await bundled(bob, room_id, event_id))["m.replace"]
    assert (edit["event_id"], edit["content"]["body"], edit["sender"]) == (last, "typo", alice.id)
    await alice.put("/rooms", room_id, "/redact", last, "x")
    assert (await bundled(bob, room_id, event_id))["m.replace"]["content"]["body"] == "tyop"
    await alice.put("/rooms", room_id, "/redact", event_id, "y")
    assert await bundled(bob, room_id, event_id) == {}


async def test_threads_are_told_with_their_roots_everywhere(two: Two) -> None:
    alice, bob, room_id = two.alice, two.bob, two.room_id
    root = await alice.say(room_id, "root")
    for _ in range(3):
        last = await relate(bob, room_id, root)
    edit = await relate(bob, room_id, last, "m.replace", body="edited")
    page = (await alice.get("/rooms", room_id, "/messages", limit="50")).body["chunk"]
    timeline = (await alice.sync())["rooms"]["join"][room_id]["timeline"]["events"]
    context = (await alice.get("/rooms", room_id, "/context", root)).body["event"]
    shown = [next(e for e in events if e["event_id"] == root) for events in (page, timeline, [context])]
    for event in (*shown, *(await v1(two.alice, room_id, "/threads")).body["chunk"]):
        thread = event["unsigned"]["m.relations"]["m.thread"]
        assert (thread["count"], thread["current_user_participated"]) == (3, True)
        assert thread["latest_event"]["event_id"] == last
        replaced = thread["latest_event"]["unsigned"]["m.relations"]["m.replace"]
        assert replaced["event_id"] == edit
    await bob.put("/rooms", room_id, "/redact", last, "x")
    thread = (await bundled(alice, room_id, root))["m.thread"]
    assert thread["count"] == 2 and thread["latest_event"]["event_id"] != last


async def test_references_are_told_and_reactions_are_not(two: Two) -> None:
    alice, room_id = two.alice, two.room_id
    event_id = await alice.say(room_id, "poll")
    await relate(alice, room_id, event_id, "m.annotation", "m.reaction", key="+")
    first = await relate(alice, room_id, event_id, "m.reference")
    second = await relate(two.bob, room_id, event_id, "m.reference")
    expected = {"m.reference": {"chunk": [{"event_id": first}, {"event_id": second}]}}
    assert await bundled(alice, room_id, event_id) == expected


async def test_the_ignored_take_no_part(two: Two) -> None:
    alice, bob, room_id = two.alice, two.bob, two.room_id
    root = await alice.say(room_id, "root")
    own = await relate(alice, room_id, root)
    await relate(bob, room_id, root)
    await relate(bob, room_id, root, "m.reference")
    ignored = orjson.dumps({"ignored_users": {bob.id: {}}})
    await account_data.put(two.db, alice.id, "", "m.ignored_user_list", ignored)
    found = await bundled(alice, room_id, root)
    assert (found["m.thread"]["count"], found["m.thread"]["latest_event"]["event_id"]) == (1, own)
    assert "m.reference" not in found
    assert ids(await related(alice, room_id, root)) == [own]


async def test_threads_of_a_room_by_their_last_reply(two: Two) -> None:
    alice, bob, room_id = two.alice, two.bob, two.room_id
    roots = [await alice.say(room_id, f"root {n}") for n in range(3)]
    for root in roots:
        await relate(alice, room_id, root)
    await relate(bob, room_id, roots[0])

    async def threads(user: User, **query: str) -> Any:
        answer = await v1(user, room_id, "/threads", **query)
        assert answer.status == 200, answer
        return answer.body

    assert ids(await threads(bob)) == [roots[0], roots[2], roots[1]]
    assert ids(await threads(bob, include="participated")) == [roots[0]]
    assert len(ids(await threads(alice, include="participated"))) == 3
    page = await threads(bob, limit="2")
    assert ids(await threads(bob, limit="2", **{"from": page["next_batch"]})) == [roots[1]]


async def test_who_has_left_sees_what_was_said_until_then(two: Two) -> None:
    alice, bob, room_id = two.alice, two.bob, two.room_id
    root = await alice.say(room_id, "root")
    seen = await relate(alice, room_id, root)
    await bob.change(room_id, "leave")
    hidden = await relate(alice, room_id, root)
    await relate(alice, room_id, root, "m.replace")
    await relate(alice, room_id, root, "m.reference")
    assert ids(await related(bob, room_id, root)) == [seen]
    assert await bundled(bob, room_id, root) == {}
    assert hidden not in str((await v1(bob, room_id, "/threads")).body)


async def test_the_same_reaction_twice_is_refused_and_its_retry_is_not(two: Two) -> None:
    alice, room_id = two.alice, two.room_id
    event_id = await alice.say(room_id, "nice")
    first = await send(alice, room_id, event_id, "m.annotation", "m.reaction", txn="t", key="+")
    assert (await send(alice, room_id, event_id, "m.annotation", "m.reaction", txn="t", key="+")) == first
    again = await send(alice, room_id, event_id, "m.annotation", "m.reaction", key="+")
    assert (again.status, again.errcode) == (400, "M_DUPLICATE_ANNOTATION")
    assert (await send(alice, room_id, event_id, "m.annotation", "m.reaction", key="-")).status == 200
    assert (await send(two.bob, room_id, event_id, "m.annotation", "m.reaction", key="+")).status == 200
    await alice.put("/rooms", room_id, "/redact", first.body["event_id"], "x")
    assert (await send(alice, room_id, event_id, "m.annotation", "m.reaction", key="+")).status == 200


ODD: list[Any] = [
    "x", [], {"rel_type": 5, "event_id": "$x"}, {"rel_type": "m.thread"}, {"rel_type": "a\0b", "event_id": "$x"},
    {"rel_type": "m.annotation", "event_id": "$x", "key": "a\0b"}, {"rel_type": "m.annotation", "event_id": "$x", "key": []},
    {"rel_type": "x" * 300, "event_id": "$x"}, {"rel_type": "m.thread", "event_id": "$x\0"}, {"rel_type": "m.thread", "event_id": "$x"},
]  # fmt: skip


async def test_relations_that_are_none_are_events_like_any_other(two: Two) -> None:
    for relates in ODD:
        body = {"body": "x", "m.relates_to": relates}
        for _ in range(2):
            txn = f"o{next(_number)}"
            answer = await two.alice.put("/rooms", two.room_id, "/send/m.room.message", txn, body=body)
            assert answer.status == 200, (relates, answer)
    assert (await two.alice.get("/rooms", two.room_id, "/messages", limit="50")).status == 200


async def test_what_is_asked_wrongly_is_refused(two: Two) -> None:
    alice, room_id = two.alice, two.room_id
    event_id = await alice.say(room_id, "x")
    stranger = User(alice._client, "@mallory:hub.test", "D")
    for query in ({"dir": "x"}, {"limit": "x"}, {"from": "x"}, {"to": "x"}, {"recurse": "x"}):
        answer = await v1(alice, room_id, "/relations", event_id, **query)
        assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM"), query
    for query in ({"include": "x"}, {"from": "s1_2"}):
        answer = await v1(alice, room_id, "/threads", **query)
        assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM"), query
    for parts in (("$nope",), ("a\0b",), (event_id, "a\0b")):
        answer = await v1(alice, room_id, "/relations", *parts)
        assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND"), parts
    hidden = await alice.create(preset="private_chat")
    for path in (("/relations", event_id), ("/threads",)):
        answer = await v1(stranger, hidden, *path)
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN"), path


async def test_the_migration_finds_what_the_append_wrote(two: Two) -> None:
    """Relations of events that were there before are the same as those written with them."""
    alice, room_id = two.alice, two.room_id
    root = await alice.say(room_id, "root")
    await relate(alice, room_id, root)
    gone = await relate(alice, room_id, root)
    await relate(alice, room_id, root, "m.annotation", "m.reaction", key="+")
    for relates in (odd for odd in ODD if "\\x00" not in repr(odd)):
        await alice.put("/rooms", room_id, "/send/m.x", f"o{next(_number)}", body={"m.relates_to": relates})
    await alice.put("/rooms", room_id, "/redact", gone, "x")
    [path] = (Path(__file__).parents[2] / "migrations/versions").glob("*_relations.py")
    spec = spec_from_file_location("relations_migration", path)
    assert spec is not None and spec.loader is not None
    migration = module_from_spec(spec)
    spec.loader.exec_module(migration)
    tables = ("SELECT * FROM event_relations ORDER BY event_id", "SELECT * FROM threads ORDER BY root_id")
    before = [[tuple(row) for row in await two.db.fetch(query)] for query in tables]
    assert [len(rows) for rows in before] == [4, 2]
    for statement in (
        "DELETE FROM event_relations", "DELETE FROM threads", migration._FILL_RELATIONS, migration._FILL_THREADS
    ):  # fmt: skip
        await two.db.execute(statement)
    assert [[tuple(row) for row in await two.db.fetch(query)] for query in tables] == before
