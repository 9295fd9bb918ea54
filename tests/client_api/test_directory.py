"""Aliases and the public room list, here and across servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lmserver.rooms.directory import MAX_ALIASES
from lmserver.rooms.public_list import cleaned, parse_query
from lmserver.storage import aliases
from lmserver.storage.database import Database
from tests.client_api.test_ignoring import Club, club
from tests.federation.sites import sites
from tests.kit.client_api import NAME
from tests.kit.postgres import Cluster
from tests.kit.rooms import HUB, PARTICIPANT

__all__ = ["club"]


def alias_path(alias: str) -> str:
    return f"/directory/room/{quote(alias, safe='')}"


async def test_c11_aliases_are_taken_and_deleted_by_nobody_else(club: Club) -> None:
    """Not of other servers, not of rooms one is not in, not those of others; odd localparts are names
    like any other or none at all."""
    alias = f"#club:{NAME}"
    body = {"room_id": club.room_id}
    await club.ok("alice", "PUT", alias_path(alias), body)
    for who, method, named, status in (
        ("bob", "PUT", alias, 409), ("carol", "PUT", f"#mine:{NAME}", 403), ("bob", "DELETE", alias, 403),
        ("carol", "DELETE", alias, 403), ("alice", "PUT", "#club:other.test", 403),
        ("alice", "PUT", f"#a\0b:{NAME}", 400), ("alice", "PUT", f"#a\nb:{NAME}", 400), ("alice", "PUT", "club", 400),
        ("alice", "PUT", f"#:{NAME}", 400), ("alice", "PUT", f"#{'x' * 300}:{NAME}", 400),
        ("bob", "PUT", f"#clu\u0432:{NAME}", 200), ("bob", "PUT", f"#Club:{NAME}", 200),
        ("bob", "PUT", f"#../../x:{NAME}", 200), ("bob", "PUT", f"#%:{NAME}", 200), ("bob", "PUT", f"#_':{NAME}", 200),
    ):  # fmt: skip
        answer = await club.call(who, method, alias_path(named), body)
        assert answer[0] == status, (who, method, named, answer)
    assert (await club.ok("carol", "GET", alias_path(alias)))["room_id"] == club.room_id
    for named in (f"#_:{NAME}", f"#%25:{NAME}", f"#x:{NAME}", f"#CLUB:{NAME}"):
        assert (await club.call("carol", "GET", alias_path(named)))[0] == 404, named
    assert (await club.call("bob", "DELETE", alias_path(f"#../../x:{NAME}")))[0] == 200
    assert (await club.call("alice", "DELETE", alias_path(f"#%:{NAME}")))[0] == 200


async def test_c11_one_room_does_not_take_all_names(club: Club, db: Database) -> None:
    for n in range(MAX_ALIASES - 1):
        await aliases.add(db, f"#n{n}:{NAME}", club.room_id, f"@alice:{NAME}", 0)
    for name, status in (("one", 200), ("more", 403)):
        answer = await club.call("bob", "PUT", alias_path(f"#{name}:{NAME}"), {"room_id": club.room_id})
        assert answer[0] == status, answer


async def test_c11_a_room_calls_itself_only_what_leads_to_it(club: Club) -> None:
    mine, other = f"#mine:{NAME}", f"#other:{NAME}"
    elsewhere = (await club.ok("carol", "POST", "/createRoom", {"room_alias_name": "other"}))["room_id"]
    assert elsewhere != club.room_id
    path = f"{club.room}/state/m.room.canonical_alias"
    await club.ok("alice", "PUT", alias_path(mine), {"room_id": club.room_id})
    for content, errcode in (
        ({"alias": other}, "M_BAD_ALIAS"),
        ({"alias": f"#none:{NAME}"}, "M_BAD_ALIAS"),
        ({"alias": mine, "alt_aliases": [other]}, "M_BAD_ALIAS"),
        ({"alias": "mine"}, "M_INVALID_PARAM"),
        ({"alt_aliases": [5]}, "M_INVALID_PARAM"),
        ({"alt_aliases": mine}, "M_INVALID_PARAM"),
        ({"alt_aliases": [f"#n{n}:{NAME}" for n in range(50)]}, "M_BAD_ALIAS"),
    ):
        answer = await club.call("alice", "PUT", path, content)
        assert (answer[0], answer[1]["errcode"]) == (400, errcode), content
    assert (await club.call("bob", "PUT", path, {"alias": mine}))[0] == 403
    assert (await club.call("carol", "PUT", path, {"alias": mine}))[0] == 403
    await club.ok("alice", "PUT", path, {"alias": mine, "alt_aliases": [mine]})
    state = [{"type": "m.room.canonical_alias", "state_key": "", "content": {"alias": other}}]
    answer = await club.call("alice", "POST", "/createRoom", {"initial_state": state})
    assert (answer[0], answer[1]["errcode"]) == (400, "M_BAD_ALIAS")
    # Deleted, it is the room's name no longer; what is there already need not lead here.
    await club.ok("alice", "DELETE", alias_path(mine))
    assert await club.ok("alice", "GET", path) == {"alt_aliases": []}
    await club.ok("alice", "PUT", path, {})


def test_q1_a_query_of_the_list_is_checked() -> None:
    assert parse_query(None, None, None).limit == 100
    assert parse_query(10**9, "7", {"generic_search_term": " %_\\' "}).term == "%_\\'"
    bad: list[tuple[Any, Any, Any]] = [
        ("1", None, None), (True, None, None), (1, "x", None), (1, "9" * 12, None), (1, 5, None), (1, None, []),
        (1, None, {"generic_search_term": 5}), (1, None, {"generic_search_term": "x" * 300}),
        (1, None, {"room_types": "m.space"}), (1, None, {"room_types": [5]}), (1, None, {"room_types": [None] * 50}),
    ]  # fmt: skip
    for limit, since, wanted in bad:
        with pytest.raises(ValueError, match="not"):
            parse_query(limit, since, wanted)


def test_of_another_servers_list_only_what_is_specified_is_shown() -> None:
    good = {"room_id": "!r:x.test", "num_joined_members": 3, "world_readable": True, "guest_can_join": False}
    chunk: list[Any] = [
        {**good, "name": "n", "evil": 1, "topic": 5},
        5, {}, {"room_id": "r"}, {**good, "num_joined_members": -1, "name": "x" * 20_000}, {**good, "room_id": "!"
        + "x" * 300},
    ]  # fmt: skip
    assert cleaned(chunk, 10) == [{**good, "name": "n"}, {**good, "num_joined_members": 0}]
    assert cleaned("x", 10) == cleaned(None, 10) == []
    assert len(cleaned([good] * 20, 10)) == 10


async def test_the_list_in_pages_by_term_and_by_type(club: Club) -> None:
    made = {}
    for name, more in (
        ("100% cats", {}), ("dogs", {"topic": "and CATS"}), ("space", {"creation_content": {"type": "m.space"}}),
    ):  # fmt: skip
        body = {"visibility": "public", "name": name, **more}
        made[name] = (await club.ok("alice", "POST", "/createRoom", body))["room_id"]
    await club.ok("bob", "POST", f"/join/{quote(made['dogs'], safe='')}", {})

    async def listed(body: Any) -> list[str]:
        found = await club.ok("carol", "POST", "/publicRooms", body)
        return [room["name"] for room in found["chunk"]]

    def of(types: Any) -> Any:
        return {"filter": {"room_types": types}}

    assert (await listed({}))[0] == "dogs"
    assert sorted(await listed({"filter": {"generic_search_term": "cats"}})) == ["100% cats", "dogs"]
    assert await listed({"filter": {"generic_search_term": "100%"}}) == ["100% cats"]
    assert await listed({"filter": {"generic_search_term": "_"}}) == []
    assert await listed(of(["m.space"])) == ["space"]
    assert len(await listed(of([None]))) == 2 and len(await listed(of([None, "m.space"]))) == 3
    assert await listed({"third_party_instance_id": "irc"}) == []
    names, since = [], ""
    while True:
        page = await club.ok("carol", "GET", f"/publicRooms?limit=1{since}")
        names += [room["name"] for room in page["chunk"]]
        assert page["total_room_count_estimate"] == 3
        if "next_batch" not in page:
            break
        since = f"&since={page['next_batch']}"
    assert len(set(names)) == 3


async def test_the_list_of_another_server(cluster: Cluster, tmp_path: Path) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        body = {"visibility": "public", "name": "club", "topic": "t"}
        room_id = await alice.create(**body)
        await alice.create(**body | {"creation_content": {"m.federate": False}, "name": "here"})
        page = await bob.ok("GET", f"/publicRooms?server={HUB}&limit=5")
        assert [(r["room_id"], r["name"], r["num_joined_members"]) for r in page["chunk"]] == [
            (room_id, "club", 1)
        ]
        assert page["total_room_count_estimate"] == 1
        for term, count in (("CLUB", 1), ("none", 0)):
            wanted = {"filter": {"generic_search_term": term, "other": 1}}
            found = await bob.ok("POST", f"/publicRooms?server={HUB}", wanted)
            assert len(found["chunk"]) == count
        assert len((await alice.ok("GET", f"/publicRooms?server={HUB}"))["chunk"]) == 2
        for path, status in (
            (f"?server={PARTICIPANT}", 200),
            ("?server=127.0.0.1", 400),
            ("?server=gone.test", 502),
        ):
            assert (await bob.call("GET", f"/publicRooms{path}"))[0] == status, path
        async with participant.http.get("/_matrix/client/v3/publicRooms", params={"server": HUB}) as response:
            assert response.status == 401


async def test_a_list_that_is_not_for_other_servers(cluster: Cluster, tmp_path: Path) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT, rooms={"list_for_servers": False}) as [
        _,
        participant,
    ]:
        bob = await participant.user("bob")
        status, answer = await bob.call("GET", f"/publicRooms?server={HUB}")
        assert (status, answer["errcode"]) == (502, "M_UNKNOWN")
