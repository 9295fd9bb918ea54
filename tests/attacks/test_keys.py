"""Attacks K and X13 on our keys and on us as a notary, over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lmserver.protocol.signatures import check_json_signature
from lmserver.storage.database import Database
from tests.evilpeer.network import Network
from tests.evilpeer.peer import EvilPeer
from tests.evilpeer.victim import Victim
from tests.kit.rooms import EVIL, HUB, KEYS, PARTICIPANT

QUERY = "/_matrix/key/v2/query"


class NotaryWorld:
    """A victim, and two servers that it may be asked about."""

    def __init__(self, db: Database, folder: Path, **federation: Any) -> None:
        self.network = Network()
        plain = {"plain_http_servers": [PARTICIPANT, EVIL]}
        self.victim = Victim(db, self.network, HUB, folder, federation={**plain, **federation})
        self.evil = EvilPeer(self.network, EVIL)
        self.honest = EvilPeer(self.network, PARTICIPANT)

    async def start(self) -> None:
        for part in (self.victim, self.evil, self.honest):
            await part.start()

    async def stop(self) -> None:
        for part in (self.evil, self.honest, self.victim):
            await part.stop()

    async def ask(self, method: str, path: str, content: Any = None) -> list[dict[str, Any]]:
        status, answer = await self.evil.ask(HUB, method, path, content)
        assert status == 200, answer
        found: list[dict[str, Any]] = answer["server_keys"]
        for document in found:
            check_json_signature(document, HUB, KEYS[HUB])
            check_json_signature(document, document["server_name"], KEYS[document["server_name"]])
        return found


@pytest.fixture
async def world(db: Database, tmp_path: Path) -> AsyncIterator[NotaryWorld]:
    made = NotaryWorld(db, tmp_path, allowed_networks=["127.0.0.0/8"])
    await made.start()
    yield made
    await made.stop()


async def test_a_notary_adds_its_signature_to_what_the_server_signed(world: NotaryWorld) -> None:
    [document] = await world.ask("GET", f"{QUERY}/{PARTICIPANT}")
    assert document["server_name"] == PARTICIPANT and "ed25519:t1" in document["verify_keys"]
    assert await world.ask("POST", QUERY, {"server_keys": {PARTICIPANT: {}}}) == [document]
    asked_for = {"ed25519:t1": {"minimum_valid_until_ts": 5}}
    assert await world.ask("POST", QUERY, {"server_keys": {PARTICIPANT: asked_for}}) == [document]
    both = await world.ask("POST", QUERY, {"server_keys": {PARTICIPANT: {}, HUB: {}, "no.test": {}}})
    assert sorted(d["server_name"] for d in both) == [HUB, PARTICIPANT]
    assert await world.ask("POST", QUERY, {"server_keys": {}}) == []


@pytest.mark.parametrize(
    "criteria",
    [
        {"ed25519:other": {}},
        {"ed25519:t1": {"minimum_valid_until_ts": 2**53 - 1}},
        {"ed25519:other": {}, "ed25519:t1": {"minimum_valid_until_ts": 2**53 - 1}},
    ],
)
async def test_keys_that_are_of_no_use_are_not_returned(world: NotaryWorld, criteria: Any) -> None:
    assert await world.ask("POST", QUERY, {"server_keys": {PARTICIPANT: criteria}}) == []
    until = f"minimum_valid_until_ts={2**53 - 1}"
    assert await world.ask("GET", f"{QUERY}/{PARTICIPANT}?{until}") == []
    assert await world.ask("GET", f"{QUERY}/{HUB}?{until}") == []


async def test_the_last_answer_is_given_while_the_server_is_away(world: NotaryWorld) -> None:
    before = await world.ask("GET", f"{QUERY}/{PARTICIPANT}")
    await world.honest.stop()
    assert await world.ask("GET", f"{QUERY}/{PARTICIPANT}") == before


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"server_keys": []},
        {"server_keys": None},
        {"server_keys": {f"s{n}.test": {} for n in range(101)}},
        {"server_keys": {f"s{n}.test": {} for n in range(3000)}},
    ],
)
async def test_k9_a_question_that_is_none_or_too_large_is_refused(world: NotaryWorld, body: Any) -> None:
    status, answer = await world.evil.ask(HUB, "POST", QUERY, body)
    assert (status, answer["errcode"]) in ((400, "M_BAD_JSON"), (413, "M_TOO_LARGE"))
    assert world.honest.received == []


@pytest.mark.parametrize(
    "criteria", [None, 5, [], {"": None}, {"ed25519:t1": {"minimum_valid_until_ts": -1}}, {"ed25519:t1": 1}]
)
async def test_k9_odd_criteria_ask_for_nothing_in_particular(world: NotaryWorld, criteria: Any) -> None:
    found = await world.ask("POST", QUERY, {"server_keys": {PARTICIPANT: criteria, "": {}, "[::1]": {}}})
    assert len(found) == (0 if criteria == {"": None} else 1)


@pytest.mark.parametrize("name", ["127.0.0.1", "[::1]", "0x7f.1", "a b", "EVIL test", "x" * 300, "%00"])
async def test_k9_what_is_no_server_name_is_refused(world: NotaryWorld, name: str) -> None:
    status, answer = await world.evil.ask(HUB, "GET", f"{QUERY}/{quote(name)}")
    assert status == 400, answer


async def test_k9_names_that_lead_inside_cause_no_connection(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notary's own network is where an attacker would like it to knock."""
    world = NotaryWorld(db, tmp_path, allowed_networks=[])
    connections: list[str] = []
    for peer in (world.honest, world.evil):
        monkeypatch.setattr(peer, "_serve", _count(connections))
    await world.start()
    try:
        assert await world.ask("POST", QUERY, {"server_keys": {PARTICIPANT: {}, EVIL: {}}}) == []
        assert await world.ask("GET", f"{QUERY}/{PARTICIPANT}") == []
        assert connections == []
    finally:
        await world.stop()


def _count(connections: list[str]) -> Any:
    async def serve(raw: Any) -> Any:
        connections.append(raw.path)
        raise AssertionError("nobody should be here")

    return serve


async def test_k9_whoever_asks_too_often_is_told_to_wait(db: Database, tmp_path: Path) -> None:
    world = NotaryWorld(db, tmp_path, allowed_networks=["127.0.0.0/8"])
    world.victim = Victim(
        db, world.network, HUB, tmp_path, limits={"key_query": {"per_second": 0.01, "burst": 3}}
    )
    await world.start()
    try:
        statuses = [(await world.evil.ask(HUB, "GET", f"{QUERY}/{HUB}"))[0] for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        assert (await world.evil.ask(HUB, "GET", "/_matrix/key/v2/server"))[0] == 200
    finally:
        await world.stop()


@pytest.mark.parametrize("header", ["X-Matrix nonsense", "Bearer x", "", 'X-Matrix origin="evil.test"'])
async def test_x13_authorization_is_ignored_where_none_is_needed(world: NotaryWorld, header: str) -> None:
    for method, path, body in (
        ("GET", "/_matrix/key/v2/server", None),
        ("GET", f"{QUERY}/{HUB}", None),
        ("POST", QUERY, b'{"server_keys":{}}'),
    ):
        assert (await world.evil.ask_raw(HUB, method, path, body, header, header))[0] == 200
