"""Joining a room of the server (D04 §Joins, §Make and Send Handshake)."""

from __future__ import annotations

from typing import Any

from lmserver.conformance import draft, rooms
from lmserver.conformance.draft import Event
from lmserver.conformance.model import Level, Role, check, expect
from lmserver.conformance.remote_room import RemoteRoom
from lmserver.conformance.session import Session

MAKE = "GET /_matrix/federation/v1/make_join/:roomId/:userId"
SEND = "POST /_matrix/federation/v3/send_join/:txnId"
HANDSHAKE = "Make and Send Handshake"
HUB = Role.HUB


def template_of(answer: Event) -> Event:
    """The partial LPDU: bare, as the draft has it for joins, or in `event`, as known peers have it."""
    event = answer.get("event")
    return event if isinstance(event, dict) else answer


def expect_template(answer: Event, membership: str, user: str) -> None:
    template = template_of(answer)
    expect(template.get("type") == "m.room.member", f"type is {template.get('type')!r}")
    expect(template.get("state_key") == user, f"state_key is {template.get('state_key')!r}")
    expect(template.get("sender") == user, f"sender is {template.get('sender')!r}")
    content = template.get("content")
    expect(isinstance(content, dict) and content.get("membership") == membership, f"content is {content!r}")
    for name in ("auth_events", "prev_events"):
        expect(name not in template, f"a partial LPDU has no {name}")


def newcomer(s: Session) -> str:
    """A user of ours who is in no room yet."""
    return s.me.user(s.fresh("newcomer"))


async def private(s: Session) -> RemoteRoom:
    """A room one can only be invited to."""
    return await s.once("private room", lambda: rooms.made(s, preset="private_chat"))


@check(
    "join.template", MAKE, "The response MUST be a partial LPDU: a join of the user in the path.", role=HUB
)
async def template(s: Session) -> None:
    room, user = await rooms.room(s), newcomer(s)
    expect_template((await room.make("join", user)).expect(200), "join", user)


@check(
    "join.version", MAKE, "A room version not in `ver` is answered 400 M_INCOMPATIBLE_ROOM_VERSION.", role=HUB
)
async def version(s: Session) -> None:
    room = await rooms.room(s)
    answer = await room.make("join", newcomer(s), "org.lmserver.unknown", "1")
    answer.expect(400, "M_INCOMPATIBLE_ROOM_VERSION")


@check("join.versions", MAKE, "`ver` is repeated: one match among several is enough.", role=HUB)
async def versions(s: Session) -> None:
    room = await rooms.room(s)
    (await room.make("join", newcomer(s), "org.lmserver.unknown", s.version, "1")).expect(200)


@check("join.unknown_room", MAKE, "A room ID that is not known is answered 404 M_NOT_FOUND.", role=HUB)
async def unknown_room(s: Session) -> None:
    room = RemoteRoom(s, f"!nosuchroom:{s.server}")
    (await room.make("join", newcomer(s))).expect(404, "M_NOT_FOUND")


@check("join.make_forbidden", MAKE, "A join the auth rules forbid is answered 403 M_FORBIDDEN.", role=HUB)
async def make_forbidden(s: Session) -> None:
    (await (await private(s)).make("join", newcomer(s))).expect(403, "M_FORBIDDEN")


@check("join.another_servers_user", MAKE, "A template for a user of another server SHOULD be refused.",
       role=HUB, level=Level.SHOULD)  # fmt: skip
async def another_servers_user(s: Session) -> None:
    room = await rooms.room(s)
    answer = await room.make("join", "@somebody:elsewhere.example.org")
    expect(answer.status in (400, 403), f"the answer is {answer}")


@check("join.accepted", SEND, "A join the auth rules allow is appended: 200 with the event.", role=HUB)
async def accepted(s: Session) -> None:
    room, user = await rooms.found(s), newcomer(s)
    answer = await room.handshake("join", user)
    expect(isinstance(answer.get("event"), dict), f"the answer has no event: {list(answer)}")
    event = answer["event"]
    expect((event["sender"], event["state_key"]) == (user, user), f"another event: {event}")


@check("join.response", SEND, "The response has state, auth_chain and event.", role=HUB)
async def response(s: Session) -> None:
    answer = await _joined(s)
    for name, kind in (("state", list), ("auth_chain", list), ("event", dict)):
        expect(isinstance(answer.get(name), kind), f"{name} is {type(answer.get(name)).__name__}")


async def _joined(s: Session) -> Event:
    """The answer to our first join of the room."""
    room = await rooms.room(s)
    return room.joins[s.me.user("conformance")]


