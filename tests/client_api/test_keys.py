"""Publishing and claiming keys: what is junk, what is once only, and who may not take them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lmserver.accounts import device_data
from lmserver.storage.database import Database
from tests.kit.cross_signing import SigningDevice
from tests.kit.edu_world import Device, EduWorld
from tests.kit.rooms import ALICE, HUB
from tests.kit.waiting import eventually

UPLOAD = "/keys/upload"
CURVE = "signed_curve25519"


@pytest.fixture
def config() -> dict[str, Any]:
    return {}


@pytest.fixture
async def world(db: Database, tmp_path: Path, config: dict[str, Any]) -> AsyncIterator[EduWorld]:
    async with EduWorld(db, tmp_path, **config) as made:
        yield made


def one_time(*names: str) -> dict[str, Any]:
    return {"one_time_keys": {f"{CURVE}:{name}": {"key": name, "signatures": {ALICE: {}}} for name in names}}


async def claimed(device: Device) -> str | None:
    """The ID of the key that a claim of alice's device gets."""
    answer = await device.ok("POST", "/keys/claim", {"one_time_keys": {ALICE: {"D": CURVE}}})
    return next(iter(answer["one_time_keys"].get(ALICE, {}).get("D", {})), None)


async def test_c9_device_keys_that_are_none_are_refused_and_nothing_is_sent(world: EduWorld) -> None:
    alice = await world.device("alice")
    good = SigningDevice(ALICE, "D").keys
    for junk, status in [
        (None, 400), (5, 400), ([], 400), ({}, 400), ({**good, "user_id": f"@carol:{HUB}"}, 400),
        ({**good, "device_id": "E"}, 400), ({**good, "algorithms": "x"}, 400), ({**good, "algorithms": [None]}, 400),
        ({**good, "keys": {"ed25519:D": None}}, 400), ({**good, "signatures": {ALICE: 5}}, 400),
        ({**good, "signatures": {ALICE: {"ed25519:D": 5}}}, 400), ({**good, "x": 1.5}, 400),
        ({**good, "x": "y" * 40_000}, 413), ({**good, "x": "y" * 10_000_000}, 413),
    ]:  # fmt: skip
        assert (await alice.call("POST", UPLOAD, {"device_keys": junk}))[0] == status, str(junk)[:100]
    assert await world.db.fetchval("SELECT count(*) FROM outbound_edus") == 0
    await alice.upload_keys(good)
    await eventually(lambda: len(world.received("m.device_list_update")) == 1)


async def test_what_is_no_one_time_key(world: EduWorld) -> None:
    alice = await world.device("alice")
    for name in ("one_time_keys", "fallback_keys"):
        for junk in (
            5,
            [],
            {"nocolon": "x"},
            {f"{CURVE}:a": 5},
            {f"{CURVE}:a\0": "x"},
            {f"{CURVE}:" + "a" * 255: "x"},
        ):
            status, answer = await alice.call("POST", UPLOAD, {name: junk})
            assert (status, answer["errcode"]) == (400, "M_BAD_JSON"), junk
    assert (await alice.call("POST", UPLOAD, one_time(*map(str, range(501)))))[0] == 400
    two = {"fallback_keys": {f"{CURVE}:a": {"key": "a"}, f"{CURVE}:b": {"key": "b"}}}
    assert (await alice.call("POST", UPLOAD, two))[0] == 400


