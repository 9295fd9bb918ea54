"""After a rotation: what waits is signed again, and the others hear of a leaked key."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lmserver import own_keys
from lmserver.federation_client import key_news
from lmserver.federation_client.client import Response
from lmserver.federation_client.errors import Unreachable
from lmserver.federation_client.key_keeper import KeyKeeper
from lmserver.federation_client.resigning import sign_waiting
from lmserver.federation_client.sender import Sender
from lmserver.protocol import canonical_json
from lmserver.protocol.errors import SignatureError
from lmserver.protocol.events import parse_lpdu
from lmserver.protocol.room_versions import LM_02
from lmserver.protocol.signatures import SigningKey, check_event_signatures
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.storage import outbound
from lmserver.storage.database import Database
from tests.kit.engines import EngineKit, adopt_join, engine_kit
from tests.kit.rooms import BOB, EVIL, HUB, MALLORY, PARTICIPANT, RoomBuilder, member, message, now, opening
from tests.kit.waiting import HANGS

NEW = SigningKey.from_seed(PARTICIPANT, "ed25519:new", bytes(range(32)))


class AwayHub:
    """Answers nothing, until it is back; remembers what it was sent."""

    def __init__(self) -> None:
        self.away = True
        self.got: dict[str, list[Any]] = {}

    async def request(self, method: str, destination: str, path: str, **options: Any) -> Response:
        if self.away:
            raise Unreachable("away")
        self.got[path.rpartition("/")[2]] = canonical_json.parse_object(options["content"])["pdus"]
        return Response(200, {"failed_pdus": {}})


async def participant(db: Database) -> EngineKit:
    room = RoomBuilder()
    room.add(member("join", sender=BOB))
    kit = engine_kit(db, PARTICIPANT, answer_seconds=0.05)
    await adopt_join(kit, room.pdus, HUB)
    return kit


async def say(kit: EngineKit, text: str) -> None:
    with pytest.raises(HubSilent):
        await kit.engine.send([message(text, sender=BOB)])


def check(pdu: Any, key: SigningKey) -> str:
    lpdu = parse_lpdu(pdu, LM_02)
    check_event_signatures(lpdu, {PARTICIPANT: {key.key_id: key.verify_key}})
    return lpdu.event_id


async def test_k5_what_waits_for_the_hub_is_signed_with_the_new_key(db: Database) -> None:
    """One event is in a transaction that is being repeated, others wait behind it."""
    kit, hub = await participant(db), AwayHub()
    await say(kit, "in a transaction")
    sender = Sender(db, hub, lambda *_: asyncio.sleep(0), now, poll_seconds=0.05, linger_seconds=0.01)
    await sender.start()
    async with asyncio.timeout(HANGS):
        while await outbound.transaction(db, HUB) is None:
            await asyncio.sleep(0.01)
    await sender.stop()
    for n in range(3):
        await say(kit, f"waiting {n}")
    before = await outbound.transaction(db, HUB)
    assert before is not None
    queued = [lpdu.lpdu_id for lpdu in (await outbound.due(db, HUB, 2**62, 100, 0)).lpdus]

    assert await sign_waiting(db, NEW, [kit.key.key_id]) == 4
    assert await sign_waiting(db, NEW, [kit.key.key_id]) == 0
    after = await outbound.transaction(db, HUB)
    assert after is not None
    assert (after.txn_id, after.contents) == (before.txn_id, before.contents)
    [old], [new] = (canonical_json.parse_object(txn.body)["pdus"] for txn in (before, after))
    assert check(old, kit.key) == check(new, NEW) == queued[0]
    with pytest.raises(SignatureError):
        check(new, kit.key)
    waiting = (await outbound.due(db, HUB, 2**62, 100, 0)).lpdus
    assert [check(canonical_json.parse_object(lpdu.lpdu), NEW) for lpdu in waiting] == queued
    await kit.engine.close()


async def test_events_for_another_server_are_left_as_they_are(db: Database) -> None:
    """A hub's own signature over an event is part of the room."""
    kit = engine_kit(db, HUB)
    room = RoomBuilder()
    await kit.engine.create(LM_02, opening())
    txn = outbound.OutboundTransaction("t", canonical_json.encode({"pdus": [room.pdus[0].fields]}), b"{}")
    await db.execute("INSERT INTO destinations (destination) VALUES ($1)", EVIL)
    assert await outbound.store_transaction(db, EVIL, 0, txn, 1)
    new = SigningKey.from_seed(HUB, "ed25519:new", bytes(range(32)))
    await sign_waiting(db, new, [kit.key.key_id])
    stored = await outbound.transaction(db, EVIL)
    assert stored == txn
    await kit.engine.close()


class Servers:
    """Each server takes a number of 401s before it takes our key; a name that is missing is away."""

    def __init__(self, **refusals: int) -> None:
        self.refusals = {name.replace("_", "."): count for name, count in refusals.items()}
        self.asked: list[str] = []

    async def request(self, method: str, destination: str, path: str, *, timeout: float) -> Response:
        self.asked.append(destination)
        if destination not in self.refusals:
            raise Unreachable("away")
        self.refusals[destination] -= 1
        return Response(401 if self.refusals[destination] >= 0 else 404, None)


async def test_a_server_that_has_just_asked_for_our_keys_is_told_again() -> None:
    servers = Servers(first_test=0, second_test=1, never_test=100)
    missing = await key_news.tell(
        servers, ["first.test", "second.test", "never.test", "away.test"], pause=0.0
    )
    assert missing == ["never.test", "away.test"]
    assert servers.asked.count("first.test") == 1
    assert servers.asked.count("second.test") == 2
    assert servers.asked.count("away.test") == key_news.ROUNDS


@pytest.mark.parametrize(("leaked", "hours", "told"), [(True, 0, True), (True, 13, False), (False, 0, False)])
async def test_only_a_key_that_leaked_lately_is_news(
    db: Database, tmp_path: Path, leaked: bool, hours: int, told: bool
) -> None:
    room = RoomBuilder()
    for user in (BOB, MALLORY):
        room.add(member("join", sender=user))
    kit = engine_kit(db, PARTICIPANT)
    await adopt_join(kit, [p for p in room.pdus if p.sender != BOB] + [room.pdus[-2]], HUB)
    path = tmp_path / "signing.key"
    own_keys.generate(path)
    own_keys.rotate(path, now() - hours * 3_600_000, leaked=leaked)
    servers = Servers(hub_test=0, evil_test=0)
    keeper = KeyKeeper(own_keys.load(path, PARTICIPANT), db, servers, now)
    watching = asyncio.create_task(keeper.watch())
    await keeper.begin()
    async with asyncio.timeout(HANGS):
        while told and len(servers.asked) < 2:
            await asyncio.sleep(0.01)
    watching.cancel()
    assert sorted(servers.asked) == ([EVIL, HUB] if told else [])
    await kit.engine.close()
