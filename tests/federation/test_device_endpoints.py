"""What servers ask of each other about users: devices, keys, one-time keys, profiles, aliases."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from lmserver.storage import e2e_keys
from lmserver.storage.database import Database
from tests.evilpeer.peer import STABLE, UNSTABLE, Received
from tests.kit.cross_signing import Identity
from tests.kit.edu_world import EduWorld
from tests.kit.rooms import ALICE, BOB, EVIL, HUB, MALLORY, PARTICIPANT, ROOM

PASSIVE = f"@passive:{HUB}"


@pytest.fixture
def config() -> dict[str, Any]:
    return {}


@pytest.fixture
async def world(db: Database, tmp_path: Path, config: dict[str, Any]) -> AsyncIterator[EduWorld]:
    async with EduWorld(db, tmp_path, **config) as made:
        yield made


def one_time_keys(number: int) -> dict[str, Any]:
    keys = {f"signed_curve25519:{n:03}": {"key": f"k{n}"} for n in range(number)}
    return {
        "one_time_keys": keys,
        "fallback_keys": {"signed_curve25519:last": {"key": "last", "fallback": True}},
    }


# -- asked of us ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [f"{STABLE}/v1/user", f"{UNSTABLE}/user"])
async def test_a_device_is_what_it_signed_itself(world: EduWorld, path: str) -> None:
    """D04 §GET user/device: 404 for other servers' users, users and devices that do not exist."""
    alice = await world.device("alice")
    await alice.ok("PUT", "/devices/D", {"display_name": "my phone"})
    keys = await alice.upload_keys()
    assert await world.arena.ask("GET", f"{path}/{quote(ALICE)}/device/D") == (200, keys)
    await world.device("passive", "NOKEYS")
    for user_id, device_id in [
        (ALICE, "E"), (ALICE, "%00"), (f"@nobody:{HUB}", "D"), (MALLORY, "D"), ("nonsense", "D"), (PASSIVE, "NOKEYS"),
    ]:  # fmt: skip
        status, answer = await world.arena.ask("GET", f"{path}/{quote(user_id)}/device/{device_id}")
        assert (status, answer["errcode"]) == (404, "M_NOT_FOUND"), (user_id, device_id)


