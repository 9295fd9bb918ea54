"""What a hub does with LPDUs that are not as they should be (D04 §Receiving Events/PDUs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmserver.conformance import draft, rooms
from lmserver.conformance.draft import Event
from lmserver.conformance.model import Level, Role, check, expect
from lmserver.conformance.remote_room import RemoteRoom
from lmserver.conformance.session import Session

RECEIVING = "Receiving Events/PDUs"
LPDU = "Linearized PDU"
EVENTS = "Events"
SEND = "PUT /_matrix/federation/v2/send/:txnId"
HUB = Role.HUB


@check("lpdu.unsigned", RECEIVING, "An event without the required signature is dropped.", role=HUB)
async def unsigned(s: Session) -> None:
    room = await rooms.room(s)
    await room.refused({**room.message(), "signatures": {}})


@check("lpdu.bad_signature", RECEIVING, "An event whose signature is not valid is dropped.", role=HUB)
async def bad_signature(s: Session) -> None:
    room = await rooms.room(s)
    lpdu = room.message()
    forger = draft.Key.make(s.me.name, s.me.key.key_id)
    await room.refused(forger.sign_event(lpdu, s.version))


@check(
    "lpdu.unlisted_key", "Checking Signatures", "A signature with a key ID that is not known fails.", role=HUB
)
async def unlisted_key(s: Session) -> None:
    room = await rooms.room(s)
    unlisted = draft.Key.make(s.me.name, "ed25519:unlisted")
    await room.refused(unlisted.sign_event(draft.without(room.message(), "signatures"), s.version))


@check(
    "lpdu.other_signature", RECEIVING, "Signatures of others MUST NOT be considered, valid or not.", role=HUB
)
async def other_signature(s: Session) -> None:
    room = await rooms.room(s)
    lpdu = room.message("with somebody else's signature")
    lpdu["signatures"]["no-such-server.invalid"] = {"ed25519:1": "bm90IGEgc2lnbmF0dXJl"}
    await room.appended(lpdu)


@check(
    "lpdu.foreign_sender",
    RECEIVING,
    "The event MUST be signed by the server implied by the sender.",
    role=HUB,
)
async def foreign_sender(s: Session) -> None:
    room = await rooms.room(s)
    await room.refused(room.message(sender=f"@somebody:{s.server}"))


@check("lpdu.relayed", SEND, "An LPDU SHOULD be taken from its sender's server, not through a third one.",
       role=HUB, level=Level.SHOULD)  # fmt: skip
async def relayed(s: Session) -> None:
    room = await rooms.room(s)
    await room.refused(room.message(), persona=s.other)


@check("lpdu.repeated", SEND, "An LPDU that comes again in another transaction SHOULD be appended once.",
       role=HUB, level=Level.SHOULD)  # fmt: skip
async def repeated(s: Session) -> None:
    room = await rooms.room(s)
    lpdu = room.message("sent again")
    for _ in range(2):
        (await s.transaction([lpdu])).expect(200)
    await room.appended(room.message("after it was sent again"))
    copies = [e for e in room.events() if e["hashes"].get("lpdu") == lpdu["hashes"]["lpdu"]]
    expect(len(copies) == 1, f"it stands {len(copies)} times in the room")


@check("lpdu.full_pdu", SEND, "A full PDU SHOULD NOT be taken of a participant: the hub places events.",
       role=HUB, level=Level.SHOULD)  # fmt: skip
async def full_pdu(s: Session) -> None:
    room = await rooms.room(s)
    fields = draft.without(room.fields("m.room.message", {"body": "with a place"}), "hub_server")
    last = room.event_id(room.events()[-1])
    auth = [room.event_id(room.state()[key]) for key in draft.selection(fields) if key in room.state()]
    placed = {**fields, "auth_events": auth, "prev_events": [last]}
    hashed = {**placed, "hashes": {"sha256": draft.pdu_hash(placed)}}
    pdu = s.me.key.sign_event(hashed, s.version)
    (await s.transaction([pdu])).expect(200)
    await room.appended(room.message("after a full PDU"))
    expect(room.event_id(pdu) not in map(room.event_id, room.events()), "it was appended")


@check(
    "lpdu.other_hub",
    RECEIVING,
    "hub_server MUST be the hub: an LPDU for another one is not accepted.",
    role=HUB,
)
async def other_hub(s: Session) -> None:
    room = await rooms.room(s)
    await room.refused(
        room.seal({**room.fields("m.room.message", {}), "hub_server": "elsewhere.example.org"})
    )


@check("lpdu.no_lpdu_hash", LPDU, "hashes.lpdu MUST be populated.", role=HUB)
async def no_lpdu_hash(s: Session) -> None:
    room = await rooms.room(s)
    lpdu = draft.without(room.message(), "signatures")
    bad = s.me.key.sign_event({**lpdu, "hashes": {}}, s.version)
    honest = room.message("after one without a hash")
    (await s.transaction([bad])).expect(200)
    await room.appended(honest)
    stray = [e for e in s.me.pdus if e.get("origin_server_ts") == bad["origin_server_ts"]]
    expect(not stray, f"it was appended: {stray}")


@check(
    "lpdu.hash_mismatch",
    RECEIVING,
    "If the LPDU's content hash does not match, the event is redacted and kept.",
    role=HUB,
)
async def hash_mismatch(s: Session) -> None:
    room = await rooms.room(s)
    lpdu = room.message("as it was signed")
    changed = {**lpdu, "content": {**lpdu["content"], "body": "changed on the way"}}
    (await s.transaction([changed])).expect(200)
    pdu = await room.echo(changed)
    expect(pdu["content"] == {}, f"its content is {pdu['content']}, it should be redacted")


@check(
    "lpdu.failed_pdus",
    SEND,
    "A rejected event is in failed_pdus, under the ID of the LPDU, with an error.",
    role=HUB,
)
async def failed_pdus(s: Session) -> None:
    room = await rooms.room(s)
    lpdu = room.message("from outside", sender=s.me.user(s.fresh("outsider")))
    failed = (await s.transaction([lpdu])).expect(200).get("failed_pdus")
    expect(isinstance(failed, dict), f"failed_pdus is {failed!r}")
    entry = (failed or {}).get(room.event_id(lpdu))
    expect(isinstance(entry, dict), f"failed_pdus is {failed}, the LPDU's ID is {room.event_id(lpdu)}")
    expect(isinstance((entry or {}).get("error"), str), f"the entry has no error text: {entry}")


@check("lpdu.accepted_not_failed", SEND, "Events that are accepted do not appear in failed_pdus.", role=HUB)
async def accepted_not_failed(s: Session) -> None:
    room = await rooms.room(s)
    lpdu = room.message()
    failed = (await s.transaction([lpdu])).expect(200).get("failed_pdus")
    await room.echo(lpdu)
    expect(not failed, f"failed_pdus is {failed}")


@check("lpdu.bad_among_good", SEND, "Each event is processed by itself: a bad one fails no other.", role=HUB)
async def bad_among_good(s: Session) -> None:
    room = await rooms.room(s)
    outsider = s.me.user(s.fresh("outsider"))
    first, last = room.message("before"), room.message("after")
    bad: list[Any] = [
        room.message("forbidden", sender=outsider),
        {**room.message("unsigned"), "signatures": {}},
        {**room.message("malformed"), "content": "text"},
        {"room_id": room.room_id},
        "no object",
        None,
    ]
    (await s.transaction([first, *bad, last])).expect(200)
    await room.echo(first)
    await room.echo(last)


@check(
    "lpdu.unknown_room",
    SEND,
    "An event of a room the server is not in is dropped; the request succeeds.",
    role=HUB,
)
async def unknown_room(s: Session) -> None:
    room = await rooms.room(s)
    elsewhere = RemoteRoom(s, "!nosuchroom:elsewhere.example.org")
    honest = room.message("beside another room's")
    (await s.transaction([elsewhere.message(), honest])).expect(200)
    await room.echo(honest)


@check("lpdu.largest", EVENTS, "Events up to 65536 bytes, hub's fields included, are allowed.", role=HUB)
async def largest(s: Session) -> None:
    room = await rooms.room(s)
    await room.appended(room.lpdu("m.room.message", {"body": "x" * 60_000}))


@check("lpdu.too_large", EVENTS, "An event MUST NOT exceed 65536 bytes in canonical JSON.", role=HUB)
async def too_large(s: Session) -> None:
    room = await rooms.room(s)
    await room.refused(room.lpdu("m.room.message", {"body": "x" * 65_536}))


@check("lpdu.long_type", EVENTS, "A type of 255 characters is allowed.", role=HUB)
async def long_type(s: Session) -> None:
    room = await rooms.room(s)
    await room.appended(room.lpdu("t" * 255, {}))


Change = Callable[[RemoteRoom, Event], Event]


def _set(**fields: Any) -> Change:
    return lambda room, event: {**event, **fields}


def _drop(*names: str) -> Change:
    return lambda room, event: draft.without(event, *names)


MALFORMED: dict[str, tuple[str, Change]] = {
    "no_type": ("type is required.", _drop("type")),
    "type_not_text": ("type is a string.", _set(type=["m.room.message"])),
    "type_too_long": ("type MUST NOT exceed 255 characters.", _set(type="t" * 256)),
    "state_key_not_text": ("state_key is a string.", _set(state_key=7)),
    "state_key_too_long": ("state_key MUST NOT exceed 255 characters.", _set(state_key="k" * 256)),
    "no_sender": ("sender is required.", _drop("sender")),
    "sender_upper_case": (
        "sender MUST be a valid user ID: no uppercase letters.",
        lambda room, event: {**event, "sender": room.session.me.user("CONFORMANCE")},
    ),
    "sender_no_server": ("sender MUST be a valid user ID.", _set(sender="@conformance")),
    "no_timestamp": ("origin_server_ts is required.", _drop("origin_server_ts")),
    "timestamp_text": ("origin_server_ts is an integer.", _set(origin_server_ts="1700000000000")),
    "timestamp_true": ("origin_server_ts is an integer, not a boolean.", _set(origin_server_ts=True)),
    "no_content": ("content is required.", _drop("content")),
    "content_list": ("content is an object.", _set(content=[])),
    "no_hub_server": ("Events without hub_server MUST NOT contain lpdu hashes.", _drop("hub_server")),
    "hub_server_address": ("hub_server MUST be a valid server name.", _set(hub_server="127.0.0.1:8448")),
    "auth_events_null": ("An LPDU MUST NOT have auth_events, not even null.", _set(auth_events=None)),
    "prev_events": ("An LPDU MUST NOT have prev_events.", _set(prev_events=[])),
}  # fmt: skip


def _register(name: str, text: str, change: Change) -> None:
    section = LPDU if "events" in name else "Users" if "sender" in name else EVENTS

    @check(f"schema.{name}", section, text, role=HUB)
    async def malformed(s: Session) -> None:
        room = await rooms.room(s)
        bad = room.seal(change(room, room.fields("m.room.message", {"body": "malformed"})))
        await room.refused(bad)


for _name, (_text, _change) in MALFORMED.items():
    _register(_name, _text, _change)
