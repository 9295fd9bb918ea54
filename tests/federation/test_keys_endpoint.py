"""Our keys, and what we answer as a notary."""

from __future__ import annotations

from lmserver.protocol.signatures import check_json_signature
from lmserver.storage.database import Database
from tests.federation.world import World
from tests.kit.rooms import HUB, KEYS


async def test_own_keys_are_signed_and_say_linearized(db: Database) -> None:
    async with World(db) as world, world.http.get("/_matrix/key/v2/server") as response:
        document = await response.json()
        assert response.status == 200 and document["server_name"] == HUB and document["m.linearized"] is True
        check_json_signature(document, HUB, KEYS[HUB])


async def test_the_notary_knows_our_own_keys_and_bounds_what_it_is_asked(db: Database) -> None:
    async with World(db) as world:
        async with world.http.get(f"/_matrix/key/v2/query/{HUB}") as response:
            assert (await response.json())["server_keys"][0]["server_name"] == HUB
        async with world.http.get("/_matrix/key/v2/query/127.0.0.1") as response:
            assert response.status == 400
        body = {"server_keys": {HUB: {}, "unknown.test": {"ed25519:a": {"minimum_valid_until_ts": 5}}}}
        async with world.http.post("/_matrix/key/v2/query", json=body) as response:
            assert len((await response.json())["server_keys"]) == 1
        many = {"server_keys": {f"s{n}.test": {} for n in range(101)}}
        async with world.http.post("/_matrix/key/v2/query", json=many) as response:
            assert response.status == 400
