"""Transactions (D04 §Transaction Identifiers, §Sending Events)."""

from __future__ import annotations

from typing import Any

from lmserver.conformance import rooms
from lmserver.conformance.model import Role, check, expect
from lmserver.conformance.session import Session

TXN = "Transaction Identifiers"
SEND = "PUT /_matrix/federation/v2/send/:txnId"
EDUS = "Ephemeral Data Units (EDUs)"
HUB = Role.HUB


@check("send.empty", SEND, "A transaction without events or edus is answered 200 with failed_pdus.")
async def empty(s: Session) -> None:
    answer = (await s.transaction([])).expect(200)
    expect(answer.get("failed_pdus") == {}, f"the answer is {answer}")


@check("send.unknown_events", SEND, "Events of rooms the server is not in are skipped: 200.")
async def unknown_events(s: Session) -> None:
    events: list[Any] = [{"room_id": f"!nosuchroom:{s.server}"}, {"room_id": 7}, {}, [], "text", None]
    (await s.transaction(events)).expect(200)


@check("send.too_many_pdus", SEND, "There MUST NOT be more than 50 entries in pdus: 400.")
async def too_many_pdus(s: Session) -> None:
    (await s.transaction([{"room_id": f"!nosuchroom:{s.server}"}] * 51)).expect(400)


@check("send.too_many_edus", SEND, "There MUST NOT be more than 100 entries in edus: 400.")
async def too_many_edus(s: Session) -> None:
    edu = {"type": "org.lmserver.unknown", "sender": s.me.user("conformance"), "content": {}}
    (await s.transaction([], edus=[edu] * 101)).expect(400)


@check(
    "send.too_many_unprocessed", SEND, "Of a transaction that is too large nothing is processed.", role=HUB
)
async def too_many_unprocessed(s: Session) -> None:
    room = await rooms.room(s)
    lpdus = [room.message(f"of too many, number {number}") for number in range(51)]
    (await s.transaction(lpdus)).expect(400)
    await room.appended(room.message("after too many"))
    expect(all(room.find(lpdu) is None for lpdu in lpdus), "some of its events were appended")


@check(
    "send.same_response", TXN, "Requests with the same transaction ID MUST get the same response.", role=HUB
)
async def same_response(s: Session) -> None:
    room, txn_id = await rooms.room(s), s.fresh()
    lpdus = [room.message("once"), room.message("forbidden", sender=s.me.user(s.fresh("outsider")))]
    first = (await s.transaction(lpdus, txn_id=txn_id)).expect(200)
    second = (await s.transaction(lpdus, txn_id=txn_id)).expect(200)
    expect(first == second, f"first {first}, then {second}")


@check(
    "send.processed_once", TXN, "The body of a repeated transaction ID MUST be processed only once.", role=HUB
)
async def processed_once(s: Session) -> None:
    room, txn_id = await rooms.room(s), s.fresh()
    first, second = room.message("under this ID"), room.message("under the same ID")
    (await s.transaction([first], txn_id=txn_id)).expect(200)
    (await s.transaction([second], txn_id=txn_id)).expect(200)
    await room.echo(first)
    await room.appended(room.message("after a repeated ID"))
    expect(room.find(second) is None, "another body under a known ID was processed")


@check("send.repeated_event", TXN, "A repeated request appends nothing twice.", role=HUB)
async def repeated_event(s: Session) -> None:
    room, txn_id = await rooms.room(s), s.fresh()
    lpdu = room.message("only once")
    for _ in range(3):
        (await s.transaction([lpdu], txn_id=txn_id)).expect(200)
    await room.appended(room.message("after repeating"))
    copies = [e for e in room.events() if e["hashes"].get("lpdu") == lpdu["hashes"]["lpdu"]]
    expect(len(copies) == 1, f"it stands {len(copies)} times in the room")


@check("send.id_per_server", TXN, "A server's transaction IDs do not affect other servers.", role=HUB)
async def id_per_server(s: Session) -> None:
    room, txn_id = await rooms.room(s), s.fresh()
    (await s.transaction([], txn_id=txn_id, persona=s.other)).expect(200)
    lpdu = room.message("under another server's ID")
    (await s.transaction([lpdu], txn_id=txn_id)).expect(200)
    await room.echo(lpdu)


@check("send.id_per_endpoint", TXN, "A transaction ID is unique for an endpoint, not for all.", role=HUB)
async def id_per_endpoint(s: Session) -> None:
    room, txn_id = await rooms.room(s), s.fresh()
    user = s.me.user(s.fresh("newcomer"))
    (await room.send_member("join", room.member("join", user), txn_id=txn_id)).expect(200)
    lpdu = room.message("under a known ID of send_join")
    (await s.transaction([lpdu], txn_id=txn_id)).expect(200)
    await room.echo(lpdu)


@check("edu.unknown", EDUS, "EDUs of unknown types or none, and those that are no objects, do no harm.")
async def unknown_edus(s: Session) -> None:
    sender = s.me.user("conformance")
    edus: list[Any] = [
        {"type": "org.lmserver.unknown", "sender": sender, "content": {}},
        {"edu_type": "org.lmserver.unknown", "content": {}},
        {"type": "m.typing"},
        {},
        "text",
        None,
    ]
    (await s.transaction([], edus=edus)).expect(200)
