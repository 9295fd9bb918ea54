"""A room keeps working when a server in it is gone for good: a newcomer learns its keys from a notary."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.outcomes import MembershipError
from lmserver.storage import room_log
from lmserver.storage.database import Database
from tests.evilpeer.network import Network
from tests.evilpeer.peer import EvilPeer
from tests.evilpeer.victim import Victim
from tests.kit.postgres import Cluster
from tests.kit.rooms import BOB, EVIL, HUB, MALLORY, PARTICIPANT, ROOM, lpdu, member, message, opening


@pytest.fixture
async def other_db(cluster: Cluster) -> AsyncIterator[Database]:
    async with cluster.database() as dsn:
        database = await Database.connect(dsn, max_size=5)
        yield database
        await database.close()


@pytest.mark.parametrize("notaries", [[HUB], []], ids=["notary", "control"])
async def test_k1_a_room_with_a_server_that_is_gone_can_be_joined_through_a_notary(
    db: Database, other_db: Database, tmp_path: Path, notaries: list[str]
) -> None:
    network = Network()
    hub = Victim(db, network, HUB, tmp_path)
    federation = {
        "plain_http_servers": [HUB, EVIL],
        "allowed_networks": ["127.0.0.0/8"],
        "notaries": notaries,
    }
    newcomer = Victim(other_db, network, PARTICIPANT, tmp_path, federation=federation)
    gone = EvilPeer(network, EVIL)
    await newcomer.server.accounts.register("bob", "a password of bob")
    for part in (hub, newcomer, gone):
        await part.start()
    try:
        await hub.engine.create(LM_02, opening())
        await hub.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=MALLORY))])
        status, answer = await gone.send(HUB, "t1", [lpdu(message("bye", sender=MALLORY)).fields])
        assert status == 200 and answer["failed_pdus"] == {}
        await gone.stop()
        if notaries:
            await newcomer.server.membership.join(BOB, ROOM, [HUB])
            assert await room_log.room(other_db, ROOM) is not None
            assert await newcomer.problems(ROOM) == []
        else:
            with pytest.raises(MembershipError):
                await newcomer.server.membership.join(BOB, ROOM, [HUB])
            assert await room_log.room(other_db, ROOM) is None
    finally:
        for part in (newcomer, hub):
            await part.stop()
