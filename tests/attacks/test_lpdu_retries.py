"""B6: an LPDU that comes again, in whatever way, is one event; the sender is told of it as of the first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lmserver.protocol.events import Lpdu
from lmserver.storage import outbound, room_log
from tests.evilpeer.arena import Arena
from tests.evilpeer.forging import evil, resigned
from tests.evilpeer.peer import UNSTABLE
from tests.evilpeer.victim import Victim
from tests.kit.rooms import BOB, HUB, MALLORY, PARTICIPANT, ROOM, lpdu, member, message


def said(text: str = "once") -> Lpdu:
    return lpdu(message(text, sender=BOB))


async def sends(arena: Arena, txn_id: str, *lpdus: Any) -> dict[str, str]:
    """What the answer accepts; nothing may be refused."""
    fields = [item.fields if isinstance(item, Lpdu) else item for item in lpdus]
    status, answer = await arena.send(txn_id, fields, origin=PARTICIPANT)
    assert (status, answer["failed_pdus"]) == (200, {}), answer
    accepted: dict[str, str] = answer["org.lmserver.accepted"]
    return accepted


async def copies(arena: Arena, sent: Lpdu) -> list[str]:
    rows = await arena.db.fetch("SELECT event_id FROM events WHERE lpdu_hash = $1", sent.lpdu_hash)
    return [r["event_id"] for r in rows]


async def stands_once(arena: Arena, sent: Lpdu, event_id: str) -> None:
    """One event in the list, one echo to the sender's server, and everything verifies."""
    assert await copies(arena, sent) == [event_id]
    due = await outbound.due(arena.db, PARTICIPANT, 0, 1000, 0)
    echoes = [e for e in due.events if sent.lpdu_hash is not None and sent.lpdu_hash.encode() in e.pdu]
    assert len(echoes) == 1
    assert await arena.problems() == []


async def test_b6_twice_in_one_transaction(arena: Arena) -> None:
    sent = said()
    accepted = await sends(arena, "t", sent, sent, said("other"), sent)
    assert len(accepted) == 2
    await stands_once(arena, sent, accepted[sent.event_id])


async def test_b6_in_two_transactions_one_after_the_other(arena: Arena) -> None:
    sent = said()
    first = await sends(arena, "t1", sent)
    await arena.engine.send([message("between")])
    assert await sends(arena, "t2", sent) == first
    await stands_once(arena, sent, first[sent.event_id])


async def test_b6_also_when_it_would_not_be_allowed_any_more(arena: Arena) -> None:
    """What was accepted stays accepted: the sender's server must learn of its event."""
    sent = said()
    first = await sends(arena, "t1", sent)
    await arena.engine.send([member("ban", target=BOB)])
    assert await sends(arena, "t2", sent) == first
    await stands_once(arena, sent, first[sent.event_id])


async def test_b6_in_transactions_at_the_same_time(arena: Arena) -> None:
    sent = said()
    answers = await asyncio.gather(*(sends(arena, f"t{n}", sent) for n in range(4)))
    assert all(answer == answers[0] for answer in answers)
    await stands_once(arena, sent, answers[0][sent.event_id])


async def test_b6_at_two_processes_at_the_same_time(arena: Arena, tmp_path: Path) -> None:
    """Two servers of one name on one database: the row of the room decides, not the memory."""
    other = Victim(arena.db, arena.network, HUB, tmp_path / "other")
    lpdus = [said(str(n)) for n in range(20)]
    outcomes = await asyncio.gather(
        *(engine.accept_lpdus(ROOM, [item]) for item in lpdus for engine in (arena.engine, other.engine))
    )
    for item, one, two in zip(lpdus, outcomes[::2], outcomes[1::2], strict=True):
        assert one[0].event_id == two[0].event_id, item  # type: ignore[union-attr]  # a refusal has none, and fails the test
        await stands_once(arena, item, one[0].event_id)  # type: ignore[union-attr]  # a refusal has none, and fails the test
    await other.server.close()


async def test_b6_after_a_crash_between_commit_and_answer(arena: Arena, tmp_path: Path) -> None:
    """The event was committed, the answer never written: the repeated transaction and a new one
    find the event, in a process that knows nothing."""
    sent = said()
    [outcome] = await arena.engine.accept_lpdus(ROOM, [sent])
    event_id = outcome.event_id  # type: ignore[union-attr]  # a refusal has none, and fails the test
    await arena.victim.stop()
    arena.victim = Victim(arena.db, arena.network, HUB, tmp_path / "again")
    await arena.victim.start()
    for txn_id in ("t1", "t1", "t2"):
        assert await sends(arena, txn_id, sent) == {sent.event_id: event_id}
    await stands_once(arena, sent, event_id)


async def test_b6_a_join_by_handshake_and_by_transaction_is_one(arena: Arena) -> None:
    join = lpdu(member("join", sender=f"@carol:{PARTICIPANT}"))
    for n in range(2):
        status, _ = await arena.ask("POST", f"{UNSTABLE}/send_join/j{n}", join.fields, origin=PARTICIPANT)
        assert status == 200
    accepted = await sends(arena, "t", join)
    await stands_once(arena, join, accepted[join.event_id])


async def test_b6_a_hash_that_somebody_else_claims_takes_nobodys_place(arena: Arena) -> None:
    """Mallory claims the hash of an LPDU that Bob has not sent yet: Bob's event is still his."""
    sent = said("mine")
    claimed = resigned(evil("guessed"), hashes=sent.fields["hashes"])
    status, answer = await arena.send("m", [claimed])
    assert status == 200
    accepted = await sends(arena, "t", sent)
    assert accepted[sent.event_id] not in answer["org.lmserver.accepted"].values()
    stored = await room_log.event(arena.db, accepted[sent.event_id], ROOM)
    assert stored is not None and b'"mine"' in stored.pdu
    assert await arena.problems() == []
    # And after it: she is not told that Bob's event is hers.
    _, answer = await arena.send("m2", [resigned(evil("later"), hashes=sent.fields["hashes"])])
    assert accepted[sent.event_id] not in answer["org.lmserver.accepted"].values()


@pytest.mark.parametrize("field", ["content", "extra", "origin_server_ts"])
async def test_b6_an_lpdu_changed_on_the_way_is_not_the_first_one(arena: Arena, field: str) -> None:
    """Control: what is not the same LPDU is not taken for it. Protected fields: no valid signature."""
    sent = lpdu(message("x", sender=MALLORY))
    await arena.send("t1", [sent.fields])
    changed = {**sent.fields, field: {"body": "y"} if field == "content" else 5}
    status, answer = await arena.send("t2", [changed])
    assert status == 200
    if field == "origin_server_ts":
        assert answer["org.lmserver.accepted"] == {} and answer["failed_pdus"] == {}
    else:
        assert len(set(answer["org.lmserver.accepted"].values())) <= 1
    assert len(await copies(arena, sent)) == 1
