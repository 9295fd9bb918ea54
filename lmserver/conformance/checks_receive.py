"""The server as a participant: what it makes of what the hub sends (D04 §Receiving Events/PDUs)."""

from __future__ import annotations

from typing import Any

from lmserver.conformance import draft, our_rooms
from lmserver.conformance.draft import Event
from lmserver.conformance.model import Level, Role, check, expect
from lmserver.conformance.our_hub import OurHub
from lmserver.conformance.our_room import OurRoom
from lmserver.conformance.session import Session

RECEIVING = "Receiving Events/PDUs"
EVENTS = "Events"
RULES = "Auth Rules Algorithm"
TXN = "Transaction Identifiers"
SEND = "PUT /_matrix/federation/v2/send/:txnId"
WRONG = "M_WRONG_SERVER"
THEIRS = Role.PARTICIPANT


async def _sent(s: Session, ours: OurHub, room: OurRoom, pdu: Event) -> Event:
    """What the user sees of an event that is sent to their server."""
    await ours.flush(room)
    return await our_rooms.seen(s, room, room.event_id(pdu))


async def _room(s: Session) -> tuple[OurHub, OurRoom]:
    """Our hub, and a room of it with a user of the server, whose eyes we have."""
    ours, room = await our_rooms.hub(s), await our_rooms.joined(s)
    _ = s.user
    await ours.flush(room)
    return ours, room


async def _fresh(s: Session) -> tuple[OurHub, OurRoom, str]:
    """A room of its own for a check that may break it, with a user of our other server in it."""
    ours = await our_rooms.hub(s)
    room, user = ours.open(), s.other.user("third")
    fields = room.fields("m.room.member", {"membership": "join"}, sender=user, state_key=user)
    room.append(room.lpdu(s.other, fields))
    await our_rooms.join(s, room)
    return ours, room, user


async def _unseen(s: Session, ours: OurHub, room: OurRoom, bad: Event) -> None:
    """Deliver an event that has to be dropped, then an honest one at the same place."""
    (await ours.deliver(room, [bad])).expect(200)
    shown = await s.user.event(room.room_id, room.event_id(bad))
    expect(shown is None, f"the user sees {shown}")
    await our_rooms.seen(s, room, await ours.say(room, "after one that is dropped"))


# -- what is accepted -------------------------------------------------------------------------------


@check("receive.message", SEND, "A PDU of the hub is accepted; its ID is its reference hash.", role=THEIRS)
async def message(s: Session) -> None:
    ours, room = await _room(s)
    shown = await our_rooms.seen(s, room, await ours.say(room, "can you see this?"))
    expect(shown.get("content", {}).get("body") == "can you see this?", f"the user sees {shown}")


@check("receive.state", SEND, "A state event of the hub changes the state.", role=THEIRS)
async def state(s: Session) -> None:
    ours, room = await _room(s)
    topic = s.fresh("topic ")
    room.append(room.fields("m.room.topic", {"topic": topic}, state_key=""))
    await ours.flush(room)
    found = await s.user.ok("GET", f"{s.user.room(room.room_id)}/state/m.room.topic/")
    expect(found.get("topic") == topic, f"the topic is {found}")


@check(
    "receive.unknown_fields",
    EVENTS,
    "Fields a server does not know are kept: hash and ID cover them.",
    role=THEIRS,
)
async def unknown_fields(s: Session) -> None:
    ours, room = await _room(s)
    content = {"body": "x", "org.lmserver.conformance": {"deep": [1, {"er": None}]}}
    pdu = room.append({**room.fields("m.room.message", content), "org.lmserver.unknown": ["kept"]})
    shown = await _sent(s, ours, room, pdu)
    expect(shown.get("content") == content, f"the user sees {shown}")


@check("receive.key_order", "Canonical JSON", "RFC 8785: keys sort by UTF-16 code units.", role=THEIRS)
async def key_order(s: Session) -> None:
    ours, room = await _room(s)
    content = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\xf6": 7}
    pdu = room.append(room.fields("org.lmserver.conformance", content))
    shown = await _sent(s, ours, room, pdu)
    expect(shown.get("content") == content, f"the user sees {shown}")


@check("receive.order", SEND, "Events are in the order of the list, in and across transactions.", role=THEIRS)
async def order(s: Session) -> None:
    ours, room = await _room(s)
    wanted = [room.event_id(room.append(room.message(f"number {n}"))) for n in range(60)]
    await ours.flush(room)
    found = await s.user.ok("GET", f"{s.user.room(room.room_id)}/messages?dir=b&limit=60")
    shown = [event["event_id"] for event in found["chunk"]][::-1]
    expect([e for e in shown if e in wanted] == wanted, f"the user sees {len(shown)} events in another order")


