"""Backups of room keys: versions, which key is better, and what a client reads back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lmserver.accounts import key_backups
from lmserver.storage.database import Database
from tests.kit.edu_world import Device, EduWorld
from tests.kit.rooms import ALICE, HUB

ROOM, OTHER = f"!room:{HUB}", f"!other:{HUB}"
CURVE = "m.megolm_backup.v1.curve25519-aes-sha2"
AUTH = {"public_key": "abc", "signatures": {}}
VERSION = "/room_keys/version"


@pytest.fixture
async def world(db: Database, tmp_path: Path) -> AsyncIterator[EduWorld]:
    async with EduWorld(db, tmp_path) as made:
        yield made


def key(index: int = 0, forwarded: int = 0, *, verified: bool = False, data: str = "x") -> dict[str, Any]:
    return {
        "first_message_index": index, "forwarded_count": forwarded, "is_verified": verified,
        "session_data": {"ciphertext": data, "ephemeral": "e", "mac": "m"},
    }  # fmt: skip


def keys(version: int, *path: str) -> str:
    return "/".join(["/room_keys/keys", *(quote(part, safe="") for part in path)]) + f"?version={version}"


async def backup(device: Device) -> int:
    made = await device.ok("POST", VERSION, {"algorithm": CURVE, "auth_data": AUTH})
    return int(made["version"])


async def test_versions_are_made_changed_and_deleted(world: EduWorld) -> None:
    alice = await world.device("alice")
    assert await alice.call("GET", VERSION) == (404, {"errcode": "M_NOT_FOUND", "error": "No such backup"})
    first, second = await backup(alice), await backup(alice)
    assert second > first
    shown = {"algorithm": CURVE, "auth_data": AUTH, "count": 0, "etag": "0"}
    assert await alice.ok("GET", VERSION) == {**shown, "version": str(second)}
    assert await alice.ok("GET", f"{VERSION}/{first}") == {**shown, "version": str(first)}
    changed = {"algorithm": CURVE, "auth_data": {"public_key": "def"}}
    await alice.ok("PUT", f"{VERSION}/{first}", {**changed, "version": str(first)})
    assert (await alice.ok("GET", f"{VERSION}/{first}"))["auth_data"] == {"public_key": "def"}
    for body in ({**changed, "version": "9"}, {**changed, "algorithm": "other"}):
        status, answer = await alice.call("PUT", f"{VERSION}/{first}", body)
        assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")
    await alice.ok("DELETE", f"{VERSION}/{second}")
    await alice.ok("DELETE", f"{VERSION}/{second}")
    assert (await alice.ok("GET", VERSION))["version"] == str(first)
    for method, version in [
        ("GET", second),
        ("PUT", second),
        ("GET", 99),
        ("DELETE", 99),
        ("GET", "x"),
        ("PUT", "x"),
    ]:
        status, answer = await alice.call(
            method, f"{VERSION}/{version}", changed if method == "PUT" else None
        )
        assert (status, answer["errcode"]) == (404, "M_NOT_FOUND"), (method, version)
    assert await backup(alice) == second + 1
    carol = await world.device("carol")
    assert (await carol.call("GET", f"{VERSION}/{first}"))[0] == 404


async def test_keys_are_stored_read_and_deleted_by_session_room_and_altogether(world: EduWorld) -> None:
    alice = await world.device("alice")
    v = await backup(alice)
    one = await alice.ok("PUT", keys(v, ROOM, "a/b"), key(data="one"))
    assert one == {"count": 1, "etag": "1"}
    room = await alice.ok("PUT", keys(v, ROOM), {"sessions": {"s2": key(2), "s3": key(3)}})
    assert room == {"count": 3, "etag": "2"}
    whole = {"rooms": {OTHER: {"sessions": {"t": key(verified=True)}}, ROOM: {"sessions": {"s3": key(3)}}}}
    assert await alice.ok("PUT", keys(v), whole) == {"count": 4, "etag": "3"}
    assert await alice.ok("GET", keys(v, ROOM, "a/b")) == key(data="one")
    in_room = {"sessions": {"a/b": key(data="one"), "s2": key(2), "s3": key(3)}}
    assert await alice.ok("GET", keys(v, ROOM)) == in_room
    every = {"rooms": {ROOM: in_room, OTHER: {"sessions": {"t": key(verified=True)}}}}
    assert await alice.ok("GET", keys(v)) == every
    assert await alice.ok("GET", keys(v, f"!none:{HUB}")) == {"sessions": {}}
    assert (await alice.ok("GET", VERSION))["count"] == 4
    assert await alice.ok("DELETE", keys(v, ROOM, "s2")) == {"count": 3, "etag": "4"}
    assert await alice.ok("DELETE", keys(v, ROOM, "s2")) == {"count": 3, "etag": "4"}
    assert await alice.ok("DELETE", keys(v, ROOM)) == {"count": 1, "etag": "5"}
    assert await alice.ok("DELETE", keys(v)) == {"count": 0, "etag": "6"}
    assert await alice.ok("GET", keys(v)) == {"rooms": {}}
    await alice.ok("PUT", keys(v), whole)
    await alice.ok("DELETE", f"{VERSION}/{v}")
    assert await world.db.fetchval("SELECT count(*) FROM backed_up_keys") == 0


# What is there, what comes, and whether it takes its place.
BETTER = [
    (key(5, 5), key(4, 9), True),
    (key(5, 5), key(5, 4), True),
    (key(5, 5), key(5, 5), False),
    (key(5, 5), key(6, 0), False),
    (key(5, 5), key(5, 6), False),
    (key(0, 0), key(9, 9, verified=True), True),
    (key(9, 9, verified=True), key(0, 0), False),
    (key(9, 9, verified=True), key(8, 9, verified=True), True),
]


async def test_only_a_better_key_takes_the_place_of_another(world: EduWorld) -> None:
    alice = await world.device("alice")
    v = await backup(alice)
    for number, (old, new, replaced) in enumerate(BETTER):
        path = keys(v, ROOM, f"s{number}")
        before = await alice.ok("PUT", path, old)
        new["session_data"]["ciphertext"] = "new"
        after = await alice.ok("PUT", path, new)
        assert (after["etag"] != before["etag"], after["count"]) == (replaced, number + 1)
        assert await alice.ok("GET", path) == (new if replaced else old), number


async def test_keys_go_into_the_current_version_only(world: EduWorld) -> None:
    alice = await world.device("alice")
    status, answer = await alice.call("PUT", keys(1), {"rooms": {}})
    assert (status, answer["errcode"]) == (404, "M_NOT_FOUND")
    first, second = await backup(alice), await backup(alice)
    for version in (first, 99):
        for path, body in ((keys(version, ROOM, "s"), key()), (keys(version), {"rooms": {}})):
            status, answer = await alice.call("PUT", path, body)
            assert (status, answer["errcode"]) == (403, "M_WRONG_ROOM_KEYS_VERSION")
            assert answer["current_version"] == str(second)
    await alice.ok("GET", keys(first))
    for method, path in [
        ("GET", keys(99)),
        ("GET", keys(99, ROOM, "s")),
        ("DELETE", keys(99)),
        ("GET", keys(first, ROOM, "s")),
    ]:
        status, answer = await alice.call(method, path)
        assert (status, answer["errcode"]) == (404, "M_NOT_FOUND"), (method, path)
    assert (await alice.call("GET", "/room_keys/keys"))[1]["errcode"] == "M_MISSING_PARAM"


async def test_what_is_no_key_is_refused(world: EduWorld) -> None:
    alice = await world.device("alice")
    v = await backup(alice)
    for bad in (
        {}, [], key(-1), key(0, -1), {**key(), "is_verified": 1}, {**key(), "session_data": "x"},
        {**key(), "first_message_index": True}, key(2**53),
    ):  # fmt: skip
        status, answer = await alice.call("PUT", keys(v, ROOM, "s"), bad)
        assert (status, answer["errcode"]) == (400, "M_BAD_JSON"), bad
    for path, body, wanted in [
        (keys(v, "room", "s"), key(), 400), (keys(v, ROOM, "\0"), key(), 400), (keys(v, ROOM, "s" * 256), key(), 400),
        (keys(v, ROOM), {"sessions": []}, 400), (keys(v), {"rooms": {ROOM: 5}}, 400), (keys(v), {}, 400),
        (keys(v, ROOM, "s"), key(data="x" * 20_000), 413),
    ]:  # fmt: skip
        assert (await alice.call("PUT", path, body))[0] == wanted, path
    many = {"sessions": {f"s{n}": key() for n in range(10_001)}}
    assert (await alice.call("PUT", keys(v, ROOM), many))[0] == 400
    for body in (
        {},
        {"algorithm": 5, "auth_data": {}},
        {"algorithm": CURVE},
        {"algorithm": CURVE, "auth_data": {"x": 1.5}},
    ):
        status, answer = await alice.call("POST", VERSION, body)
        assert (status, answer["errcode"]) == (400, "M_BAD_JSON")
    assert (await alice.ok("GET", VERSION))["count"] == 0


async def test_many_keys_are_read_in_pages_and_counted_whoever_stores_them(
    world: EduWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_backups, "PAGE", 7)
    monkeypatch.setattr(key_backups, "MAX_KEYS", 230)
    alice, other = await world.device("alice"), await world.device("alice", "E")
    v = await backup(alice)

    def some(first: int) -> Any:
        sessions = {f"s{n:03}": key(n, data="x" * 2_000) for n in range(first, first + 100)}
        return {"rooms": {ROOM: {"sessions": sessions}, OTHER: {"sessions": {f"o{first}": key()}}}}

    await asyncio.gather(
        *(device.ok("PUT", keys(v), some(first)) for device in (alice, other) for first in (0, 50, 100))
    )
    found = (await alice.ok("GET", keys(v)))["rooms"]
    assert list(found[ROOM]["sessions"]) == [f"s{n:03}" for n in range(200)]
    assert len(found[OTHER]["sessions"]) == 3
    assert (await alice.ok("GET", keys(v, ROOM))) == found[ROOM]
    assert (await alice.ok("GET", VERSION))["count"] == 203
    assert (await alice.call("PUT", keys(v), some(200)))[0] == 413
    assert (await alice.ok("GET", VERSION))["count"] == 203
    await world.server.accounts.deactivate(ALICE)
    assert await world.db.fetchval("SELECT count(*) FROM key_backups") == 0