async def test_the_same_key_again_is_no_error_another_of_its_name_is(
    world: EduWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of its members does not make it another one; an upload that fails changes nothing."""
    monkeypatch.setattr(device_data, "MAX_STORED_KEYS", 3)
    alice = await world.device("alice")
    assert await alice.ok("POST", UPLOAD, one_time("a", "b")) == {"one_time_key_counts": {CURVE: 2}}
    turned = {"one_time_keys": {f"{CURVE}:a": {"signatures": {ALICE: {}}, "key": "a"}}}
    assert await alice.ok("POST", UPLOAD, turned) == {"one_time_key_counts": {CURVE: 2}}
    other = {"one_time_keys": {f"{CURVE}:c": {"key": "c"}, f"{CURVE}:a": {"key": "b"}}}
    for body in (other, one_time("c", "d")):
        status, answer = await alice.call("POST", UPLOAD, body)
        assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM")
    assert await alice.ok("POST", UPLOAD, {}) == {"one_time_key_counts": {CURVE: 2}}


async def test_a_repeated_upload_does_not_bring_back_what_was_claimed(world: EduWorld) -> None:
    """The client did not get our answer; a key of the same name and other bytes is a new one."""
    alice, carol = await world.device("alice"), await world.device("carol")
    await alice.ok("POST", UPLOAD, one_time("a", "b"))
    assert await claimed(carol) == f"{CURVE}:a"
    assert await alice.ok("POST", UPLOAD, one_time("a", "b")) == {"one_time_key_counts": {CURVE: 1}}
    again = asyncio.gather(*(alice.ok("POST", UPLOAD, one_time("a", "b")) for _ in range(4)))
    assert {await claimed(carol), await claimed(carol)} == {f"{CURVE}:b", None}
    await again
    assert await claimed(carol) is None
    await alice.ok("POST", UPLOAD, {"one_time_keys": {f"{CURVE}:a": {"key": "new"}}})
    assert await claimed(carol) == f"{CURVE}:a"


async def test_a_device_id_with_new_identity_keys_starts_without_one_time_keys(world: EduWorld) -> None:
    alice = await world.device("alice")
    keys = SigningDevice(ALICE, "D").keys
    fallback = {"fallback_keys": {f"{CURVE}:f": {"key": "f"}}}
    await alice.ok("POST", UPLOAD, {"device_keys": keys, **one_time("a"), **fallback})
    resigned = {**keys, "signatures": {ALICE: {**keys["signatures"][ALICE], "ed25519:x": "y"}}}
    assert (await alice.ok("POST", UPLOAD, {"device_keys": resigned}))["one_time_key_counts"] == {CURVE: 1}
    other = {"device_keys": SigningDevice(ALICE, "D").keys, **one_time("b")}
    assert (await alice.ok("POST", UPLOAD, other))["one_time_key_counts"] == {CURVE: 1}
    assert await claimed(alice) == f"{CURVE}:b"
    assert (await alice.sync())["device_unused_fallback_key_types"] == []


async def test_a_fallback_key_is_used_again_until_there_is_a_new_one(world: EduWorld) -> None:
    alice, carol = await world.device("alice"), await world.device("carol")
    fallback = {"fallback_keys": {f"{CURVE}:f": {"key": "f", "fallback": True}}}
    await alice.ok("POST", UPLOAD, {**one_time("a"), **fallback})
    assert (await alice.sync())["device_unused_fallback_key_types"] == [CURVE]
    found = await asyncio.gather(*(claimed(carol) for _ in range(5)))
    assert sorted(map(str, found)) == [f"{CURVE}:a"] + [f"{CURVE}:f"] * 4
    await alice.ok("POST", UPLOAD, fallback)
    answer = await alice.sync()
    assert answer["device_unused_fallback_key_types"] == []
    assert answer["device_one_time_keys_count"] == {CURVE: 0}
    await alice.ok("POST", UPLOAD, {"fallback_keys": {f"{CURVE}:g": {"key": "g", "fallback": True}}})
    assert (await alice.sync())["device_unused_fallback_key_types"] == [CURVE]
    assert await claimed(carol) == f"{CURVE}:g"


@pytest.mark.parametrize("config", [{"limits": {"federation_claims": {"per_second": 0.001, "burst": 3}}}])
async def test_r10_a_user_here_cannot_drain_a_device(world: EduWorld) -> None:
    """Over the rate they get the fallback key, and others get the others."""
    alice, carol, dave = [await world.device(name) for name in ("alice", "carol", "dave")]
    fallback = {"fallback_keys": {f"{CURVE}:f": {"key": "f", "fallback": True}}}
    await alice.ok("POST", UPLOAD, {**one_time(*"abcdefgh"), **fallback})
    found = [await claimed(carol) for _ in range(6)]
    assert found[3:] == [f"{CURVE}:f"] * 3 and len(set(found[:3])) == 3
    assert await claimed(dave) == f"{CURVE}:d"
    too_many = {"one_time_keys": {ALICE: {f"D{n}": CURVE for n in range(5_001)}}}
    assert (await carol.call("POST", "/keys/claim", too_many))[0] == 400


async def test_a_renamed_device_is_looked_up_again_by_users_here(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.upload_keys()
    await eventually(lambda: len(world.received("m.device_list_update")) == 1)
    await alice.sync()
    await alice.ok("PUT", "/devices/D", {"display_name": "phone"})
    assert (await alice.sync())["device_lists"]["changed"] == [ALICE]
    seen = await alice.ok("POST", "/keys/query", {"device_keys": {ALICE: []}})
    assert seen["device_keys"][ALICE]["D"]["unsigned"] == {"device_display_name": "phone"}
    await alice.ok("POST", "/logout")
    await eventually(lambda: len(world.received("m.device_list_update")) == 2)
    assert world.received("m.device_list_update")[1]["content"]["stream_id"] == 2


async def test_a_device_that_is_deleted_leaves_nothing(world: EduWorld) -> None:
    """CS API §Device management: its keys, messages and tokens go, and others hear of it."""
    alice, other = await world.device("alice"), await world.device("alice", "E")
    await other.upload_keys(SigningDevice(ALICE, "E").keys)
    await other.ok("POST", UPLOAD, one_time("a"))
    await alice.send_to_device(ALICE, "E", {"n": 1})
    await alice.sync()
    status, answer = await alice.call("DELETE", "/devices/E", {})
    assert status == 401
    auth = {
        "type": "m.login.password", "session": answer["session"], "password": "a long password",
        "identifier": {"type": "m.id.user", "user": "alice"},
    }  # fmt: skip
    assert (await alice.call("DELETE", "/devices/E", {"auth": auth}))[0] == 200
    assert (await other.call("GET", "/account/whoami"))[0] == 401
    assert (await alice.sync())["device_lists"]["changed"] == [ALICE]
    await eventually(lambda: len(world.received("m.device_list_update")) == 2)
    assert world.received("m.device_list_update")[1]["content"]["removed"] == ["E"]
    again = await world.device("alice", "E")
    assert (await again.sync())["to_device"]["events"] == []
    assert (await again.ok("POST", UPLOAD, {}))["one_time_key_counts"] == {CURVE: 0}
    assert (await again.ok("POST", "/keys/query", {"device_keys": {ALICE: []}}))["device_keys"] == {ALICE: {}}


async def test_what_is_no_user_id_keeps_nobody_from_the_keys_of_others(world: EduWorld) -> None:
    alice = await world.device("alice")
    keys = await alice.upload_keys()
    bad = [
        "",
        "alice",
        "@Alice:x",
        "@alice",
        "@:x",
        "@a b:x",
        "@a:127.1",
        f"@a\0:{HUB}",
        "@" + "a" * 255 + ":x",
    ]
    wanted = {**{user_id: [] for user_id in bad}, ALICE: []}
    seen = await alice.ok("POST", "/keys/query", {"device_keys": wanted})
    assert list(seen["device_keys"]) == [ALICE] and seen["failures"] == {}
    assert seen["device_keys"][ALICE]["D"]["keys"] == keys["keys"]
    for devices in ([5], ["a\0"]):
        assert (await alice.call("POST", "/keys/query", {"device_keys": {ALICE: devices}}))[0] == 400
