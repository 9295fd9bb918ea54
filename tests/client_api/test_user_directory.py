"""POST /user_directory/search: who is found, by whom, under which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lmserver.storage.people import words_of
from tests.client_api.test_ignoring import Club, club
from tests.federation.sites import Person, sites
from tests.kit.client_api import NAME
from tests.kit.postgres import Cluster
from tests.kit.rooms import HUB, PARTICIPANT

__all__ = ["club"]


async def found(club: Club, who: str, term: str, **more: Any) -> list[str]:
    body = {"search_term": term, **more}
    answer = await club.ok(who, "POST", "/user_directory/search", body)
    return [person["user_id"][1:].partition(":")[0] for person in answer["results"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Alice B. O'Neill-Smith", ["alice", "b", "o", "neill", "smith"]),
        ("a_b a_b  %_!'\\:*&|", ["a", "b"]),
        ("Жан ПОЛЬ 東京", ["жан", "поль", "東京"]),
        ("\0\u2028", []),
        ("x" * 500, ["x" * 64]),
        (" ".join(map(str, range(100))), [str(n) for n in range(16)]),
    ],
)
def test_q1_words_are_letters_and_digits(text: str, words: list[str]) -> None:
    assert words_of(text) == words


async def test_those_in_public_rooms_and_those_one_shares_a_room_with(club: Club) -> None:
    await club.ok(
        "alice", "PUT", f"/profile/%40alice%3A{NAME}/displayname", {"displayname": "Alice O'Neill 100%"}
    )
    assert await found(club, "bob", "ali") == ["alice"]
    assert await found(club, "carol", "NEILL al") == ["alice"]
    assert await found(club, "carol", f"@alice:{NAME}") == ["alice"]
    assert await found(club, "alice", "ali") == []
    for nobody in ("lice", "%", "_", "'", "alice bob", "", "\\", "z:*", "'a':* | 'b'"):
        assert await found(club, "carol", nobody) == [], nobody
    # Private, the room shows its members to its members alone.
    await club.ok("alice", "PUT", f"{club.room}/state/m.room.join_rules", {"join_rule": "invite"})
    assert await found(club, "carol", "ali") == []
    assert await found(club, "bob", "ali") == ["alice"]
    # A name used in one room is that room's business.
    member = quote(f"@alice:{NAME}", safe="")
    await club.ok("alice", "PUT", f"{club.room}/state/m.room.member/{member}",
                  {"membership": "join", "displayname": "Secret"})  # fmt: skip
    assert await found(club, "bob", "secret") == []
    await club.ok("bob", "POST", f"{club.room}/leave", {})
    assert await found(club, "bob", "ali") == []


async def test_so_many_and_no_more(club: Club) -> None:
    for name in ("bob2", "bob3"):
        club.tokens[name] = (await club.api.register(name))["access_token"]
        await club.ok(name, "POST", f"{club.room}/join", {})
    answer = await club.ok("alice", "POST", "/user_directory/search", {"search_term": "bob", "limit": 2})
    assert (len(answer["results"]), answer["limited"]) == (2, True)
    answer = await club.ok("alice", "POST", "/user_directory/search", {"search_term": "bob", "limit": 3})
    assert (len(answer["results"]), answer["limited"]) == (3, False)


async def test_everybody_where_the_operator_says_so(cluster: Cluster, tmp_path: Path) -> None:
    async with sites(cluster, tmp_path, HUB, user_directory={"search_all_users": True}) as [hub]:
        alice, _ = await hub.user("alice"), await hub.user("under_score")

        async def ids(term: str) -> list[str]:
            answer = await alice.ok("POST", "/user_directory/search", {"search_term": term})
            return [person["user_id"] for person in answer["results"]]

        assert await ids("SCORE") == [f"@under_score:{HUB}"]
        assert await ids("_") == [f"@under_score:{HUB}"]
        for nobody in ("%", "!", "\\", "a_e", "x\0y"):
            assert await ids(nobody) == [], nobody


async def test_users_of_other_servers(cluster: Cluster, tmp_path: Path) -> None:
    async with sites(cluster, tmp_path, HUB, PARTICIPANT) as [hub, participant]:
        alice, bob = await hub.user("alice"), await participant.user("bob")
        room_id = await alice.create(preset="public_chat")
        await bob.act("join", room_id)

        async def ids(who: Person, term: str) -> list[str]:
            answer = await who.ok("POST", "/user_directory/search", {"search_term": term})
            return [person["user_id"] for person in answer["results"]]

        assert await ids(bob, "alice") == [alice.user_id]
        assert await ids(alice, "bob") == [bob.user_id]
        stranger = await participant.user("eve")
        assert await ids(stranger, "alice") == [alice.user_id]
