"""To-device messages between servers: their forms, exactly once, in order, bounded; who may send what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lmserver.protocol.edus import MAX_EDU
from lmserver.storage import inbound, outbound
from lmserver.storage import to_device as stored
from lmserver.storage.database import Database
from tests.kit.edu_world import EduWorld, to_device
from tests.kit.rooms import ALICE, BOB, EVIL, HUB, MALLORY, PARTICIPANT
from tests.kit.waiting import eventually


@pytest.fixture
async def world(db: Database, tmp_path: Path) -> AsyncIterator[EduWorld]:
    async with EduWorld(db, tmp_path) as made:
        yield made


# -- sending --------------------------------------------------------------------------------------


async def test_a_message_leaves_as_the_draft_says_once_and_in_order(world: EduWorld) -> None:
    alice = await world.device("alice")
    await alice.send_to_device(BOB, "PHONE", *({"n": n} for n in range(120)))
    await eventually(lambda: len(world.received("m.direct_to_device")) >= 120)
    sent = world.received("m.direct_to_device")
    assert [edu["content"]["message"]["n"] for edu in sent] == list(range(120))
    first = sent[0]
    message_id = first["content"].pop("message_id")
    assert first == {
        "type": "m.direct_to_device", "sender": ALICE, "sender_id": ALICE,
        "content": {
            "target": BOB, "target_device": "PHONE", "message_type": "m.x", "message": {"n": 0},
        },
    }  # fmt: skip
    assert len({message_id, *(edu["content"]["message_id"] for edu in sent[1:])}) == 120
    assert world.received("m.direct_to_device", EVIL) == []


async def test_a_repeated_request_sends_nothing_again(world: EduWorld) -> None:
    """One transaction ID of a client covers its messages here and elsewhere."""
    alice, carol = await world.device("alice"), await world.device("carol")
    body = {"messages": {BOB: {"PHONE": {"n": 1}}, carol.user_id: {"*": {"n": 1}}}}
    for _ in range(3):
        await alice.ok("PUT", "/sendToDevice/m.x/same", body)
    await eventually(lambda: world.received("m.direct_to_device") != [])
    await alice.send_to_device(BOB, "PHONE", {"n": 2})
    await eventually(lambda: len(world.received("m.direct_to_device")) >= 2)
    assert [e["content"]["message"]["n"] for e in world.received("m.direct_to_device")] == [1, 2]
    assert await carol.messages() == [{"n": 1}]


@pytest.mark.parametrize(
    ("content", "answer"),
    [({"x": 1.5}, (400, "M_BAD_JSON")), ({"x": 2**60}, (400, "M_BAD_JSON")), ({"x": "y" * MAX_EDU}, (413, "M_TOO_LARGE"))],
    ids=["a float", "a large number", "too large"],
)  # fmt: skip
async def test_c9_what_no_server_would_take_is_refused_at_once(
    world: EduWorld, content: Any, answer: tuple[int, str]
) -> None:
    alice = await world.device("alice")
    status, body = await alice.call("PUT", "/sendToDevice/m.x/1", {"messages": {BOB: {"PHONE": content}}})
    assert (status, body["errcode"]) == answer
    assert await world.db.fetchval("SELECT count(*) FROM outbound_edus") == 0


async def test_what_waits_is_measured_by_kind(world: EduWorld) -> None:
    await world.server.sender.stop()
    alice = await world.device("alice")
    await alice.send_to_device(BOB, "PHONE", {"n": 1}, {"n": 2})
    await alice.upload_keys()
    world.server.metrics.observe_outbox(await outbound.waiting_edus(world.db))
    text = world.server.metrics.text().decode()
    for kind, number in (("to_device", 2), ("device_list", 2), ("receipt", 0)):
        assert f'lmserver_outbox_edus{{kind="{kind}"}} {number}.0' in text


# -- receiving ------------------------------------------------------------------------------------


def matrix_form(kind: str, messages: Any, message_id: str = "m1", sender: str = BOB) -> dict[str, Any]:
    content = {"sender": sender, "type": "m.y", "message_id": message_id, "messages": messages}
    return {kind: "m.direct_to_device", "content": content}


async def test_every_form_arrives_in_order(world: EduWorld) -> None:
    alice, other = await world.device("alice"), await world.device("alice", "E")
    await world.send(
        to_device(ALICE, "D", {"n": 1}),
        to_device(ALICE, "D", {"n": 2}, sender_id=BOB),
        matrix_form("edu_type", {ALICE: {"D": {"n": 3}, "E": {"n": 3}}}),
        {**matrix_form("type", {ALICE: {"*": {"n": 4}}}, "m2"), "sender": BOB, "sender_id": BOB},
    )
    await world.send(to_device(ALICE, "D", {"n": 5}))
    assert await alice.messages() == [{"n": n} for n in (1, 2, 3, 4, 5)]
    assert await other.messages() == [{"n": 3}, {"n": 4}]


async def test_all_of_a_transaction_arrives_however_much_it_is_for_one_device(world: EduWorld) -> None:
    """An answer is cut between transactions only: what was cut off inside one would never come."""
    alice = await world.device("alice")
    await world.send(to_device(ALICE, "D", {"n": -1}))
    both = [
        matrix_form("edu_type", {ALICE: {"*": {"n": 2 * n}, "D": {"n": 2 * n + 1}}}, f"m{n}")
        for n in range(100)
    ]
    await world.send(*both)
    await world.send(to_device(ALICE, "D", {"n": 200}))
    numbers: list[int] = []
    for _ in range(3):
        numbers += [content["n"] for content in await alice.messages()]
    assert numbers == list(range(-1, 201))


async def test_a_message_stays_until_the_client_has_shown_it_got_it(world: EduWorld) -> None:
    alice = await world.device("alice")
    await world.send(to_device(ALICE, "D", {"n": 1}))
    answer = await alice.ok("GET", "/sync?timeout=0")
    again = await alice.ok("GET", "/sync?timeout=0")
    assert answer["to_device"] == again["to_device"] and len(answer["to_device"]["events"]) == 1
    assert await world.db.fetchval("SELECT count(*) FROM to_device_messages") == 1
    later = await alice.ok("GET", f"/sync?timeout=0&since={answer['next_batch']}")
    assert later["to_device"]["events"] == []
    assert await world.db.fetchval("SELECT count(*) FROM to_device_messages") == 0


async def test_the_same_message_in_another_transaction_is_one(world: EduWorld) -> None:
    """Known by its message ID, for its sender, user and device only."""
    alice, other = await world.device("alice"), await world.device("alice", "E")
    once = to_device(ALICE, "D", {"n": 1}, message_id="id")
    await world.send(once, once)
    await world.send(once, to_device(ALICE, "E", {"n": 2}, message_id="id"))
    await world.send(to_device(ALICE, "D", {"n": 3}, sender=MALLORY, message_id="id"), origin=EVIL)
    await world.send(matrix_form("edu_type", {ALICE: {"D": {"n": 1}}}, "id"))
    assert await alice.messages() == [{"n": 1}, {"n": 3}]
    assert await other.messages() == [{"n": 2}]


async def test_a_transaction_that_was_not_finished_is_not_taken_twice(world: EduWorld) -> None:
    """We died after its messages were stored and before its answer was: the peer repeats it."""
    alice = await world.device("alice")
    edus = [to_device(ALICE, "D", {"n": 1}), to_device(ALICE, "D", {"n": 2}, message_id="id")]
    await world.send(*edus, txn_id="same")
    await world.db.execute("DELETE FROM inbound_transactions")
    await world.db.execute("UPDATE inbound_leases SET lease_until = 1")
    assert await inbound.response(world.db, PARTICIPANT, "send", "same") is None
    await world.send(*edus, to_device(ALICE, "D", {"n": 3}), txn_id="same")
    assert await alice.messages() == [{"n": 1}, {"n": 2}, {"n": 3}]


async def test_control_without_the_memory_of_messages_they_come_twice(world: EduWorld) -> None:
    alice = await world.device("alice")
    message = to_device(ALICE, "D", {"n": 1}, message_id="id")
    await world.send(message)
    await world.db.execute("DELETE FROM to_device_received")
    await world.send(message)
    assert await alice.messages() == [{"n": 1}, {"n": 1}]


async def test_b23_spoofed_and_misaddressed_edus_are_dropped_and_harm_no_other(world: EduWorld) -> None:
    alice, gone = await world.device("alice"), await world.device("dave")
    await world.server.accounts.deactivate(gone.user_id)
    await world.send(
        7, None, [], {}, {"type": []}, {"type": "m.direct_to_device"}, {"type": "m.unknown", "content": {}},
        to_device(ALICE, "D", {"n": 1}),
        to_device(ALICE, "D", {"spoofed": "another server's user"}, sender=MALLORY),
        to_device(ALICE, "D", {"spoofed": "our own user"}, sender=ALICE),
        to_device(ALICE, "D", {"spoofed": "two senders"}, sender_id=f"@eve:{PARTICIPANT}"),
        to_device(ALICE, "D", {"spoofed": "no user"}, sender=PARTICIPANT),
        to_device(ALICE, "D", {"spoofed": "a list"}, sender=[BOB]),
        matrix_form("edu_type", {ALICE: {"D": {"spoofed": "inside"}}}, "m1", MALLORY),
        {**matrix_form("type", {ALICE: {"D": {"spoofed": "inside"}}}, "m2", f"@eve:{PARTICIPANT}"), "sender": BOB},
        matrix_form("edu_type", {ALICE: {"D": 5, "": {}, "D\0": {}}, MALLORY: {"D": {}}, "5": {}} , "m3"),
        to_device(MALLORY, "D", {"for": "another server"}),
        to_device(gone.user_id, "D", {"for": "a deactivated user"}),
        to_device(gone.user_id, "*", {"for": "a deactivated user"}),
        to_device(f"@nobody:{HUB}", "*", {"for": "nobody"}),
        to_device(ALICE, "UNKNOWN", {"for": "no device"}),
        to_device(ALICE, "D", ["not an object"]),
        to_device(ALICE, "D", {"too": "x" * (MAX_EDU + 1000)}),
        to_device(ALICE, "D", {"n": 2}),
    )  # fmt: skip
    assert await alice.messages() == [{"n": 1}, {"n": 2}]
    assert await world.db.fetchval("SELECT count(*) FROM to_device_messages") == 2
    assert await world.db.fetchval("SELECT count(*) FROM to_device_received") == 2


async def test_b23_a_message_that_makes_us_stumble_harms_no_other(
    world: EduWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await world.device("alice")
    receive = stored.receive

    async def stumbles(db: Any, origin: str, messages: Any, now_ms: int) -> Any:
        if any(b"poison" in m.message for m in messages):
            raise RuntimeError("boom")
        return await receive(db, origin, messages, now_ms)

    monkeypatch.setattr(stored, "receive", stumbles)
    await world.send(*(to_device(ALICE, "D", {"n": n}) for n in (1, "poison", 2)))
    assert await alice.messages() == [{"n": 1}, {"n": 2}]


async def test_r9_a_dead_devices_queue_keeps_the_newest(
    world: EduWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, other = await world.device("alice"), await world.device("alice", "E")
    monkeypatch.setattr(stored, "MAX_QUEUED", 20)
    for start in range(0, 90, 30):
        await world.send(*(to_device(ALICE, "D", {"n": n}) for n in range(start, start + 30)))
    await world.send(to_device(ALICE, "E", {"n": "mine"}))
    answer = await alice.ok("GET", "/sync")
    marker, *kept = answer["to_device"]["events"]
    assert marker == {"type": "org.lmserver.dropped", "sender": ALICE, "content": {}}
    assert [m["content"] for m in kept] == [{"n": n} for n in range(70, 90)]
    await world.send(to_device(ALICE, "D", {"n": "one more"}))
    again = await alice.ok("GET", f"/sync?since={answer['next_batch']}")
    assert [m["content"] for m in again["to_device"]["events"]] == [{"n": "one more"}]
    assert await other.messages() == [{"n": "mine"}]
    assert b'lmserver_edus_dropped_total{queue="inbox"} 71.0' in world.server.metrics.text()


async def test_r9_a_dead_devices_queue_is_bounded_in_bytes(
    world: EduWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await world.device("alice")
    monkeypatch.setattr(stored, "MAX_QUEUED_BYTES", 100_000)
    await world.send(*(to_device(ALICE, "D", {"n": n, "x": "x" * 30_000}) for n in range(10)))
    assert [content.get("n") for content in await alice.messages()] == [None, 7, 8, 9]


async def test_r9_what_is_remembered_of_a_server_is_bounded(
    world: EduWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.device("alice")
    monkeypatch.setattr(stored, "MAX_REMEMBERED", 10)
    await world.send(to_device(ALICE, "D", {}, sender=MALLORY, message_id="kept"), origin=EVIL)
    for start in range(0, 60, 30):
        await world.send(*(to_device(ALICE, "D", {}, message_id=str(n)) for n in range(start, start + 30)))
    rows = await world.db.fetch("SELECT origin, count(*) FROM to_device_received GROUP BY origin")
    assert dict(tuple(row) for row in rows) == {EVIL: 1, PARTICIPANT: 10}
    await stored.purge(world.db, 2**60, 2**60)
    assert await world.db.fetchval("SELECT count(*) FROM to_device_received") == 0


async def test_a_device_that_is_logged_out_takes_its_messages_along(world: EduWorld) -> None:
    alice = await world.device("alice")
    await world.send(to_device(ALICE, "D", {"n": 1}))
    await alice.ok("POST", "/logout")
    again = await world.device("alice")
    assert await again.messages() == []