@check("join.event", SEND, "event is the fully formed PDU of the LPDU that was sent.", role=HUB)
async def event(s: Session) -> None:
    pdu = (await _joined(s))["event"]
    for name in ("auth_events", "prev_events", "hashes", "signatures"):
        expect(name in pdu, f"it has no {name}: {pdu}")
    expect(pdu["hashes"].get("lpdu", {}).get("sha256") == draft.lpdu_hash(pdu), "its LPDU is another one")
    keys = {s.me.key.key_id: s.me.key.public}
    message = draft.reference(draft.lpdu_of(pdu), s.version)
    expect(draft.has_signature(pdu, s.me.name, keys, message), "our signature of the LPDU is gone")


@check(
    "join.state_prior", SEND, "state is the current state before the join: our join is not in it.", role=HUB
)
async def state_prior(s: Session) -> None:
    answer = await _joined(s)
    state = [(e["type"], e.get("state_key")) for e in answer["state"]]
    expect(("m.room.member", s.me.user("conformance")) not in state, "the join itself is in the state")


@check("join.state_complete", SEND, "state holds the room's current state, one event for each key.", role=HUB)
async def state_complete(s: Session) -> None:
    answer = await _joined(s)
    state = [(e["type"], e.get("state_key")) for e in answer["state"]]
    expect(all(key is not None for _, key in state), "there is an event in it that is no state event")
    expect(len(set(state)) == len(state), "two events for one type and state key")
    wanted = {("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", "")}
    missing = wanted - set(state) if s.client is not None else {("m.room.create", "")} - set(state)
    expect(not missing, f"missing: {missing}")


@check("join.state_hashes", SEND, "The content hashes of the events in state are right.", role=HUB)
async def state_hashes(s: Session) -> None:
    for pdu in (await _joined(s))["state"]:
        expect(pdu["hashes"].get("sha256") == draft.pdu_hash(pdu), f"wrong content hash on {pdu}")


@check("join.state_signatures", SEND, "The events in state are signed by the hub.", role=HUB)
async def state_signatures(s: Session) -> None:
    keys = await s.server_keys()
    for pdu in (await _joined(s))["state"]:
        message = draft.reference(pdu, s.version)
        expect(draft.has_signature(pdu, s.server, keys, message), f"no valid signature of the hub on {pdu}")


@check(
    "join.auth_chain",
    SEND,
    "auth_chain holds the auth events of the state, and theirs, recursively.",
    role=HUB,
)
async def auth_chain(s: Session) -> None:
    answer = await _joined(s)
    expect_auth_chain(s, answer["state"], answer["auth_chain"])


def expect_auth_chain(s: Session, state: list[Event], chain: list[Event]) -> None:
    """Everything cited is there, among state or chain, up to the create event."""
    known = {draft.event_id(pdu, s.version): pdu for pdu in chain}
    cited = [cited for pdu in [*state, *chain] for cited in pdu["auth_events"]]
    expect(set(cited) <= set(known), f"cited and not in auth_chain: {sorted(set(cited) - set(known))}")


@check("join.idempotent", SEND, "The same transaction ID gets the same response, once processed.", role=HUB)
async def idempotent(s: Session) -> None:
    room, user = await rooms.room(s), newcomer(s)
    lpdu, txn_id = room.member("join", user), s.fresh()
    first = (await room.send_member("join", lpdu, txn_id=txn_id)).expect(200)
    second = (await room.send_member("join", lpdu, txn_id=txn_id)).expect(200)
    expect(first == second, "the second answer is another one")


@check("join.send_forbidden", SEND, "The auth rules are checked again: 403 M_FORBIDDEN.", role=HUB)
async def send_forbidden(s: Session) -> None:
    room = await private(s)
    (await room.send_member("join", room.member("join", newcomer(s)))).expect(403, "M_FORBIDDEN")


@check("join.unsigned", HANDSHAKE, "An LPDU that its sender's server did not sign is not accepted.", role=HUB)
async def unsigned(s: Session) -> None:
    room = await rooms.room(s)
    lpdu: Any = {**room.member("join", newcomer(s)), "signatures": {}}
    answer = await room.send_member("join", lpdu)
    expect(400 <= answer.status < 500, f"the answer is {answer}")


@check("join.not_a_join", SEND, "What is sent is a join membership event, nothing else.", role=HUB)
async def not_a_join(s: Session) -> None:
    room = await rooms.room(s)
    for lpdu in (room.member("leave", newcomer(s)), room.message("not a join")):
        answer = await room.send_member("join", lpdu)
        expect(400 <= answer.status < 500, f"{lpdu['type']} is answered {answer}")


@check("join.send_unknown_room", SEND, "The errors are those of make_join: 404 M_NOT_FOUND.", role=HUB)
async def send_unknown_room(s: Session) -> None:
    room = RemoteRoom(s, f"!nosuchroom:{s.server}")
    (await room.send_member("join", room.member("join", newcomer(s)))).expect(404, "M_NOT_FOUND")
