"""D15: a hub that is restored from an older backup notices, extends nothing until the other servers have
given back what it lost, and then goes on with the list as it was.

Here the servers are in this process and a copy of the database is restored; test_restored_files.py puts back
the files of an embedded cluster under real processes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lmserver.protocol import hub
from lmserver.rooms.outcomes import HELD
from lmserver.storage import evidence, holds, room_log
from lmserver.storage.restore_guard import FILE, Mark, judge
from tests.drills.long import rounds
from tests.drills.restorable import World
from tests.evilpeer.network import Network
from tests.evilpeer.peer import EvilPeer, Received
from tests.kit.federation import Node
from tests.kit.postgres import Cluster
from tests.kit.rooms import (
    ALICE,
    BOB,
    EVIL,
    HUB,
    MALLORY,
    PARTICIPANT,
    ROOM,
    draft,
    key_of,
    lpdu,
    member,
    message,
)
from tests.kit.waiting import eventually


@pytest.fixture
async def world(cluster: Cluster, tmp_path: Path) -> AsyncIterator[World]:
    async with World(cluster, tmp_path) as made:
        yield made


async def tail(world: World) -> list[str]:
    """What happens after the backup: messages of all servers, a redaction, and MALLORY's server joins
    only now. Ends where everybody has it."""
    hub_, one, two = world.nodes
    sent = [await hub_.send(message("of the hub")), await one.send(message("of another", sender=BOB))]
    await two.join("mallory", ROOM, HUB)
    sent.append(await hub_.send(draft("m.room.name", {"name": "new"}, state_key="")))
    sent.append(await two.send(message("of the newest", sender=MALLORY)))
    sent.append(await hub_.send(draft("m.room.redaction", {"redacts": sent[0]})))
    sent += [await hub_.send(message(str(number))) for number in range(rounds(5, 250))]
    await world.everybody_has(sent[-1])
    return sent


async def test_d15_a_restored_hub_gets_its_tail_back_and_goes_on(world: World) -> None:
    hub_, one, two = world.nodes
    await one.join("bob", ROOM, HUB)
    backup = await world.back_up(world.hub)
    await tail(world)
    chain = await hub_.chain(ROOM)
    kept = await hub_.bytes_of(ROOM)
    await world.restore(world.hub, backup)
    assert hub_.restored is not None
    assert await hub_.try_to_send(message("at a stale head")) == HELD
    await hub_.has(ROOM, chain[-1])
    await world.released()
    assert await hub_.chain(ROOM) == chain
    # To the byte, but for the event that was redacted: others give only its redacted copy.
    assert [i for i, (a, b) in enumerate(zip(kept, await hub_.bytes_of(ROOM), strict=True)) if a != b] == [
        chain.index(e) for e in [chain[5]]
    ]
    await world.everybody_has(await hub_.send(message("goes on")))
    await world.everybody_has(await two.send(message("and on", sender=MALLORY)))
    assert await hub_.chain(ROOM) == chain + (await hub_.chain(ROOM))[-2:]
    for node in world.nodes:
        assert await node.problems(ROOM) == []
        assert await evidence.of_room(node.db, ROOM) == []


async def test_d15_an_invite_that_was_the_last_event_comes_back_too(world: World) -> None:
    hub_, one, _ = world.nodes
    await one.join("bob", ROOM, HUB)
    backup = await world.back_up(world.hub)
    await hub_.send(message("lost"))
    invite = await hub_.send(member("invite", target=f"@carol:{PARTICIPANT}"))
    await one.has(ROOM, invite)
    chain = await hub_.chain(ROOM)
    await world.restore(world.hub, backup)
    await hub_.has(ROOM, invite)
    await world.released()
    assert await hub_.chain(ROOM) == chain
    assert await hub_.problems(ROOM) == []


async def test_d15_control_a_hub_that_does_not_notice_forks_the_room(world: World) -> None:
    """The backup is made to look current and the others are away when it starts: they refuse what it
    appends. The refusal is then looked into, and the room is held as forked."""
    hub_, one, two = world.nodes
    await one.join("bob", ROOM, HUB)
    backup = await world.back_up(world.hub)
    sent = await tail(world)
    await one.stop()
    await two.stop()
    await hub_.stop()
    (hub_.folder / FILE).unlink()
    await world.restore(world.hub, backup)
    assert hub_.restored is None
    fork = await hub_.send(message("at a stale head"))
    await one.start()

    async def refused() -> bool:
        return (fork, "fork") in [(e.event_id, e.kind) for e in await evidence.of_room(one.db, ROOM)]

    await eventually(refused)
    assert fork not in await one.chain(ROOM)
    assert sent[-1] not in await hub_.chain(ROOM)

    async def noticed() -> bool:
        return await holds.held(hub_.db) == [holds.HeldRoom(ROOM, holds.FORKED)]

    await eventually(noticed)
    assert await hub_.try_to_send(message("more of it")) == HELD


async def test_d15_a_copy_of_the_whole_machine_is_found_out_by_asking(world: World) -> None:
    """Nothing local tells, because the data directory went back too; the participants do."""
    hub_, one, _ = world.nodes
    await one.join("bob", ROOM, HUB)
    backup = await world.back_up(world.hub)
    await tail(world)
    chain = await hub_.chain(ROOM)
    await hub_.stop()
    (hub_.folder / FILE).unlink()
    await world.restore(world.hub, backup)
    assert hub_.restored is None
    await hub_.has(ROOM, chain[-1])
    await world.released()
    assert await hub_.chain(ROOM) == chain


@pytest.mark.parametrize("known", ["destinations", "key_servers", ""], ids=["sent to", "keys", "control"])
async def test_d15_a_room_that_others_joined_only_after_the_backup_waits_for_those_we_know(
    world: World, known: str
) -> None:
    """Nobody else was in the room, but a server that we know from elsewhere says it is. The control
    does not know it, and forks the room."""
    hub_, one, _ = world.nodes
    if known == "destinations":
        await hub_.db.execute("INSERT INTO destinations (destination) VALUES ($1)", PARTICIPANT)
    if known == "key_servers":
        await hub_.db.execute("INSERT INTO key_servers VALUES ($1, true, 0)", PARTICIPANT)
    backup = await world.back_up(hub_)
    await one.join("bob", ROOM, HUB)
    last = await hub_.send(message("lost"))
    await one.has(ROOM, last)
    chain = await hub_.chain(ROOM)
    await world.restore(hub_, backup)
    if known:
        assert await hub_.try_to_send(message("at a stale head")) == HELD
    await world.released()
    await hub_.send(message("goes on"))
    assert (await hub_.chain(ROOM))[: len(chain)] == chain if known else last not in await hub_.chain(ROOM)
    assert await hub_.problems(ROOM) == []


async def test_d15_without_an_answer_a_room_is_read_only_until_the_operator_decides(world: World) -> None:
    hub_, one, two = world.nodes
    await one.join("bob", ROOM, HUB)
    backup = await world.back_up(world.hub)
    await tail(world)
    await one.stop()
    await two.stop()
    await world.restore(world.hub, backup)
    assert await hub_.server.recovery.recover_held() == 1
    assert await hub_.try_to_send(message("not yet")) == HELD
    assert await hub_.chain(ROOM) != []
    assert await holds.release(hub_.db, ROOM, decided=True)
    await hub_.send(message("as it is"))
    # The decision stands, whatever the others have; only another restore begins anew.
    assert not await holds.hold(hub_.db, ROOM, holds.FORKED)


async def test_d15_a_failover_to_an_older_database_while_we_run_is_noticed(world: World) -> None:
    """The counter goes back under a running server, as when a lagging replica is promoted."""
    hub_, one, _ = world.nodes
    await one.join("bob", ROOM, HUB)
    await one.stop()
    await hub_.db.execute("UPDATE restore_guard SET beat = 0")
    hub_.server.guard.note_change()

    async def held() -> bool:
        return await hub_.try_to_send(message("into a held room?")) == HELD

    await eventually(held)
    await one.start()
    await world.released()
    await hub_.send(message("goes on"))


async def test_d15_memory_that_is_ahead_of_the_database_holds_the_room(world: World) -> None:
    hub_ = world.hub
    for number in range(3):
        await hub_.send(message(str(number)))
    [head, before] = (await room_log.events_between(hub_.db, ROOM, 0, 99, 2, newest_first=True))[:2]
    await hub_.db.execute("DELETE FROM events WHERE event_id = $1", head.event_id)
    await hub_.db.execute(
        "UPDATE rooms SET head_position = $2, head_event_id = $3 WHERE room_id = $1",
        ROOM, before.position, before.event_id,
    )  # fmt: skip
    assert await hub_.try_to_send(message("at a stale head")) == HELD
    assert [room.room_id for room in await holds.held(hub_.db)] == [ROOM]


# -- hostile participants ---------------------------------------------------------------------------


class Liar(EvilPeer):
    """Claims `head` for ROOM and shows `shown` as what follows."""

    def __init__(self, network: Network) -> None:
        super().__init__(network, EVIL)
        self.head = "$" + "x" * 43
        self.shown: list[object] = []
        self.answers["heads"] = self._heads
        self.answers["tail"] = self._tail

    async def _heads(self, request: Received) -> web.StreamResponse:
        return web.json_response({"heads": {ROOM: self.head, "\0": "\0", ROOM + "2": self.head}})

    async def _tail(self, request: Received) -> web.StreamResponse:
        at_the_end = self.head[1:] in request.path
        return web.json_response({"pdus": [] if at_the_end else self.shown})


@pytest.fixture
async def liar(world: World) -> AsyncIterator[Liar]:
    """In the room, in place of the honest server of that name."""
    await world.nodes.pop().stop()
    peer = Liar(world.network)
    await peer.start()
    await world.hub.server.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=MALLORY))])
    yield peer
    await peer.stop()


@pytest.mark.parametrize("what", ["junk", "own", "unsigned", "invite", "others", "others-now", "bent", "old"])
async def test_d15_a_participant_neither_holds_a_room_nor_injects_events(
    world: World, liar: Liar, what: str
) -> None:
    hub_ = world.hub
    view = await hub_.server.engine.view(ROOM)
    assert view is not None
    forged = hub.complete_draft(message("forged"), view, key_of(EVIL))
    mine = hub.complete_draft(message("mine", sender=MALLORY), view, key_of(EVIL))
    invite = hub.complete_draft(member("invite", target=f"@other:{EVIL}"), view, key_of(HUB))
    others = hub.complete_draft(member("invite", target="@friend:accomplice.test"), view, key_of(HUB))
    good = hub.complete_draft(message("x"), view, key_of(HUB)).fields
    shown: dict[str, list[Any]] = {
        "junk": [{"a": 1}, 7, None],
        "own": [mine.fields],
        "unsigned": [forged.fields],
        "invite": [invite.fields],
        "others": [others.fields],
        "others-now": [others.fields],
        "bent": [{**good, "content": {"msgtype": "m.text", "body": "y"}, "origin_server_ts": 1}],
        "old": (await _fields(hub_))[-1:],
    }
    if what in ("invite", "others"):  # never appended: the room has gone on
        await hub_.send(message("goes on"))
    liar.shown = list(shown[what])
    before = await hub_.chain(ROOM)
    await hub_.server.recovery.close()
    hub_.server.recovery.suspect(EVIL)
    await hub_.server.recovery._pass()
    assert liar.requests("tail")
    assert await holds.held(hub_.db) == []
    assert await hub_.chain(ROOM) == before
    await hub_.send(message("unharmed"))
    assert await hub_.problems(ROOM) == []


async def test_d15_control_an_event_the_hub_did_append_is_believed(world: World, liar: Liar) -> None:
    """The same liar, showing what the hub would have appended: the checks above can fail."""
    hub_ = world.hub
    view = await hub_.server.engine.view(ROOM)
    assert view is not None
    lost = hub.complete_draft(message("lost"), view, key_of(HUB))
    liar.shown, liar.head = [lost.fields], lost.event_id
    hub_.server.recovery.suspect(EVIL)
    await hub_.has(ROOM, lost.event_id)
    await world.released()
    assert await hub_.problems(ROOM) == []


async def _fields(node: Node) -> list[object]:
    from lmserver.protocol import canonical_json

    return [canonical_json.parse_object(pdu) for pdu in await node.bytes_of(ROOM)]


# -- the guard --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "found", "idle", "restored"),
    [
        (None, Mark(0), 0.0, False),
        (None, Mark(7), 5.0, False),
        (None, Mark(7), 3600.0, True),
        (Mark(7), Mark(7), 3600.0, False),
        (Mark(7), Mark(9), 0.0, False),
        (Mark(7), Mark(6), 0.0, True),
        (Mark(7), Mark(0), 0.0, True),
        (Mark(7, "c", "1"), Mark(7, "c", "2"), 0.0, True),
        (Mark(7, "c", "1"), Mark(7, "d", "2"), 0.0, False),
        (Mark(7, "", ""), Mark(7, "d", "2"), 0.0, False),
    ],
)
def test_d15_what_counts_as_restored(known: Mark | None, found: Mark, idle: float, restored: bool) -> None:
    assert (judge(known, found, idle) is not None) is restored


async def test_d15_one_time_keys_of_a_backup_are_gone(world: World) -> None:
    hub_ = world.hub
    await hub_.db.execute(
        "INSERT INTO one_time_keys (user_id, device_id, key_id, algorithm, key)"
        " VALUES ($1, 'D', 'signed_curve25519:A', 'signed_curve25519', '{}')", ALICE,
    )  # fmt: skip
    backup = await world.back_up(world.hub)
    assert await hub_.db.fetchval("SELECT count(*) FROM one_time_keys") == 1
    await world.restore(world.hub, backup)
    assert await hub_.db.fetchval("SELECT count(*) FROM one_time_keys") == 0
