"""Simplified sliding sync: lists, subscriptions and what is said of rooms."""

from __future__ import annotations

from urllib.parse import quote

from tests.kit.client_api import Api
from tests.kit.sliding import PATH, PROPOSED, Phone, bodies, entries, room, window

STATE = [("m.room.create", ""), ("m.room.name", ""), ("m.room.topic", ""), ("m.room.member", "$ME")]


async def test_versions_say_so(api: Api) -> None:
    _, answer = await api.call("GET", "/_matrix/client/versions")
    assert answer["unstable_features"]["org.matrix.simplified_msc3575"] is True


async def test_the_first_answer_has_everything(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create(name="Tea", topic="leaves")
    await bob.change(room_id, "join")
    await alice.change(room_id, "invite", await Phone.register(alice.api, "carol"))
    await alice.say(room_id, "hello")
    answer = await bob.slide(lists={"all": window([0, 20], limit=2, state=STATE)}, txn_id="t1")
    assert answer["lists"] == {"all": {"count": 1}}
    assert answer["txn_id"] == "t1" and answer["extensions"] == {}
    said = answer["rooms"][room_id]
    assert said["initial"] is True and said["membership"] == "join" and said["lists"] == ["all"]
    assert said["name"] == "Tea" and "heroes" not in said and "avatar" not in said
    assert (said["joined_count"], said["invited_count"]) == (2, 1)
    assert (said["notification_count"], said["highlight_count"]) == (1, 0)
    assert bodies(said) == ["hello"] and len(said["timeline"]) == 2
    assert said["limited"] is True and said["num_live"] == 0 and said["prev_batch"].startswith("p")
    assert entries(said) == {(t, bob.id if k == "$ME" else k) for t, k in STATE}
    assert isinstance(said["bump_stamp"], int)
    older = await bob.ok("GET", f"/rooms/{room_id}/messages?dir=b&limit=1&from={said['prev_batch']}")
    assert older["chunk"][0]["content"]["membership"] == "join"


async def test_then_only_what_changed(alice: Phone, bob: Phone) -> None:
    quiet, busy = await alice.create(name="quiet"), await alice.create(name="busy")
    lists = {"all": window([0, 20], state=STATE)}
    first = await alice.slide(lists=lists)
    assert list(first["rooms"]) == [busy, quiet]
    nothing = await alice.slide(first["pos"], lists=lists)
    assert nothing["rooms"] == {} and nothing["lists"] == {"all": {"count": 2}}
    await alice.say(quiet, "psst")
    await alice.set(quiet, "m.room.topic", {"topic": "new"})
    await alice.set(quiet, "m.room.pinned_events", {"pinned": []})
    said = (await alice.slide(nothing["pos"], lists=lists))["rooms"]
    assert list(said) == [quiet]
    assert said[quiet]["initial"] is False and said[quiet]["num_live"] == 3
    assert len(said[quiet]["timeline"]) == 3 and said[quiet]["limited"] is False
    assert entries(said[quiet]) == {("m.room.topic", "")}
    assert not {"name", "joined_count", "heroes", "is_dm"} & set(said[quiet])


async def test_events_come_with_what_relates_to_them(alice: Phone) -> None:
    """CS API §Aggregations of child events, as in the timeline of /sync."""
    room_id = await alice.create()
    root = await alice.say(room_id, "root")
    relates = {"rel_type": "m.thread", "event_id": root}
    body = {"msgtype": "m.text", "body": "reply", "m.relates_to": relates}
    await alice.ok("PUT", f"/rooms/{quote(room_id)}/send/m.room.message/reply", body)
    said = (await alice.slide(lists={"all": window([0, 20])}))["rooms"][room_id]
    found = {e["event_id"]: e["unsigned"] for e in said["timeline"]}
    assert found[root]["m.relations"]["m.thread"]["count"] == 1


async def test_names_avatars_and_counts_change(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create(name="one")
    lists = {"all": window([0, 20])}
    pos = (await alice.slide(lists=lists))["pos"]
    await alice.set(room_id, "m.room.name", {"name": "two"})
    await alice.set(room_id, "m.room.avatar", {"url": "mxc://hub.test/x"})
    await bob.change(room_id, "join")
    answer = await alice.slide(pos, lists=lists)
    said = answer["rooms"][room_id]
    assert (said["name"], said["avatar"], said["joined_count"]) == ("two", "mxc://hub.test/x", 2)
    await alice.set(room_id, "m.room.name", {"name": ""})
    await alice.set(room_id, "m.room.avatar", {})
    said = (await alice.slide(answer["pos"], lists=lists))["rooms"][room_id]
    assert said["name"] is None and said["avatar"] is None
    assert said["heroes"] == [{"user_id": bob.id, "displayname": "bob"}]


async def test_windows_follow_activity(alice: Phone) -> None:
    """Only the newest rooms, one that comes into the window at once and whole, one that left it not
    until it comes again, and then with what was missed."""
    a, b, c = [await alice.create(name=name) for name in "abc"]
    top = {"top": window([0, 1], limit=3, state=STATE)}
    first = await alice.slide(lists=top)
    assert list(first["rooms"]) == [c, b] and first["lists"]["top"]["count"] == 3
    await alice.say(a, "1")
    second = await alice.slide(first["pos"], lists=top)
    assert list(second["rooms"]) == [a] and second["rooms"][a]["initial"] is True
    assert second["rooms"][a]["num_live"] == 1
    await alice.set(b, "m.room.topic", {"topic": "missed"})
    await alice.say(c, "2")
    await alice.say(a, "3")
    third = await alice.slide(second["pos"], lists=top)
    assert list(third["rooms"]) == [a, c]
    await alice.say(b, "4")
    fourth = (await alice.slide(third["pos"], lists=top))["rooms"]
    assert list(fourth) == [b] and fourth[b]["initial"] is False
    assert entries(fourth[b]) == {("m.room.topic", "")} and bodies(fourth[b]) == ["4"]
    assert len(fourth[b]["timeline"]) == 2


async def test_a_growing_range_brings_the_rest(alice: Phone) -> None:
    rooms = [await alice.create() for _ in range(5)][::-1]
    seen: list[str] = []
    pos = None
    for last in (1, 3, 9):
        answer = await alice.slide(pos, lists={"all": window([0, last])})
        seen += list(answer["rooms"])
        pos = answer["pos"]
    assert seen == rooms
    both = await alice.slide(lists={"all": window([0, 0], [3, 4])})
    assert list(both["rooms"]) == [rooms[0], rooms[3], rooms[4]]


async def test_subscriptions(alice: Phone, bob: Phone) -> None:
    a, b = await alice.create(name="a"), await alice.create(name="b")
    theirs = await bob.create(preset="private_chat")
    lists = {"top": window([0, 0], limit=1)}
    subscribed = {a: room(5, STATE), theirs: room(), "!none:hub.test": room()}
    answer = await alice.slide(lists=lists, room_subscriptions=subscribed)
    assert set(answer["rooms"]) == {a, b}
    assert "lists" not in answer["rooms"][a] and entries(answer["rooms"][a])
    assert len(answer["rooms"][a]["timeline"]) == 5 and len(answer["rooms"][b]["timeline"]) == 1
    await alice.say(a, "x")
    await alice.say(b, "y")
    gone = await alice.slide(answer["pos"], lists=lists)
    assert list(gone["rooms"]) == [b]
    back = await alice.slide(gone["pos"], lists=lists, room_subscriptions=subscribed)
    assert bodies(back["rooms"][a]) == ["x"] and back["rooms"][a]["initial"] is False


async def test_a_longer_timeline_comes_at_once(alice: Phone) -> None:
    room_id = await alice.create()
    for n in range(6):
        await alice.say(room_id, str(n))
    first = await alice.slide(lists={"all": window([0, 9], limit=1)})
    assert bodies(first["rooms"][room_id]) == ["5"]
    second = await alice.slide(first["pos"], lists={"all": window([0, 9], limit=4)}, timeout=5000)
    said = second["rooms"][room_id]
    assert bodies(said) == ["2", "3", "4", "5"] and said["unstable_expanded_timeline"] is True
    assert (said["initial"], said["limited"], said["num_live"]) == (False, True, 0)
    third = await alice.slide(second["pos"], lists={"all": window([0, 9], limit=1)})
    fourth = await alice.slide(third["pos"], lists={"all": window([0, 9], limit=4)})
    assert third["rooms"] == fourth["rooms"] == {}, "the client has these events still"
    await alice.say(room_id, "6")
    fifth = await alice.slide(fourth["pos"], lists={"all": window([0, 9], limit=4)})
    assert bodies(fifth["rooms"][room_id]) == ["6"] and fifth["rooms"][room_id]["limited"] is False


async def test_more_state_comes_at_once(alice: Phone) -> None:
    room_id = await alice.create(name="n", topic="t")
    name, topic = ("m.room.name", ""), ("m.room.topic", "")
    first = await alice.slide(lists={"all": window([0, 9], state=[name])})
    second = await alice.slide(first["pos"], lists={"all": window([0, 9], state=[name, topic])})
    assert entries(second["rooms"][room_id]) == {topic} and second["rooms"][room_id]["timeline"] == []
    third = await alice.slide(second["pos"], lists={"all": window([0, 9], state=[topic])})
    assert third["rooms"] == {}
    fourth = await alice.slide(third["pos"], lists={"all": window([0, 9], state=[("*", "")])})
    assert {name, topic, ("m.room.create", "")} <= entries(fourth["rooms"][room_id])


async def test_wildcards(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create(name="n")
    await bob.change(room_id, "join")
    members = {("m.room.member", alice.id), ("m.room.member", bob.id)}

    async def got(conn: str, *state: tuple[str, str]) -> set[tuple[str, str]]:
        lists = {"all": window([0, 9], limit=1, state=state)}
        return entries((await alice.slide(conn=conn, lists=lists))["rooms"][room_id])

    everything = await got("1", ("*", "*"))
    assert members < everything and ("m.room.name", "") in everything
    assert await got("2", ("m.room.member", "*")) == members
    assert await got("3", ("*", alice.id)) == {("m.room.member", alice.id)}
    assert await got("4", ("*", "*"), ("m.room.member", "$LAZY")) == everything - members | {
        ("m.room.member", bob.id)
    }
    assert await got("5", ("m.room.topic", ""), ("org.test.none", "*")) == set()


async def test_members_are_loaded_lazily_and_once(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create()
    await bob.change(room_id, "join")
    carol = await Phone.register(alice.api, "carol")
    await carol.change(room_id, "join")
    lists = {"all": window([0, 9], limit=2, state=[("m.room.member", "$LAZY")])}
    await alice.say(room_id, "1")
    await alice.say(room_id, "2")
    first = await alice.slide(lists=lists)
    assert entries(first["rooms"][room_id]) == {("m.room.member", alice.id)}
    await alice.say(room_id, "3")
    await bob.say(room_id, "4")
    second = await alice.slide(first["pos"], lists=lists)
    assert entries(second["rooms"][room_id]) == {("m.room.member", bob.id)}
    await bob.say(room_id, "5")
    again = await alice.slide(second["pos"], lists=lists)
    assert entries(again["rooms"][room_id]) == set()
    await carol.change(room_id, "leave")
    gone = await alice.slide(again["pos"], lists=lists)
    assert entries(gone["rooms"][room_id]) == {("m.room.member", carol.id)}
    # What changed of those the client knows comes even through a gap.
    await bob.set(room_id, "m.room.member", {"membership": "join", "displayname": "Robert"}, bob.id)
    for n in range(4):
        await alice.say(room_id, str(n))
    gap = (await alice.slide(gone["pos"], lists=lists))["rooms"][room_id]
    assert gap["limited"] is True
    assert [e["content"]["displayname"] for e in gap["required_state"]] == ["Robert"]


async def test_heroes(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create()
    await bob.ok("PUT", f"/profile/{bob.id}/displayname", {"displayname": "Robert"})
    await bob.change(room_id, "join")
    said = (await alice.slide(lists={"all": window([0, 9])}))["rooms"][room_id]
    assert said["heroes"] == [{"user_id": bob.id, "displayname": "Robert"}]


async def test_unread_counts_change_by_reading(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create()
    await bob.change(room_id, "join")
    lists = {"all": window([0, 9])}
    event_id = await alice.say(room_id, "x")
    first = await bob.slide(lists=lists)
    assert first["rooms"][room_id]["notification_count"] == 1
    await bob.read(room_id, event_id, "m.read.private")
    second = await bob.slide(first["pos"], lists=lists, timeout=5000)
    said = second["rooms"][room_id]
    assert said["notification_count"] == 0 and said["timeline"] == []


async def test_direct_rooms(alice: Phone, bob: Phone) -> None:
    a, b = await alice.create(), await alice.create()
    await alice.put_data("m.direct", {bob.id: [a, 5], "junk": "x"})
    lists = {"dms": window([0, 9], is_dm=True), "others": window([0, 9], is_dm=False)}
    first = await alice.slide(lists=lists)
    assert first["rooms"][a]["is_dm"] is True and "is_dm" not in first["rooms"][b]
    assert first["rooms"][a]["lists"] == ["dms"] and first["rooms"][b]["lists"] == ["others"]
    await alice.put_data("m.direct", {bob.id: [b]})
    second = await alice.slide(first["pos"], lists=lists)
    assert {r: said["is_dm"] for r, said in second["rooms"].items()} == {a: False, b: True}


async def test_filters(alice: Phone, bob: Phone) -> None:
    plain = await alice.create(name="Plain talk")
    encryption = {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    secret = await alice.create(initial_state=[encryption])
    space = await alice.create(creation_content={"type": "m.space"})
    await alice.set(space, "m.space.child", {"via": ["hub.test"]}, plain)
    await alice.set(space, "m.space.child", {}, secret)
    invited = await bob.create(invite=[alice.id], initial_state=[encryption])
    await alice.ok("PUT", f"/user/{alice.id}/rooms/{plain}/tags/m.favourite", {})
    others = await bob.create(creation_content={"type": "m.space"})
    await bob.set(others, "m.space.child", {"via": ["hub.test"]}, plain)

    async def passing(**filters: object) -> set[str]:
        answer = await alice.slide(lists={"x": window(**filters)})
        assert answer["lists"]["x"]["count"] == len(answer["rooms"])
        return set(answer["rooms"])

    assert await passing() == {plain, secret, space, invited}
    assert await passing(is_encrypted=True) == {secret, invited}
    assert await passing(is_encrypted=False) == {plain, space}
    assert await passing(is_invite=True) == {invited}
    assert await passing(is_invited=False) == {plain, secret, space}
    assert await passing(room_types=["m.space"]) == {space}
    assert await passing(room_types=[None]) == {plain, secret, invited}
    assert await passing(not_room_types=["m.space"], room_types=["m.space", None]) == {plain, secret, invited}
    assert await passing(tags=["m.favourite"]) == {plain}
    assert await passing(not_tags=["m.favourite"]) == {secret, space, invited}
    assert await passing(tags=["m.favourite"], not_tags=["m.favourite"]) == set()
    assert await passing(spaces=[space]) == {plain}
    assert await passing(spaces=[others, "!x:y"]) == set()
    assert await passing(room_name_like="PLAIN") == {plain}
    assert await passing(is_dm=True) == set()


async def test_bump_stamps_are_of_messages(alice: Phone) -> None:
    room_id = await alice.create()
    lists = {"all": window([0, 9])}
    first = await alice.slide(lists=lists)
    await alice.set(room_id, "m.room.topic", {"topic": "t"})
    second = await alice.slide(first["pos"], lists=lists)
    assert "bump_stamp" not in second["rooms"][room_id]
    await alice.say(room_id, "x")
    third = await alice.slide(second["pos"], lists=lists)
    assert third["rooms"][room_id]["bump_stamp"] >= first["rooms"][room_id]["bump_stamp"]


async def test_the_proposals_last_text(alice: Phone, bob: Phone) -> None:
    room_id = await alice.create(name="n", topic="t")
    invited = await bob.create(invite=[alice.id])
    wanted = {
        "range": [0, 9], "timeline_limit": 1,
        "required_state": {
            "include": [{}, {"state_key": alice.id}], "exclude": [{"type": "m.room.topic"}],
            "lazy_members": True,
        },
    }  # fmt: skip
    status, answer = await alice.ask({"lists": {"all": wanted}, "timeout": 0}, path=PROPOSED)
    assert status == 200
    said = answer["rooms"][room_id]
    assert "timeline" not in said and len(said["timeline_events"]) == 1
    assert ("m.room.name", "") in entries(said) and ("m.room.topic", "") not in entries(said)
    assert answer["rooms"][invited]["stripped_state"]
    await alice.say(room_id, "x")
    wanted["timeline_limit"] = 3
    await alice.settle()
    status, answer = await alice.ask({"lists": {"all": wanted}, "pos": answer["pos"]}, path=PROPOSED)
    assert status == 200 and answer["rooms"][room_id]["expanded_timeline"] is True


async def test_who_may_ask(api: Api) -> None:
    for path in (PATH, PROPOSED):
        assert (await api.call("POST", path, {}))[0] == 401
        assert (await api.call("GET", path))[0] == 405