async def test_devices_and_keys_of_a_user_in_matrixs_form(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.ok("PUT", "/devices/D", {"display_name": "my phone"})
    keys = await alice.upload_keys()
    identity = Identity(ALICE)
    master, self_signing = identity.master_key, identity.self_signing_key
    await alice.ok("POST", "/keys/device_signing/upload", identity.body)
    status, answer = await world.arena.ask("GET", f"{STABLE}/v1/user/devices/{quote(ALICE)}")
    assert (status, answer) == (200, {
        "user_id": ALICE, "stream_id": 1, "devices": [{"device_id": "D", "keys": keys}],
        "master_key": {**master, "signatures": {}}, "self_signing_key": self_signing,
    })  # fmt: skip
    wanted = {"device_keys": {ALICE: [], f"@nobody:{HUB}": [], MALLORY: [], "x": 5}}
    status, answer = await world.arena.ask("POST", f"{STABLE}/v1/user/keys/query", wanted)
    assert status == 200
    assert answer["device_keys"] == {ALICE: {"D": keys}, f"@nobody:{HUB}": {}}
    assert answer["self_signing_keys"] == {ALICE: self_signing} and "user_signing_keys" not in answer
    assert answer["master_keys"][ALICE]["keys"] == master["keys"]
    for user_id in (f"@nobody:{HUB}", MALLORY):
        assert (await world.arena.ask("GET", f"{STABLE}/v1/user/devices/{quote(user_id)}"))[0] == 404


async def test_profiles_and_aliases(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.ok("PUT", f"/profile/{quote(ALICE)}/displayname", {"displayname": "Alice"})
    await alice.ok("PUT", f"/directory/room/{quote('#here:' + HUB)}", {"room_id": ROOM})
    profile, directory = f"{STABLE}/v1/query/profile?user_id=", f"{STABLE}/v1/query/directory?room_alias="
    assert await world.arena.ask("GET", profile + quote(ALICE)) == (200, {"displayname": "Alice"})
    assert await world.arena.ask("GET", profile + quote(ALICE) + "&field=avatar_url") == (200, {})
    status, found = await world.arena.ask("GET", directory + quote(f"#here:{HUB}"))
    assert (status, found["room_id"]) == (200, ROOM) and HUB in found["servers"]
    for path, status in [
        (profile + quote(MALLORY), 404), (profile + quote(f"@nobody:{HUB}"), 404), (profile, 404),
        (directory + quote(f"#gone:{HUB}"), 404), (directory + quote(f"#here:{EVIL}"), 404), (directory + "x", 400),
    ]:  # fmt: skip
        assert (await world.arena.ask("GET", path))[0] == status, path


async def claim(world: EduWorld, *devices: str, origin: str = EVIL) -> dict[str, Any]:
    wanted = {"one_time_keys": {ALICE: dict.fromkeys(devices, "signed_curve25519")}}
    status, answer = await world.arena.ask("POST", f"{STABLE}/v1/user/keys/claim", wanted, origin=origin)
    assert status == 200, answer
    found: dict[str, Any] = answer["one_time_keys"].get(ALICE, {})
    return found


async def test_r10_no_one_time_key_is_given_twice(world: EduWorld) -> None:
    """The last-resort key comes when there is no other; what does not exist is left out."""
    alice = await world.device("alice")
    await alice.ok("POST", "/keys/upload", one_time_keys(10))
    answers = await asyncio.gather(*(claim(world, "D", "UNKNOWN", "\0") for _ in range(14)))
    assert all(list(answer) == ["D"] for answer in answers)
    given = [next(iter(answer["D"])) for answer in answers]
    assert sorted(given) == [f"signed_curve25519:{n:03}" for n in range(10)] + ["signed_curve25519:last"] * 4
    answer = await alice.sync()
    assert answer["device_one_time_keys_count"] == {"signed_curve25519": 0}
    assert answer["device_unused_fallback_key_types"] == []


@pytest.mark.parametrize("config", [{"limits": {"federation_claims": {"per_second": 0.001, "burst": 3}}}])
async def test_r10_a_server_cannot_drain_a_device(world: EduWorld) -> None:
    """Over its rate it gets the last-resort key, and other servers get the others."""
    alice = await world.device("alice")
    await alice.ok("POST", "/keys/upload", one_time_keys(10))
    given = [next(iter((await claim(world, "D"))["D"])) for _ in range(8)]
    assert given[3:] == ["signed_curve25519:last"] * 5 and len(set(given[:3])) == 3
    assert await claim(world, "D", origin=PARTICIPANT) == {"D": {"signed_curve25519:003": {"key": "k3"}}}


async def test_r10_a_claim_of_too_many_is_refused(world: EduWorld) -> None:
    devices = {f"D{n}": "signed_curve25519" for n in range(600)}
    wanted = {"one_time_keys": {ALICE: devices, f"@carol:{HUB}": devices}}
    assert (await world.arena.ask("POST", f"{STABLE}/v1/user/keys/claim", wanted))[0] == 400
    for junk in ({}, {"one_time_keys": []}, {"one_time_keys": {f"@u{n}:{HUB}": {} for n in range(1001)}}):
        assert (await world.arena.ask("POST", f"{STABLE}/v1/user/keys/claim", junk))[0] == 400


CLAIMER = """
import asyncio, sys
from lmserver.storage import e2e_keys
from lmserver.storage.database import Database

async def main():
    db = await Database.connect(sys.argv[1], max_size=8)
    sys.stdout.write("ready\\n"); sys.stdout.flush()
    sys.stdin.readline()
    async def one():
        claim = e2e_keys.Claim(sys.argv[2], "D", "signed_curve25519")
        return await db.run(lambda c: e2e_keys.claim(c, [claim]))
    for found in await asyncio.gather(*(one() for _ in range(60))):
        print(next((key_id for key_id, _ in found.values()), None))
    await db.close()

asyncio.run(main())
"""


async def test_r10_two_processes_never_give_the_same_key(world: EduWorld, database_url: str) -> None:
    alice = await world.device("alice")
    body = one_time_keys(100)
    del body["fallback_keys"]
    await alice.ok("POST", "/keys/upload", body)
    both = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLAIMER, database_url, ALICE,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        ) for _ in range(2)
    ]  # fmt: skip
    for process in both:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in both))
    given = [line for out, _ in outputs for line in out.decode().split() if line != "None"]
    assert len(given) == len(set(given)) == 100
    assert all(len(out.split()) == 60 for out, _ in outputs)


async def test_r10_control_keys_read_first_and_deleted_after_are_given_twice(
    world: EduWorld, database_url: str
) -> None:
    alice = await world.device("alice")
    await alice.ok("POST", "/keys/upload", one_time_keys(2))
    both = asyncio.Barrier(2)

    async def wrong() -> str:
        pool = await Database.connect(database_url, max_size=1)
        key_id: str = await pool.fetchval(
            "SELECT key_id FROM one_time_keys WHERE user_id = $1 ORDER BY seq", ALICE
        )
        await both.wait()
        await pool.execute("DELETE FROM one_time_keys WHERE user_id = $1 AND key_id = $2", ALICE, key_id)
        await pool.close()
        return key_id

    assert len(set(await asyncio.gather(wrong(), wrong()))) == 1
    assert await e2e_keys.one_time_key_counts(world.db, ALICE, "D") == {"signed_curve25519": 1}


# -- asked of others ------------------------------------------------------------------------------