async def _third(s: Session) -> tuple[OurHub, OurRoom, str]:
    """The same room, with a user of our other server in it."""
    ours, room = await _room(s)
    user = s.other.user("third")
    if ("m.room.member", user) not in room.state:
        fields = room.fields("m.room.member", {"membership": "join"}, sender=user, state_key=user)
        room.append(room.lpdu(s.other, fields))
        await ours.flush(room)
    return ours, room, user


@check(
    "receive.third_server",
    SEND,
    "An event of a third server, completed by the hub, is accepted.",
    role=THEIRS,
)
async def third_server(s: Session) -> None:
    ours, room, user = await _third(s)
    fields = room.fields("m.room.message", {"msgtype": "m.text", "body": "from a third"}, sender=user)
    pdu = room.append(room.lpdu(s.other, fields))
    shown = await _sent(s, ours, room, pdu)
    expect(shown.get("sender") == user, f"the user sees {shown}")


@check("receive.largest", EVENTS, "A PDU of exactly 65536 bytes is allowed.", role=THEIRS)
async def largest(s: Session) -> None:
    ours, room = await _room(s)
    pdu = room.add(_of_size(room, draft.MAX_EVENT))
    await _sent(s, ours, room, pdu)


def _of_size(room: OurRoom, size: int) -> Event:
    empty = room.fields("m.room.message", {"body": ""})
    missing = size - len(draft.canonical(room.complete(empty)))
    return room.complete({**empty, "content": {"body": "x" * missing}})


@check("receive.duplicate", RECEIVING, "An event that is known already is not received again.", role=THEIRS)
async def duplicate(s: Session) -> None:
    ours, room = await _room(s)
    pdu = room.append(room.message("twice"))
    for _ in range(2):
        (await ours.deliver(room, [pdu])).expect(200)
    await ours.say(room, "after it came twice")
    found = await s.user.ok("GET", f"{s.user.room(room.room_id)}/messages?dir=b&limit=20")
    ids = [event["event_id"] for event in found["chunk"]]
    expect(ids.count(room.event_id(pdu)) == 1, f"the user sees it {ids.count(room.event_id(pdu))} times")


@check(
    "receive.same_response",
    TXN,
    "Requests with the same transaction ID MUST get the same response.",
    role=THEIRS,
)
async def same_response(s: Session) -> None:
    ours, room = await _room(s)
    txn_id, pdu = s.fresh(), room.append(room.message("one transaction"))
    first = (await ours.deliver(room, [pdu], txn_id)).expect(200)
    second = (await ours.deliver(room, [pdu], txn_id)).expect(200)
    expect(first == second, f"first {first}, then {second}")


@check("receive.kick", SEND, "A kick by the hub takes the user out of the room.", role=THEIRS)
async def kick(s: Session) -> None:
    ours = await our_rooms.hub(s)
    room = ours.open()
    await our_rooms.join(s, room)
    room.append(room.fields("m.room.member", {"membership": "leave"}, state_key=s.user.user_id))
    await ours.flush(room)
    joined = (await s.user.ok("GET", "/joined_rooms"))["joined_rooms"]
    expect(room.room_id not in joined, "the user is still joined")


# -- what is not ------------------------------------------------------------------------------------


@check("receive.unsigned", RECEIVING, "A PDU without the hub's signature is dropped.", role=THEIRS)
async def unsigned(s: Session) -> None:
    ours, room, _ = await _fresh(s)
    await _unseen(s, ours, room, {**room.complete(room.message("unsigned")), "signatures": {}})


@check("receive.bad_signature", RECEIVING, "A PDU whose hub signature is not valid is dropped.", role=THEIRS)
async def bad_signature(s: Session) -> None:
    ours, room, _ = await _fresh(s)
    forger = draft.Key.make(s.me.name, s.me.key.key_id)
    await _unseen(s, ours, room, forger.sign_event(room.complete(room.message("forged")), room.version))


@check(
    "receive.bad_sender_signature",
    RECEIVING,
    "The sender's server MUST have signed the LPDU, else it is dropped.",
    role=THEIRS,
)
async def bad_sender_signature(s: Session) -> None:
    ours, room, user = await _fresh(s)
    lpdu = room.lpdu(s.other, room.fields("m.room.message", {"body": "forged by the hub"}, sender=user))
    forger = draft.Key.make(s.other.name, s.other.key.key_id)
    await _unseen(
        s, ours, room, room.complete(forger.sign_event(draft.without(lpdu, "signatures"), room.version))
    )


