"""PUT send: limits, drop or reject, once for each transaction ID, EDUs, who may ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lmserver.protocol import canonical_json
from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.engine import RoomEngine
from lmserver.storage import inbound, room_log
from lmserver.storage.database import Database
from tests.federation.world import UNSTABLE, World
from tests.kit.rooms import (
    ALICE,
    BOB,
    EVIL,
    HUB,
    MALLORY,
    PARTICIPANT,
    ROOM,
    lpdu,
    member,
    message,
    now,
    opening,
)  # fmt: skip


@pytest.fixture
async def world(db: Database) -> AsyncIterator[World]:
    async with World(db) as made:
        await made.engine.create(LM_02, opening())
        await made.engine.accept_lpdus(ROOM, [lpdu(member("join", sender=BOB))])
        yield made


async def head(world: World) -> int:
    row = await room_log.room(world.db, ROOM)
    assert row is not None
    return row.head_position


async def test_lpdus_are_appended_and_their_event_ids_told(world: World) -> None:
    sent = [lpdu(message(str(n), sender=BOB)) for n in range(50)]
    status, body = await world.send("t1", [item.fields for item in sent])
    assert status == 200 and body["failed_pdus"] == {}
    assert set(body["org.lmserver.accepted"]) == {item.event_id for item in sent}
    assert await head(world) == 54
    assert world.alive == [PARTICIPANT]


async def test_the_same_transaction_is_processed_once_whatever_its_body(world: World) -> None:
    first = await world.send("t1", [lpdu(message(sender=BOB)).fields])
    again = await world.send("t1", [lpdu(message("other", sender=BOB)).fields])
    assert first == again
    assert await head(world) == 5


async def test_the_same_transaction_at_the_same_time_is_one(world: World) -> None:
    item = lpdu(message(sender=BOB)).fields
    answers = await asyncio.gather(*(world.send("t1", [item]) for _ in range(5)))
    assert all(answer == answers[0] for answer in answers) and answers[0][0] == 200
    assert await head(world) == 5


@pytest.mark.parametrize("body", [
    {"pdus": [{}] * 51}, {"edus": [{}] * 101}, {"pdus": {}}, {"pdus": None}, {"edus": "x"},
])  # fmt: skip
async def test_a_transaction_out_of_bounds_is_refused_whole(world: World, body: dict[str, Any]) -> None:
    if isinstance(body.get("pdus"), list):
        body["pdus"] = [lpdu(message(sender=BOB)).fields, *body["pdus"][1:]]
    status, answer = await world.ask("PUT", f"{UNSTABLE}/send/t1", body)
    assert (status, answer["errcode"]) == (400, "M_BAD_JSON")
    assert await head(world) == 4


async def test_absent_lists_are_empty_and_junk_is_dropped(world: World) -> None:
    assert (await world.ask("PUT", "/_matrix/federation/v2/send/t0", {}))[1]["failed_pdus"] == {}
    good = lpdu(message(sender=BOB))
    unknown = lpdu(message(sender=BOB, room_id=f"!nowhere:{HUB}"))
    status, body = await world.send("t1", [1, "x", [], {}, {"room_id": 3}, unknown.fields, good.fields])
    assert status == 200 and body["failed_pdus"] == {}
    assert list(body["org.lmserver.accepted"]) == [good.event_id]


async def test_an_lpdu_of_another_server_is_refused(world: World) -> None:
    """Attack B4: evil relays a valid LPDU."""
    item = lpdu(message(sender=BOB))
    _, body = await world.send("t1", [item.fields], origin=EVIL)
    assert list(body["failed_pdus"]) == [item.event_id]
    assert await head(world) == 4


async def test_an_lpdu_for_another_hub_is_refused(world: World) -> None:
    """Attack B3."""
    item = lpdu(message(sender=BOB), hub_server=EVIL)
    _, body = await world.send("t1", [item.fields])
    assert list(body["failed_pdus"]) == [item.event_id]


async def test_a_full_pdu_to_the_hub_is_dropped(world: World) -> None:
    """Attack B1."""
    stored = await room_log.events_between(world.db, ROOM, 3, 4, 1, newest_first=True)
    fields = {**lpdu(message(sender=BOB)).fields, "auth_events": [], "prev_events": [stored[0].event_id]}
    fields["hashes"] = {**fields["hashes"], "sha256": "x"}
    status, body = await world.send("t1", [fields])
    assert (status, body) == (200, {"failed_pdus": {}, "org.lmserver.accepted": {}})
    assert await head(world) == 4


async def test_a_bad_signature_is_dropped_and_fails_nobody_else(world: World) -> None:
    bad, good = dict(lpdu(message("a", sender=BOB)).fields), lpdu(message("b", sender=BOB))
    bad["origin_server_ts"] += 1
    _, body = await world.send("t1", [bad, good.fields])
    assert body["failed_pdus"] == {} and list(body["org.lmserver.accepted"]) == [good.event_id]


async def test_what_the_rules_refuse_is_told_by_the_lpdus_id(world: World) -> None:
    item = lpdu(message(sender=MALLORY))
    _, body = await world.send("t1", [item.fields], origin=EVIL)
    assert list(body["failed_pdus"]) == [item.event_id] and body["failed_pdus"][item.event_id]["error"]


async def test_b21_a_poison_event_fails_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack B21."""
    bad, good = lpdu(message("poison", sender=BOB)), lpdu(message(sender=BOB))
    accept = world.engine.accept_lpdus

    async def explode(room_id: str, items: Any) -> Any:
        if any(item.content["body"] == "poison" for item in items):
            raise RuntimeError("boom")
        return await accept(room_id, items)

    monkeypatch.setattr(world.engine, "accept_lpdus", explode)
    status, body = await world.send("t1", [bad.fields, good.fields])
    assert status == 200 and list(body["failed_pdus"]) == [bad.event_id]
    assert list(body["org.lmserver.accepted"]) == [good.event_id]


