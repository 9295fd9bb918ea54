"""Client events have the standard fields and nothing of the protocol."""

from __future__ import annotations

from typing import Any

from lmserver.protocol.canonical_json import MAX_INT
from lmserver.protocol.room_versions import LM_02
from lmserver.rooms.client_format import Extras, Shown, client_event, shown, stripped
from lmserver.storage.room_log import StoredEvent
from tests.kit.rooms import BOB, RoomBuilder, draft, member, message

FIELDS = {"event_id", "type", "sender", "origin_server_ts", "content", "room_id", "unsigned"}


def stored(pdu: Any, redacted_by: str | None = None) -> StoredEvent:
    return StoredEvent(pdu.room_id, pdu.event_id, 7, pdu.canonical, None, redacted_by, 0, 0)


def format_(pdu: Any, *, redacted_by: str | None = None, room_id: str | None = "!r:x", **extras: Any) -> Any:
    return client_event(shown(stored(pdu, redacted_by), LM_02), room_id, Extras(0, **extras))


def test_no_protocol_field_leaks() -> None:
    room = RoomBuilder()
    room.add(member("join", sender=BOB))
    pdu = room.add(message("hi", sender=BOB))
    assert {"hub_server", "hashes", "signatures", "auth_events", "prev_events"} <= set(pdu.fields)
    event = format_(pdu)
    assert set(event) == FIELDS
    assert event["content"] == {"msgtype": "m.text", "body": "hi"}
    assert "room_id" not in format_(pdu, room_id=None)


def test_state_key_even_if_empty() -> None:
    pdu = RoomBuilder().add(draft("m.room.name", {"name": "n"}, state_key=""))
    assert format_(pdu)["state_key"] == ""
    assert set(stripped(shown(stored(pdu), LM_02))) == {"type", "state_key", "sender", "content"}


def test_redacts_stands_at_the_top_too() -> None:
    pdu = RoomBuilder().add(draft("m.room.redaction", {"redacts": "$x"}))
    assert format_(pdu)["redacts"] == format_(pdu)["content"]["redacts"] == "$x"
    odd = RoomBuilder().add(draft("m.room.redaction", {"redacts": 5}))
    assert "redacts" not in format_(odd)


def test_redacted_events_are_pruned() -> None:
    room = RoomBuilder()
    pdu, redaction = room.add(message("secret")), room.add(draft("m.room.redaction", {"redacts": "$x"}))
    because = shown(stored(redaction), LM_02)
    event = format_(pdu, redacted_by=redaction.event_id, redactions={redaction.event_id: because})
    assert event["content"] == {}
    assert event["unsigned"]["redacted_because"]["event_id"] == redaction.event_id
    unseen = format_(pdu, redacted_by=redaction.event_id)
    assert unseen["content"] == {} and "redacted_because" not in unseen["unsigned"]


def test_nul_is_kept_in_content() -> None:
    pdu = RoomBuilder().add(message("a\0b"))
    assert format_(pdu)["content"]["body"] == "a\0b"


def test_private_parts_of_unsigned() -> None:
    pdu = RoomBuilder().add(message("x"))
    event = format_(pdu, transaction_ids={pdu.event_id: "t1"})
    assert event["unsigned"]["transaction_id"] == "t1"
    assert "transaction_id" not in format_(pdu)["unsigned"]


def test_age_stays_in_range_whatever_the_sender_claims() -> None:
    fields = {"type": "t", "sender": "@a:b", "origin_server_ts": -MAX_INT, "content": {}}
    event = client_event(Shown("$e", 1, fields, None), None, Extras(MAX_INT))
    assert event["unsigned"]["age"] == MAX_INT