@check(
    "receive.changed_lpdu",
    RECEIVING,
    "An LPDU's content that the hub changed is redacted: its hash is wrong.",
    role=THEIRS,
)
async def changed_lpdu(s: Session) -> None:
    ours, room, user = await _fresh(s)
    lpdu = room.lpdu(s.other, room.fields("m.room.message", {"body": "as it was sent"}, sender=user))
    pdu = room.append({**lpdu, "content": {"body": "as the hub would have it"}})
    await ours.flush(room)
    shown = await s.user.event(room.room_id, room.event_id(pdu))
    expect(shown is None or shown.get("content") == {}, f"the user sees {shown}")


@check(
    "receive.hash_mismatch",
    RECEIVING,
    "If the PDU's content hash does not match, the redacted copy is kept.",
    role=THEIRS,
)
async def hash_mismatch(s: Session) -> None:
    ours, room, _ = await _fresh(s)
    pdu = room.complete(room.message("as it was hashed"))
    changed = room.add({**pdu, "content": {"msgtype": "m.text", "body": "changed on the way"}})
    shown = await _sent(s, ours, room, changed)
    expect(shown.get("content") == {}, f"the user sees {shown}")


@check("receive.lpdu", SEND, "An LPDU sent to a server that is not the hub is dropped.", role=THEIRS)
async def lpdu(s: Session) -> None:
    ours, room, user = await _fresh(s)
    await _unseen(
        s, ours, room, room.lpdu(s.other, room.fields("m.room.message", {"body": "an LPDU"}, sender=user))
    )


@check("receive.too_large", EVENTS, "An event MUST NOT exceed 65536 bytes.", role=THEIRS)
async def too_large(s: Session) -> None:
    ours, room, _ = await _fresh(s)
    await _unseen(s, ours, room, _of_size(room, draft.MAX_EVENT + 1))


@check(
    "receive.two_prev_events",
    EVENTS,
    "An event with hub_server has exactly one entry in prev_events.",
    role=THEIRS,
)
async def two_prev_events(s: Session) -> None:
    ours, room, user = await _fresh(s)
    lpdu = room.lpdu(s.other, room.fields("m.room.message", {"body": "two parents"}, sender=user))
    parents = [room.event_id(event) for event in room.events[-2:]]
    await _unseen(s, ours, room, room.complete(lpdu, prev_events=parents))


@check(
    "receive.bad_among_good",
    SEND,
    "Each event is processed by itself: a bad one fails no other.",
    role=THEIRS,
)
async def bad_among_good(s: Session) -> None:
    ours, room, _ = await _fresh(s)
    junk: list[Any] = [None, 7, "text", {}, {"room_id": room.room_id, "auth_events": []},
                       {**room.complete(room.message("unsigned")), "signatures": {}}]  # fmt: skip
    first = room.append(room.message("before"))
    last = room.append(room.message("after"))
    (await ours.deliver(room, [first, *junk, last])).expect(200)
    await our_rooms.seen(s, room, room.event_id(first))
    await our_rooms.seen(s, room, room.event_id(last))


async def _soft_failed(s: Session, room: OurRoom, ours: OurHub, pdu: Event) -> None:
    """A forbidden event in the hub's list: not shown, and what follows it is."""
    room.add(pdu, applies=False)
    await ours.flush(room)
    await our_rooms.seen(s, room, await ours.say(room, "after a forbidden event"))
    shown = await s.user.event(room.room_id, room.event_id(pdu))
    expect(shown is None, f"the user sees {shown}")


@check("receive.forbidden", RULES, "Participants SHOULD check the auth rules too: a message from outside.",
       role=THEIRS, level=Level.SHOULD)  # fmt: skip
async def forbidden(s: Session) -> None:
    ours, room, _ = await _fresh(s)
    await _soft_failed(s, room, ours, room.complete(room.fields("m.room.message", {"body": "from outside"},
                                                                sender=s.me.user("outsider"))))  # fmt: skip


@check("receive.forbidden_state", RULES, "Participants SHOULD check the auth rules too: state without power.",
       role=THEIRS, level=Level.SHOULD)  # fmt: skip
