"""What the hub makes of an LPDU, and who gets it (D04 §Linearized PDU, §Sending Events)."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from lmserver.conformance import draft, rooms
from lmserver.conformance.draft import Event
from lmserver.conformance.model import Role, check, expect
from lmserver.conformance.persona import RETRY_SECONDS, TIME_ENOUGH, WAIT, Inbound, Reply
from lmserver.conformance.remote_room import RemoteRoom
from lmserver.conformance.session import Session

LPDU = "Linearized PDU"
EVENTS = "Events"
SELECTION = "Auth Events Selection"
CONTENT_HASH = "Content Hash Calculation"
CANONICAL = "Canonical JSON"
SENDING = "Sending Events"
SEND = "PUT /_matrix/federation/v2/send/:txnId"
HUB = Role.HUB


async def _echoed(s: Session) -> tuple[Event, Event]:
    """A message of ours, as LPDU and as the PDU the hub made of it."""
    room = await rooms.room(s)

    async def send() -> tuple[Event, Event]:
        lpdu = room.message("hello, hub")
        return lpdu, await room.appended(lpdu)

    return await s.once("message", send)


@check(
    "hub.echo",
    "Receiving Events/PDUs",
    "The hub MUST send the full PDU back, to the original sender too.",
    role=HUB,
)
async def echo(s: Session) -> None:
    room = await rooms.room(s)
    await room.appended(room.message("an echo?"))


@check("hub.lpdu_kept", LPDU, "The hub adds fields to an LPDU and changes none of it.", role=HUB)
async def lpdu_kept(s: Session) -> None:
    lpdu, pdu = await _echoed(s)
    for name in draft.without(lpdu, "hashes", "signatures"):
        expect(pdu.get(name) == lpdu[name], f"{name} was {lpdu[name]!r} and is {pdu.get(name)!r}")
    added = set(pdu) - set(lpdu) - {"auth_events", "prev_events"}
    expect(not added, f"more than the missing fields was added: {sorted(added)}")


@check(
    "hub.lpdu_hash",
    EVENTS,
    "An event with hub_server MUST contain the lpdu hash, as the sender made it.",
    role=HUB,
)
async def lpdu_hash(s: Session) -> None:
    lpdu, pdu = await _echoed(s)
    expect(pdu["hashes"].get("lpdu") == lpdu["hashes"]["lpdu"], f"hashes.lpdu is {pdu['hashes'].get('lpdu')}")


@check(
    "hub.sender_signature",
    "Receiving Events/PDUs",
    "The event MUST be signed by the sender's server, as an LPDU.",
    role=HUB,
)
async def sender_signature(s: Session) -> None:
    lpdu, pdu = await _echoed(s)
    ours = pdu["signatures"].get(s.me.name)
    expect(ours == lpdu["signatures"][s.me.name], f"our signature became {ours}")


@check("hub.hub_server", EVENTS, "The hub MUST specify its own server name in hub_server.", role=HUB)
async def hub_server(s: Session) -> None:
    _, pdu = await _echoed(s)
    expect(pdu.get("hub_server") == s.server, f"hub_server is {pdu.get('hub_server')!r}")


@check(
    "hub.content_hash",
    CONTENT_HASH,
    "The PDU's content hash covers it, with hashes.lpdu, without signatures.",
    role=HUB,
)
async def content_hash(s: Session) -> None:
    _, pdu = await _echoed(s)
    expect(
        pdu["hashes"].get("sha256") == draft.pdu_hash(pdu),
        f"hashes.sha256 is {pdu['hashes'].get('sha256')}, should be {draft.pdu_hash(pdu)}",
    )


@check(
    "hub.signature",
    "Signing Events",
    "If the event has hub_server it MUST be signed by that server.",
    role=HUB,
)
async def signature(s: Session) -> None:
    _, pdu = await _echoed(s)
    message = draft.reference(pdu, s.version)
    expect(
        draft.has_signature(pdu, s.server, await s.server_keys(), message),
        f"no valid signature of the hub: {pdu['signatures'].get(s.server)} over {message.decode()}",
    )


@check(
    "hub.one_prev_event", EVENTS, "An event with hub_server has exactly one entry in prev_events.", role=HUB
)
async def one_prev_event(s: Session) -> None:
    _, pdu = await _echoed(s)
    expect(isinstance(pdu["prev_events"], list) and len(pdu["prev_events"]) == 1, f"{pdu['prev_events']}")


@check(
    "hub.list", EVENTS, "Each event's prev_events names the one before it, by its reference hash.", role=HUB
)
async def linked(s: Session) -> None:
    room = await rooms.room(s)
    await room.appended(room.message("the last link"))
    listed = room.events()
    for before, after in pairwise(listed):
        expect(
            after["prev_events"] == [room.event_id(before)],
            f"{after['type']} {room.event_id(after)} follows {after['prev_events']}, but"
            f" {room.event_id(before)} came before it",
        )


async def _expect_selection(room: RemoteRoom, pdu: Event) -> None:
    state = room.state(before=room.event_id(pdu))
    wanted = {room.event_id(state[key]) for key in draft.selection(pdu) if key in state}
    given = pdu["auth_events"]
    names = {room.event_id(event): key for key, event in state.items()}
    expect(len(set(given)) == len(given), f"duplicates in {given}")
    expect(
        set(given) == wanted,
        f"auth_events of a {pdu['type']} are {[names.get(e, e) for e in given]}, should be"
        f" {[names[e] for e in wanted]}",
    )


@check(
    "hub.auth_events",
    SELECTION,
    "auth_events MUST be create, power levels and the sender's membership.",
    role=HUB,
)
async def auth_events(s: Session) -> None:
    _, pdu = await _echoed(s)
    await _expect_selection(await rooms.room(s), pdu)


@check("hub.auth_events_join", SELECTION, "For a join, the join rules MUST be there too.", role=HUB)
async def auth_events_join(s: Session) -> None:
    room = await rooms.room(s)
    pdu = await room.appended(room.member("join", s.me.user(s.fresh("joiner"))))
    await _expect_selection(room, pdu)


@check(
    "hub.auth_events_member",
    SELECTION,
    "For a membership, the target's membership MUST be there too.",
    role=HUB,
)
async def auth_events_member(s: Session) -> None:
    room = await rooms.governed(s)
    target = s.me.user(s.fresh("kicked"))
    await room.appended(room.member("join", target))
    pdu = await room.appended(room.member("leave", s.me.user("moderator"), target=target))
    await _expect_selection(room, pdu)


@check(
    "hub.unknown_fields",
    LPDU,
    "Fields the hub does not know, at any depth, are kept: hashes cover them.",
    role=HUB,
)
async def unknown_fields(s: Session) -> None:
    room = await rooms.room(s)
    content = {"body": "x", "org.lmserver.conformance": {"deep": [1, {"er": None}], "empty": {}, "no": False}}
    pdu = await room.appended(
        room.seal(room.fields("m.room.message", content) | {"org.lmserver.unknown": ["kept"]})
    )
    expect(pdu["content"] == content, f"content became {pdu['content']}")
    expect(
        pdu.get("org.lmserver.unknown") == ["kept"],
        f"the top-level field became {pdu.get('org.lmserver.unknown')}",
    )
    expect(pdu["hashes"].get("sha256") == draft.pdu_hash(pdu), "hashes.sha256 does not cover them")


async def _survives(s: Session, content: dict[str, Any]) -> None:
    """An event with this content is accepted as it is: the hub hashes it as we do."""
    room = await rooms.room(s)
    pdu = await room.appended(room.lpdu("org.lmserver.conformance", content))
    expect(pdu["content"] == content, f"content {content!r} became {pdu['content']!r}")
    expect(pdu["hashes"].get("sha256") == draft.pdu_hash(pdu), f"another content hash for {content!r}")


@check(
    "canonical.key_order", CANONICAL, "RFC 8785: keys sort by UTF-16 code units (its own example).", role=HUB
)
async def key_order(s: Session) -> None:
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\xf6"]
    await _survives(s, {name: number for number, name in enumerate(names)})


@check("canonical.strings", CANONICAL, "RFC 8785: strings are escaped no more than JSON demands.", role=HUB)
async def strings(s: Session) -> None:
    await _survives(s, {"text": '\u20ac$\x0f\nA\'B"\\\\"/\x7f\u2028\xe9e\u0301', "tab": "\t\b\f\r"})


@check(
    "canonical.numbers", CANONICAL, "RFC 8785: integers up to 2^53-1 are written without exponent.", role=HUB
)
async def numbers(s: Session) -> None:
    await _survives(s, {"most": 2**53 - 1, "least": -(2**53) + 1, "zero": 0})


@check("canonical.nul", CANONICAL, "U+0000 is a character of JSON strings like any other.", role=HUB)
async def nul(s: Session) -> None:
    await _survives(s, {"text": "a\x00b"})


@check("hub.order", SENDING, "Events of one transaction are appended and sent in their order.", role=HUB)
async def order(s: Session) -> None:
    room = await rooms.room(s)
    lpdus = [room.message(f"number {number}") for number in range(20)]
    (await s.transaction(lpdus)).expect(200)
    pdus = [await room.echo(lpdu) for lpdu in lpdus]
    listed = [room.event_id(pdu) for pdu in room.events()]
    positions = [listed.index(room.event_id(pdu)) for pdu in pdus]
    expect(positions == sorted(positions), f"sent in the order {positions}")
    for before, after in pairwise(pdus):
        expect(after["prev_events"] == [room.event_id(before)], "they are not linked in their order")


@check("hub.full_transaction", SEND, "50 PDUs in a transaction are allowed.", role=HUB)
async def full_transaction(s: Session) -> None:
    room = await rooms.room(s)
    lpdus = [room.message(f"of fifty, number {number}") for number in range(50)]
    answer = (await s.transaction(lpdus)).expect(200)
    expect(not answer.get("failed_pdus"), f"failed: {answer.get('failed_pdus')}")
    await room.echo(lpdus[-1])


@check(
    "hub.retry",
    SEND,
    "The sender retries the exact same request with the same transaction ID until it sees 200.",
    role=HUB,
)
async def retry(s: Session) -> None:
    room = await rooms.room(s)
    refused: list[Inbound] = []

    async def refuse_twice(request: Inbound) -> Reply | None:
        if len(refused) == 2:
            return None
        refused.append(request)
        return 500, {"errcode": "M_UNKNOWN", "error": "Come again"}

    with s.me.intercepting("send", refuse_twice):
        lpdu = room.message("keep sending")
        (await s.transaction([lpdu])).expect(200)
        await s.me.until(
            lambda: room.find(lpdu), "the hub to send a refused transaction again", RETRY_SECONDS
        )
    sent = [(r.uri, r.body) for r in s.me.requests("send") if r in refused or r.uri == refused[0].uri]
    expect(len(sent) >= 3, f"{len(sent)} requests of the transaction came, two refused")
    expect(len({uri for uri, _ in sent}) == 1, f"the transaction ID changed: {[uri for uri, _ in sent]}")
    expect(len({body for _, body in sent}) == 1, "the body changed between the tries")


@check(
    "hub.one_in_flight",
    SEND,
    "The hub MUST wait for a 200 before it sends us another transaction.",
    role=HUB,
)
async def one_in_flight(s: Session) -> None:
    room = await rooms.room(s)
    lpdus = [room.message(s.fresh("at once ")) for _ in range(5)]
    with s.me.holding("send") as held:
        for lpdu in lpdus:
            (await s.transaction([lpdu])).expect(200)
        async with asyncio.timeout(WAIT):
            await held.came.wait()
        await asyncio.sleep(TIME_ENOUGH)
    for lpdu in lpdus:
        await room.echo(lpdu)
    expect(len(held.most) == 1, f"in flight at once: {held.most}")


@check(
    "hub.transaction_size", SEND, "There MUST NOT be more than 50 entries in pdus, nor 100 in edus.", role=HUB
)
async def transaction_size(s: Session) -> None:
    await rooms.room(s)
    for request in s.me.requests("send"):
        pdus, edus = request.fields.get("pdus", []), request.fields.get("edus", [])
        expect(len(pdus) <= 50, f"{request.uri} has {len(pdus)} pdus")
        expect(len(edus) <= 100, f"{request.uri} has {len(edus)} edus")


@check(
    "hub.fan_out",
    SENDING,
    "The hub MUST send events to all servers with a user joined to the room.",
    role=HUB,
)
async def fan_out(s: Session) -> None:
    room, user = await rooms.room(s), s.other.user("conformance")
    await room.handshake("join", user, persona=s.other)
    lpdu = room.message("to everybody")
    ours = await room.appended(lpdu)
    theirs = await room.echo(lpdu, s.other)
    expect(ours == theirs, f"the other server got another event: {theirs}")
    (await s.transaction([room.member("leave", user, persona=s.other)], persona=s.other)).expect(200)


@check(
    "hub.fan_out_kick",
    SENDING,
    "A kick is sent to the kicked user's server too, though no user of it is left.",
    role=HUB,
)
async def fan_out_kick(s: Session) -> None:
    room, user = await rooms.governed(s), s.other.user(s.fresh("kicked"))
    await room.handshake("join", user, persona=s.other)
    kick = room.member("leave", s.me.user("moderator"), target=user)
    await room.appended(kick)
    await room.echo(kick, s.other)


@check(
    "hub.own_events",
    SENDING,
    "Events the hub generates go out fully formed, hashed and signed by it.",
    role=HUB,
)
async def own_events(s: Session) -> None:
    room = await rooms.room(s)
    event_id = await s.user.send(
        room.room_id, "m.room.message", {"msgtype": "m.text", "body": "from the hub"}
    )

    def arrived() -> Event | None:
        return next(
            (e for e in s.me.pdus if e.get("room_id") == room.room_id and room.event_id(e) == event_id), None
        )

    pdu = await s.me.until(arrived, f"the hub's own event with the reference hash {event_id}")
    expect(("hub_server" in pdu) == ("lpdu" in pdu["hashes"]), "hub_server and hashes.lpdu go together")
    expect(pdu["hashes"].get("sha256") == draft.pdu_hash(pdu), "its content hash is wrong")
    message = draft.reference(pdu, s.version)
    expect(draft.has_signature(pdu, s.server, await s.server_keys(), message), "its signature is not valid")