async def test_b19_another_transaction_in_flight_is_bad_state(world: World) -> None:
    at = now()
    assert (await inbound.claim(world.db, PARTICIPANT, "send", "other", at, at + 30_000)).fence
    status, body = await world.send("t1", [])
    assert (status, body["errcode"]) == (400, "M_BAD_STATE")


async def test_b19_a_lease_left_by_a_crash_runs_out_and_lets_its_own_transaction_in(world: World) -> None:
    at = now()
    await inbound.claim(world.db, PARTICIPANT, "send", "t1", at, at + 30_000)
    assert (await world.send("t1", []))[0] == 200
    await inbound.claim(world.db, PARTICIPANT, "send", "t2", at, at - 1)
    assert (await world.send("t3", []))[0] == 200


async def test_a_finished_transaction_is_not_claimed_again(world: World) -> None:
    claim = await inbound.claim(world.db, PARTICIPANT, "send", "t1", 10, 20)
    answer = inbound.StoredResponse(200, b"{}")
    await inbound.finish(world.db, PARTICIPANT, "send", "t1", answer, 15, claim.fence)
    await world.db.execute("DELETE FROM inbound_transactions")  # as a statement that began earlier sees it
    assert (await inbound.claim(world.db, PARTICIPANT, "send", "t1", 16, 30)).fence is None
    await inbound.purge(world.db, 100)
    assert (await inbound.claim(world.db, PARTICIPANT, "send", "t1", 16, 30)).fence is not None


async def test_edus_of_both_forms_arrive_and_spoofed_ones_do_not(world: World) -> None:
    """Attack B23."""

    def draft_form(**changes: Any) -> dict[str, Any]:
        content = {"target": ALICE, "target_device": "D", "message_type": "m.x", "message": {"n": 1}}
        return {"type": "m.direct_to_device", "sender": BOB, "content": content, **changes}

    matrix = {"edu_type": "m.direct_to_device", "content": {
        "sender": BOB, "type": "m.y", "message_id": "1", "messages": {ALICE: {"E": {}}, MALLORY: {"F": {}}},
    }}  # fmt: skip
    edus = [draft_form(), matrix, draft_form(sender=MALLORY), draft_form(sender_id=MALLORY), 7, {"type": []}]
    assert (await world.send("t1", [], edus=edus))[0] == 200
    found = [(m.device_id, canonical_json.parse_object(m.message)["type"]) for m in world.to_device]
    assert found == [("D", "m.x"), ("E", "m.y")]


async def test_a_key_is_there_before_the_event_beside_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is told of an encrypted event before it has the key may not look at it again."""
    keys_there: list[int] = []
    accept = RoomEngine.accept_lpdus

    async def noted(self: RoomEngine, room_id: str, lpdus: Any) -> Any:
        keys_there.append(len(world.to_device))
        return await accept(self, room_id, lpdus)

    monkeypatch.setattr(RoomEngine, "accept_lpdus", noted)
    content = {"target": ALICE, "target_device": "D", "message_type": "m.x", "message": {}}
    edu = {"type": "m.direct_to_device", "sender": BOB, "content": content}
    assert (await world.send("t1", [lpdu(message(sender=BOB)).fields], edus=[edu]))[0] == 200
    assert keys_there == [1]


async def test_requests_must_be_signed_for_what_they_are(world: World) -> None:
    """Attack X4."""
    signed = f"{UNSTABLE}/send/other"
    status, body = await world.ask("PUT", f"{UNSTABLE}/send/t1", {"pdus": []}, signed=signed)
    assert (status, body["errcode"]) == (401, "M_FORBIDDEN")
    async with world.http.put(f"{UNSTABLE}/send/t1", json={}) as response:
        assert response.status == 401