async def forbidden_state(s: Session) -> None:
    ours, room, user = await _fresh(s)
    fields = room.fields("m.room.topic", {"topic": "taken over"}, sender=user, state_key="")
    await _soft_failed(s, room, ours, room.complete(room.lpdu(s.other, fields)))
    answer = await s.user.call("GET", f"{s.user.room(room.room_id)}/state/m.room.topic/")
    expect(answer.fields.get("topic") != "taken over", "the forbidden topic is the room's")


@check("receive.auth_events", "Auth Events Selection", "Participants SHOULD check auth_events too.",
       role=THEIRS, level=Level.SHOULD)  # fmt: skip
async def auth_events(s: Session) -> None:
    ours, room, _ = await _fresh(s)
    rules = room.event_id(room.state["m.room.join_rules", ""])
    fields = room.message("with too many auth_events")
    cited = [*room.place(fields)["auth_events"], rules]
    await _soft_failed(s, room, ours, room.complete(fields, auth_events=cited))


@check("receive.second_create", RULES, "3.1: participants SHOULD refuse a second create event too.",
       role=THEIRS, level=Level.SHOULD)  # fmt: skip
async def second_create(s: Session) -> None:
    ours, room, _ = await _fresh(s)
    fields = room.fields("m.room.create", {"room_version": room.version}, state_key="")
    await _unseen(s, ours, room, room.complete(fields, **room.place(room.message())))


@check("receive.bypassing", SEND, "A PDU of a participant that did not go through the hub SHOULD be refused.",
       role=THEIRS, level=Level.SHOULD)  # fmt: skip
async def bypassing(s: Session) -> None:
    ours, room, user = await _fresh(s)
    fields = room.fields("m.room.message", {"body": "past the hub"}, sender=user)
    pdu = s.other.key.sign_event(room.hashed({**fields, **room.place(fields)}), room.version)
    (await s.transaction([pdu], persona=s.other)).expect(200)
    shown = await s.user.event(room.room_id, room.event_id(pdu))
    expect(shown is None, f"the user sees {shown}")
    await our_rooms.seen(s, room, await ours.say(room, "through the hub"))


@check("receive.replay", RECEIVING, "An LPDU that the hub appends again SHOULD have no second effect.",
       role=THEIRS, level=Level.SHOULD)  # fmt: skip
async def replay(s: Session) -> None:
    ours, room, user = await _fresh(s)
    lpdu = room.lpdu(s.other, room.fields("m.room.message", {"body": "only once"}, sender=user))
    first = room.append(lpdu)
    await _sent(s, ours, room, first)
    await _soft_failed(s, room, ours, room.complete(lpdu))


# -- what only a hub does -----------------------------------------------------------------------------


def _register_wrong(name: str, section: str) -> None:
    @check(
        f"wrong_server.{name}",
        section,
        f"A server that is not the hub answers {name} 400 {WRONG}.",
        role=THEIRS,
    )
    async def wrong_server(s: Session) -> None:
        _, room = await _room(s)
        user = s.me.user("asking")
        if name.startswith("make_"):
            membership = name.removeprefix("make_")
            uri = s.paths.make_member(membership, room.room_id, user, s.version)
            answer = await s.me.ask("GET", uri)
        elif name.startswith("send_"):
            membership = name.removeprefix("send_")
            fields = room.fields("m.room.member", {"membership": membership}, sender=user, state_key=user)
            lpdu = room.lpdu(s.me, fields)
            lpdu = s.me.key.sign_event(
                {**draft.without(lpdu, "signatures"), "hub_server": s.server}, s.version
            )
            answer = await s.me.ask("POST", s.paths.send_member(membership, s.fresh()), lpdu)
        else:
            event_id = room.event_id(room.events[-1])
            answer = await s.me.ask("GET", s.paths.state(room.room_id, event_id, ids=name == "state_ids"))
        answer.expect(400, WRONG)


for _name, _section in {
    "make_join": "GET /_matrix/federation/v1/make_join/:roomId/:userId",
    "make_leave": "GET /_matrix/federation/v1/make_leave/:roomId/:userId",
    "make_knock": "GET /_matrix/federation/v1/make_knock/:roomId/:userId",
    "send_join": "POST /_matrix/federation/v3/send_join/:txnId",
    "send_leave": "POST /_matrix/federation/v3/send_leave/:txnId",
    "send_knock": "POST /_matrix/federation/v3/send_knock/:txnId",
    "state": "GET /_matrix/federation/v1/state/:roomId",
    "state_ids": "GET /_matrix/federation/v1/state_ids/:roomId",
}.items():
    _register_wrong(_name, _section)