def answers(world: EduWorld, peer: str, name: str, body: Any, *, when: asyncio.Event | None = None) -> None:
    async def answer(request: Received) -> web.StreamResponse:
        if when is not None:
            await when.wait()
        return web.json_response(body)

    world.arena.peers[peer].answers[name] = answer


def device_of(user_id: str, device_id: str = "X", **more: Any) -> dict[str, Any]:
    return {
        "user_id": user_id,
        "device_id": device_id,
        "algorithms": [],
        "keys": {},
        "signatures": {},
        **more,
    }


async def test_clients_get_keys_of_remote_users_from_their_servers(world: EduWorld) -> None:
    alice = await world.device("alice")
    master = {"user_id": BOB, "usage": ["master"], "keys": {}}
    answers(
        world,
        PARTICIPANT,
        "query",
        {"device_keys": {BOB: {"X": device_of(BOB)}}, "master_keys": {BOB: master}},
    )
    found = await alice.ok("POST", "/keys/query", {"device_keys": {BOB: [], ALICE: []}})
    assert found["device_keys"] == {BOB: {"X": device_of(BOB)}, ALICE: {}}
    assert found["master_keys"] == {BOB: master} and found["failures"] == {}
    key = {"signed_curve25519:1": {"key": "k"}}
    answers(world, PARTICIPANT, "claim", {"one_time_keys": {BOB: {"X": key}}})
    wanted = {"one_time_keys": {BOB: {"X": "signed_curve25519"}}}
    found = await alice.ok("POST", "/keys/claim", wanted)
    assert found == {"one_time_keys": {BOB: {"X": key}}, "failures": {}}
    asked = world.arena.peers[PARTICIPANT].requests("claim") or world.arena.peers[PARTICIPANT].received
    assert asked[-1].json == wanted


async def test_b23_a_server_speaks_of_its_own_users_and_devices_only(world: EduWorld) -> None:
    alice = await world.device("alice")
    keys = await alice.upload_keys()
    answers(world, EVIL, "query", {
        "device_keys": {
            ALICE: {"D": device_of(ALICE, "D")}, BOB: {"X": device_of(BOB)}, "x": 5,
            MALLORY: {"X": device_of(BOB), "Y": device_of(MALLORY, "X"), "Z": 5, "OK": device_of(MALLORY, "OK")},
        },
        "master_keys": {ALICE: {"user_id": ALICE}, BOB: {}}, "user_signing_keys": {MALLORY: {}},
        "failures": {HUB: {}}, "self_signing_keys": [],
    })  # fmt: skip
    found = await alice.ok("POST", "/keys/query", {"device_keys": {MALLORY: [], ALICE: []}})
    assert found["device_keys"] == {
        ALICE: {"D": {**keys, "unsigned": {}}}, MALLORY: {"OK": device_of(MALLORY, "OK")},
    }  # fmt: skip
    assert found["master_keys"] == found["user_signing_keys"] == found["failures"] == {}
    key = {"signed_curve25519:1": {"key": "k"}}
    answers(world, EVIL, "claim", {"one_time_keys": {MALLORY: {"X": key, "Y": key}, BOB: {"X": key}}})
    wanted = {"one_time_keys": {MALLORY: {"X": "signed_curve25519"}}}
    assert (await alice.ok("POST", "/keys/claim", wanted))["one_time_keys"] == {MALLORY: {"X": key}}


@pytest.mark.parametrize(
    "body", [[], {"device_keys": 5}, {"device_keys": {MALLORY: []}}, {}, {"device_keys": None}]
)
async def test_junk_for_an_answer_is_no_keys(world: EduWorld, body: Any) -> None:
    alice = await world.device("alice")
    answers(world, EVIL, "query", body)
    found = await alice.ok("POST", "/keys/query", {"device_keys": {MALLORY: []}})
    assert found["device_keys"] == {}


async def test_a_server_that_does_not_answer_in_time_is_a_failure_and_delays_nobody_else(
    world: EduWorld,
) -> None:
    alice = await world.device("alice")
    released = asyncio.Event()
    answers(world, EVIL, "user", {}, when=released)
    answers(world, PARTICIPANT, "query", {"device_keys": {BOB: {"X": device_of(BOB)}}})
    wanted = {"device_keys": {BOB: [], MALLORY: [], "@a:nowhere.test": []}, "timeout": 3000}
    found = await alice.ok("POST", "/keys/query", wanted)
    assert found["failures"] == {EVIL: {}, "nowhere.test": {}}
    assert found["device_keys"] == {BOB: {"X": device_of(BOB)}}
    claims = {"one_time_keys": {MALLORY: {"X": "a"}}, "timeout": 500}
    found = await alice.ok("POST", "/keys/claim", claims)
    assert found == {"one_time_keys": {}, "failures": {EVIL: {}}}
    for timeout in (-1, "x", True, 1.5):
        assert (await alice.call("POST", "/keys/query", {**wanted, "timeout": timeout}))[0] == 400
    released.set()
