"""Cross-signing keys and signatures: what is taken, who sees what, and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lmserver.storage.database import Database
from tests.evilpeer.peer import STABLE
from tests.federation.test_device_endpoints import answers
from tests.kit.cross_signing import Identity, SigningDevice, only, public, signing_key
from tests.kit.edu_world import PASSWORD, Device, EduWorld
from tests.kit.rooms import ALICE, EVIL, HUB, PARTICIPANT
from tests.kit.waiting import eventually

UPLOAD, SIGN = "/keys/device_signing/upload", "/keys/signatures/upload"
CAROL = f"@carol:{HUB}"
SIGNING = "m.signing_key_update"
LIST = "m.device_list_update"


@pytest.fixture
async def world(db: Database, tmp_path: Path) -> AsyncIterator[EduWorld]:
    async with EduWorld(db, tmp_path) as made:
        yield made


class Signer:
    """A logged-in device with keys of its own and, once it has published them, cross-signing keys."""

    def __init__(self, client: Device) -> None:
        self.client, self.user_id = client, client.user_id
        self.device = SigningDevice(client.user_id, client.device_id)
        self.identity = Identity(client.user_id, self.device)

    async def publish(self) -> Signer:
        await self.client.upload_keys(self.device.keys)
        await self.client.ok("POST", UPLOAD, self.identity.body)
        return self

    async def sign(self, user_id: str, target: str, obj: Any) -> Any:
        answer = await self.client.ok("POST", SIGN, {user_id: {target: obj}})
        return answer["failures"].get(user_id, {}).get(target, {}).get("errcode")

    async def sees(self, *user_ids: str) -> Any:
        return await self.client.ok("POST", "/keys/query", {"device_keys": {u: [] for u in user_ids}})

    async def confirmed(self, body: Any) -> tuple[int, Any]:
        """The upload again, with the password."""
        status, answer = await self.client.call("POST", UPLOAD, body)
        assert (status, answer["flows"]) == (401, [{"stages": ["m.login.password"]}])
        auth = {
            "type": "m.login.password", "session": answer["session"], "password": PASSWORD,
            "identifier": {"type": "m.id.user", "user": self.user_id},
        }  # fmt: skip
        return await self.client.call("POST", UPLOAD, {**body, "auth": auth})


async def signer(world: EduWorld, name: str = "alice", device: str = "D") -> Signer:
    return await Signer(await world.device(name, device)).publish()


# -- keys -----------------------------------------------------------------------------------------


async def test_the_first_upload_needs_no_password_and_the_same_again_none(world: EduWorld) -> None:
    alice = await signer(world)
    await alice.client.ok("POST", UPLOAD, alice.identity.body)
    await alice.client.ok("POST", UPLOAD, {"master_key": alice.identity.master_key})
    await alice.client.ok("POST", UPLOAD, {})
    seen = await alice.sees(ALICE)
    assert seen["master_keys"] == {ALICE: alice.identity.master_key}
    assert seen["self_signing_keys"] == {ALICE: alice.identity.self_signing_key}
    assert seen["user_signing_keys"] == {ALICE: alice.identity.user_signing_key}


async def test_replacing_keys_needs_the_password_and_ends_what_the_old_ones_signed(world: EduWorld) -> None:
    alice = await signer(world)
    signed = only(alice.device.keys, alice.identity.self_signing)
    assert await alice.sign(ALICE, "D", signed) is None
    new = Identity(ALICE, alice.device)
    assert (await alice.client.call("POST", UPLOAD, new.body))[0] == 401
    assert (await alice.sees(ALICE))["master_keys"] == {ALICE: alice.identity.master_key}
    assert await alice.confirmed(new.body) == (200, {})
    seen = await alice.sees(ALICE)
    assert seen["master_keys"] == {ALICE: new.master_key}
    assert seen["device_keys"][ALICE]["D"]["signatures"] == alice.device.keys["signatures"]


async def test_a_new_master_key_alone_takes_the_keys_it_did_not_sign_with_it(world: EduWorld) -> None:
    alice = await signer(world)
    new = Identity(ALICE)
    assert await alice.confirmed({"master_key": new.master_key}) == (200, {})
    seen = await alice.sees(ALICE)
    assert (seen["self_signing_keys"], seen["user_signing_keys"]) == ({}, {})
    again = Identity(ALICE, alice.device)
    again.self_signing = new.self_signing
    assert await alice.confirmed({"self_signing_key": new.self_signing_key}) == (200, {})
    assert await alice.confirmed(again.body) == (200, {})
    seen = await alice.sees(ALICE)
    assert seen["self_signing_keys"] == {ALICE: again.self_signing_key}


async def test_of_two_first_uploads_one_has_to_be_confirmed(world: EduWorld) -> None:
    client = await world.device("alice")
    found = await asyncio.gather(*(client.call("POST", UPLOAD, Identity(ALICE).body) for _ in range(4)))
    assert sorted(status for status, _ in found) == [200, 401, 401, 401]


async def test_keys_that_cannot_be_taken(world: EduWorld) -> None:
    client = await world.device("alice")
    good = Identity(ALICE)
    stranger = Identity(CAROL)
    two = {**good.master_key, "keys": {**good.master_key["keys"], **stranger.master_key["keys"]}}
    for body, status, errcode in [
        ({"master_key": 5}, 400, "M_INVALID_PARAM"),
        ({"master_key": stranger.master_key}, 400, "M_INVALID_PARAM"),
        ({"master_key": {**good.master_key, "usage": ["self_signing"]}}, 400, "M_INVALID_PARAM"),
        ({"master_key": {**good.master_key, "keys": {"ed25519:x": "x"}}}, 400, "M_INVALID_PARAM"),
        ({"master_key": {**good.master_key, "keys": {}}}, 400, "M_INVALID_PARAM"),
        ({"master_key": two}, 400, "M_INVALID_PARAM"),
        ({"master_key": {**good.master_key, "x": 1.5}}, 400, "M_BAD_JSON"),
        ({"master_key": {**good.master_key, "x": "y" * 70_000}}, 413, "M_TOO_LARGE"),
        ({"self_signing_key": good.self_signing_key}, 400, "M_MISSING_PARAM"),
        ({**good.body, "self_signing_key": Identity(ALICE).self_signing_key}, 400, "M_INVALID_SIGNATURE"),
        ({**good.body, "user_signing_key": {**good.user_signing_key, "signatures": 5}}, 400, "M_INVALID_SIGNATURE"),
        ([], 400, "M_BAD_JSON"),
    ]:  # fmt: skip
        got, answer = await client.call("POST", UPLOAD, body)
        assert (got, answer["errcode"]) == (status, errcode), body
    while "/" in public(good.master):
        good = Identity(ALICE)
    named = await world.device("alice", public(good.master))
    await named.upload_keys()
    got, answer = await client.call("POST", UPLOAD, good.body)
    assert (got, answer["errcode"]) == (403, "M_FORBIDDEN")
    assert await world.db.fetchval("SELECT count(*) FROM cross_signing_keys") == 0


# -- signatures -----------------------------------------------------------------------------------


async def test_own_devices_and_the_own_master_key_are_signed(world: EduWorld) -> None:
    alice = await signer(world)
    second = Signer(await world.device("alice", "E"))
    await second.client.upload_keys(second.device.keys)
    ours = alice.identity
    assert await alice.sign(ALICE, "E", only(second.device.keys, ours.self_signing)) is None
    assert await second.sign(ALICE, public(ours.master), only(ours.master_key, second.device.key)) is None
    carol = await signer(world, "carol")
    for reader in (alice, carol):
        seen = await reader.sees(ALICE)
        signatures = seen["device_keys"][ALICE]["E"]["signatures"][ALICE]
        assert set(signatures) == {"ed25519:E", ours.self_signing.key_id}
        assert set(seen["master_keys"][ALICE]["signatures"][ALICE]) == {"ed25519:D", "ed25519:E"}
    await second.client.upload_keys(SigningDevice(ALICE, "E").keys)
    seen = await alice.sees(ALICE)
    assert set(seen["device_keys"][ALICE]["E"]["signatures"][ALICE]) == {"ed25519:E"}


async def test_what_a_user_signed_of_another_only_that_user_sees(world: EduWorld) -> None:
    alice, carol = await signer(world), await signer(world, "carol")
    dave = await signer(world, "dave")
    key, target = alice.identity.user_signing, public(carol.identity.master)
    assert await alice.sign(CAROL, target, only(carol.identity.master_key, key)) is None
    for reader, seen_by in ((alice, {CAROL, ALICE}), (carol, {CAROL}), (dave, {CAROL})):
        seen = await reader.sees(CAROL)
        assert set(seen["master_keys"][CAROL]["signatures"]) == seen_by
        assert (CAROL in seen["user_signing_keys"]) is (reader is carol)
    body = {"device_keys": {CAROL: []}}
    _, answer = await world.arena.ask("POST", f"{STABLE}/v1/user/keys/query", body)
    assert set(answer["master_keys"][CAROL]["signatures"]) == {CAROL} and "user_signing_keys" not in answer


async def test_a_user_elsewhere_is_signed_as_their_server_tells_their_key(world: EduWorld) -> None:
    alice = await signer(world)
    bob = f"@bob:{PARTICIPANT}"
    theirs = Identity(bob)
    answers(world, PARTICIPANT, "query", {"device_keys": {bob: {}}, "master_keys": {bob: theirs.master_key}})
    key, target = alice.identity.user_signing, public(theirs.master)
    other = await world.device("alice", "E")
    await other.sync()
    assert await alice.sign(bob, target, only(theirs.master_key, key)) is None
    assert (await other.sync())["device_lists"]["changed"] == [bob]
    seen = await alice.sees(bob)
    assert set(seen["master_keys"][bob]["signatures"][ALICE]) == {key.key_id}
    carol = await signer(world, "carol")
    assert "signatures" not in (await carol.sees(bob))["master_keys"][bob]
    eve = f"@eve:{EVIL}"
    assert await alice.sign(eve, target, only(theirs.master_key, key)) == "M_NOT_FOUND"


async def test_each_signature_that_is_refused_is_told(world: EduWorld) -> None:
    alice, carol = await signer(world), await signer(world, "carol")
    ours, theirs = alice.identity, carol.identity
    good = only(alice.device.keys, ours.self_signing)
    items = {
        ALICE: {
            "D": good,
            "NOPE": good,
            public(ours.master): only(ours.master_key, ours.self_signing),
        },
        CAROL: {
            public(theirs.master): only(theirs.master_key, ours.self_signing),
            "D": only(carol.device.keys, ours.user_signing),
        },
        f"@nobody:{HUB}": {"x": good},
    }
    failures = (await alice.client.ok("POST", SIGN, items))["failures"]
    found = {user: {key: f["errcode"] for key, f in of_user.items()} for user, of_user in failures.items()}
    assert found == {
        ALICE: {"NOPE": "M_NOT_FOUND", public(ours.master): "M_INVALID_SIGNATURE"},
        CAROL: {public(theirs.master): "M_INVALID_SIGNATURE", "D": "M_NOT_FOUND"},
        f"@nobody:{HUB}": {"x": "M_NOT_FOUND"},
    }
    forged = only({**alice.device.keys, "algorithms": []}, ours.self_signing)
    assert await alice.sign(ALICE, "D", forged) == "M_INVALID_SIGNATURE"
    plain = Signer(await world.device("plain"))
    await plain.client.upload_keys(plain.device.keys)
    assert await plain.sign(plain.user_id, "D", plain.device.keys) == "M_NOT_FOUND"


@pytest.mark.parametrize(
    "body", [[], {"x": {}}, {ALICE: 5}, {ALICE: {"D": 5}}, {ALICE: {"D": {"x": 1.5}}}, {ALICE: {"a\0": {}}},
             {ALICE: {f"D{n}": {} for n in range(501)}}]
)  # fmt: skip
async def test_signatures_of_no_shape(world: EduWorld, body: Any) -> None:
    client = await world.device("alice")
    status, answer = await client.call("POST", SIGN, body)
    assert (status, answer["errcode"]) == (400, "M_BAD_JSON")


# -- who is told ----------------------------------------------------------------------------------


async def test_other_servers_hear_of_keys_and_of_signatures(world: EduWorld) -> None:
    """SS API §m.signing_key_update; a signed device is a changed device. User-signing keys are private."""
    alice = await signer(world)
    ours = alice.identity
    await eventually(lambda: len(world.received(SIGNING)) == 1)
    public_keys = {"master_key": ours.master_key, "self_signing_key": ours.self_signing_key}
    assert world.received(SIGNING)[0]["content"] == {"user_id": ALICE, **public_keys}
    signed = only(alice.device.keys, ours.self_signing)
    assert await alice.sign(ALICE, "D", signed) is None
    assert await alice.sign(ALICE, "D", signed) is None
    await eventually(lambda: len(world.received(LIST)) == 2)
    content = world.received(LIST)[1]["content"]
    assert set(content["keys"]["signatures"][ALICE]) == {"ed25519:D", ours.self_signing.key_id}
    assert (content["stream_id"], content["prev_id"]) == (2, [1])
    ours.user_signing = signing_key(ALICE)
    assert (await alice.confirmed({"user_signing_key": ours.user_signing_key}))[0] == 200
    await alice.client.upload_keys(SigningDevice(ALICE, "D").keys)
    await eventually(lambda: len(world.received(LIST)) == 3)
    assert len(world.received(SIGNING)) == 1


async def test_local_clients_that_share_a_room_look_again(world: EduWorld) -> None:
    alice = Signer(await world.device("alice"))
    other = await world.device("alice", "E")
    await other.sync()
    await alice.publish()
    assert (await other.sync())["device_lists"]["changed"] == [ALICE]
    signed = only(alice.device.keys, alice.identity.self_signing)
    assert await alice.sign(ALICE, "D", signed) is None
    assert (await other.sync())["device_lists"]["changed"] == [ALICE]


@pytest.mark.parametrize("kind", ["m.signing_key_update", "org.matrix.signing_key_update"])
async def test_signing_keys_elsewhere_changed(world: EduWorld, kind: str) -> None:
    alice, bob = await world.device("alice"), f"@bob:{PARTICIPANT}"
    await alice.sync()
    await world.send({"edu_type": kind, "content": {"user_id": bob, "master_key": {}}})
    assert (await alice.sync())["device_lists"]["changed"] == [bob]
