"""The server as a participant: how it joins, sends and leaves (D04 §Linearized PDU, §Joins)."""

from __future__ import annotations

import asyncio
from typing import Any

from lmserver.conformance import draft, our_rooms
from lmserver.conformance.draft import Event
from lmserver.conformance.model import Level, Role, check, expect
from lmserver.conformance.our_room import OurRoom
from lmserver.conformance.persona import RETRY_SECONDS, TIME_ENOUGH, WAIT, Inbound, Reply
from lmserver.conformance.session import Session

LPDU = "Linearized PDU"
MAKE_JOIN = "GET /_matrix/federation/v1/make_join/:roomId/:userId"
SEND_JOIN = "POST /_matrix/federation/v3/send_join/:txnId"
SEND_LEAVE = "POST /_matrix/federation/v3/send_leave/:txnId"
SEND_KNOCK = "POST /_matrix/federation/v3/send_knock/:txnId"
SEND = "PUT /_matrix/federation/v2/send/:txnId"
THEIRS = Role.PARTICIPANT


async def expect_lpdu(s: Session, event: Event) -> None:
    """All that an LPDU has to be, for events whose details other checks look at."""
    expect("auth_events" not in event and "prev_events" not in event, f"it has a place: {event}")
    expect(event.get("hub_server") == s.me.name, f"hub_server is {event.get('hub_server')!r}")
    expect(event["hashes"] == {"lpdu": {"sha256": draft.lpdu_hash(event)}}, f"hashes are {event['hashes']}")
    keys, message = await s.server_keys(), draft.reference(event, s.version)
    expect(draft.has_signature(event, s.server, keys, message), f"not validly signed: {event}")


# -- joining ----------------------------------------------------------------------------------------


@check(
    "participant.join",
    SEND_JOIN,
    "A server whose user wants to join uses make_join and send_join.",
    role=THEIRS,
)
async def join(s: Session) -> None:
    ours = await our_rooms.hub(s)
    if s.client is None:
        await our_rooms.joined(s)
        return
    room = ours.open()
    await our_rooms.join(s, room)
    await our_rooms.sent(s, "send_join", room)


@check("participant.versions", MAKE_JOIN, "ver names the room versions the server supports.", role=THEIRS)
async def versions(s: Session) -> None:
    room = await our_rooms.joined(s)
    asked = [r for r in s.me.requests("make_join") if r.arguments[0] == room.room_id]
    expect(asked, "no make_join came")
    expect(s.version in asked[0].query("ver"), f"ver is {asked[0].query('ver')}")
    expect(asked[0].arguments[1] == our_rooms.their_user(s), f"the user is {asked[0].arguments[1]}")


@check(
    "participant.join_lpdu",
    SEND_JOIN,
    "What is sent is an LPDU: the user's join, hashed and signed.",
    role=THEIRS,
)
async def join_lpdu(s: Session) -> None:
    room = await our_rooms.joined(s)
    event, user = (await our_rooms.sent(s, "send_join", room)).fields, our_rooms.their_user(s)
    expect(event.get("type") == "m.room.member", f"type is {event.get('type')!r}")
    expect((event.get("sender"), event.get("state_key")) == (user, user), f"it is for another user: {event}")
    expect(event["content"].get("membership") == "join", f"content is {event['content']}")
    await expect_lpdu(s, event)


@check("participant.template_fields", MAKE_JOIN, "Other fields of the template SHOULD be removed.",
       role=THEIRS, level=Level.SHOULD)  # fmt: skip
async def template_fields(s: Session) -> None:
    ours = await our_rooms.hub(s)
    room = ours.open()

    async def more(request: Inbound) -> Reply | None:
        template = {
            "type": "m.room.member", "sender": request.arguments[1], "state_key": request.arguments[1],
            "room_id": room.room_id, "content": {"membership": "join", "org.lmserver.planted": True},
            "org.lmserver.planted": True, "origin_server_ts": 1, "hub_server": s.me.name,
        }  # fmt: skip
        return 200, {**template, "event": template, "room_version": room.version}

    with s.me.intercepting("make_join", more):
        await our_rooms.join(s, room)
    event = (await our_rooms.sent(s, "send_join", room)).fields
    expect("org.lmserver.planted" not in event, "an unknown field of the template is in the event")
    expect("org.lmserver.planted" not in event["content"], "unknown content of the template is in the event")
    expect(event["origin_server_ts"] != 1, "the template's origin_server_ts is in the event")


@check("participant.bare_template", MAKE_JOIN, "The response is the bare partial LPDU.", role=THEIRS)
async def bare_template(s: Session) -> None:
    ours = await our_rooms.hub(s)
    room = ours.open()

    async def bare(request: Inbound) -> Reply | None:
        user = request.arguments[1]
        if room.version not in request.query("ver"):
            return None
        return 200, {"type": "m.room.member", "sender": user, "state_key": user, "room_id": room.room_id,
                     "content": {"membership": "join"}}  # fmt: skip

    with s.me.intercepting("make_join", bare):
        await our_rooms.join(s, room)


@check("participant.hostile_template", "Rejecting Invites and Leaves",
       "Only the user's own leave is made of a template, whatever it asks for.",
       role=THEIRS, level=Level.SHOULD)  # fmt: skip
async def hostile_template(s: Session) -> None:
    ours = await our_rooms.hub(s)
    room, user = ours.open(join_rule="invite"), s.user.user_id
    (await our_rooms.invite(s, room, user)).expect(200)

    async def hostile(request: Inbound) -> Reply | None:
        event = {
            "type": "m.room.power_levels", "state_key": "", "sender": user, "room_id": room.room_id,
            "content": {"users": {room.owner: 100}},
        }  # fmt: skip
        return 200, {**event, "event": event, "room_version": room.version}

    since = len(s.me.received)
    with s.me.intercepting("make_leave", hostile):
        await s.user.call("POST", f"{s.user.room(room.room_id)}/leave", {})
    for request in s.me.requests("send_leave", since):
        expect(request.fields.get("type") == "m.room.member", f"it signed a {request.fields.get('type')}")
        expect(request.fields["content"].get("membership") == "leave", f"{request.fields['content']}")


@check("participant.unknown_version", MAKE_JOIN, "If room_version is unknown, send_join SHOULD NOT be used.",
       role=THEIRS, level=Level.SHOULD)  # fmt: skip
async def unknown_version(s: Session) -> None:
    ours = await our_rooms.hub(s)
    room = ours.open()

    async def unknown(request: Inbound) -> Reply | None:
        user = request.arguments[1]
        template = {"type": "m.room.member", "sender": user, "state_key": user,
                    "content": {"membership": "join"}}  # fmt: skip
        return 200, {**template, "event": template, "room_version": "org.lmserver.unknown"}

    since = len(s.me.received)
    with s.me.intercepting("make_join", unknown):
        answer = await our_rooms.try_to(s, "join", room)
    expect(answer.status != 200, f"the user is told {answer}")
    expect(not s.me.requests("send_join", since), "a send_join came")


# -- sending ----------------------------------------------------------------------------------------


async def _sent(s: Session) -> Event:
    """A message of their user, as it came to us."""
    room = await our_rooms.joined(s)
    return await s.once("message of theirs", lambda: our_rooms.lpdu(s, room, "from a participant"))


@check(
    "participant.lpdu", SEND, "A participant sends an event of its user to the hub, as an LPDU.", role=THEIRS
)
async def lpdu(s: Session) -> None:
    room = await our_rooms.joined(s)
    event = await our_rooms.lpdu(s, room, "an LPDU, please")
    expect(event["sender"] == s.user.user_id, f"sender is {event['sender']}")
    expect(event["type"] == "m.room.message", f"type is {event['type']}")


@check(
    "participant.no_place",
    LPDU,
    "The participant MUST NOT populate auth_events and prev_events.",
    role=THEIRS,
)
async def no_place(s: Session) -> None:
    event = await _sent(s)
    for name in ("auth_events", "prev_events"):
        expect(name not in event, f"{name} is {event.get(name)!r}")


@check(
    "participant.only_lpdu_hash",
    LPDU,
    "The participant MUST NOT populate hashes, except hashes.lpdu.",
    role=THEIRS,
)
async def only_lpdu_hash(s: Session) -> None:
    event = await _sent(s)
    expect(set(event["hashes"]) == {"lpdu"}, f"hashes are {event['hashes']}")


@check(
    "participant.lpdu_hash",
    LPDU,
    "The participant MUST populate hashes.lpdu, covering the partial event.",
    role=THEIRS,
)
async def lpdu_hash(s: Session) -> None:
    event = await _sent(s)
    expect(
        event["hashes"]["lpdu"].get("sha256") == draft.lpdu_hash(event),
        f"hashes.lpdu is {event['hashes']['lpdu']}, should be {draft.lpdu_hash(event)}",
    )


@check("participant.signature", LPDU, "The participant signs the partial event.", role=THEIRS)
async def signature(s: Session) -> None:
    event = await _sent(s)
    message = draft.reference(event, s.version)
    expect(
        draft.has_signature(event, s.server, await s.server_keys(), message),
        f"no valid signature of {s.server}: {event.get('signatures')} over {message.decode()}",
    )


@check("participant.schema", "Events", "The fields of the event have their form.", role=THEIRS)
async def schema(s: Session) -> None:
    event = await _sent(s)
    expect(event.get("hub_server") == s.me.name, f"hub_server is {event.get('hub_server')!r}")
    expect(
        type(event.get("origin_server_ts")) is int, f"origin_server_ts is {event.get('origin_server_ts')!r}"
    )
    expect(isinstance(event.get("content"), dict), f"content is {event.get('content')!r}")
    stray = set(event) & {"unsigned", "event_id", "depth", "origin"}
    expect(not stray, f"not of this event format: {sorted(stray)}")


@check(
    "participant.event_id",
    "Reference Hash Calculation",
    "The event's ID is the reference hash of the hub's PDU.",
    role=THEIRS,
)
async def event_id(s: Session) -> None:
    room = await our_rooms.joined(s)
    told = await s.user.send(room.room_id, "m.room.message", {"msgtype": "m.text", "body": "what ID?"})
    expect(room.find(told) is not None, f"the user is told {told}, which is no event of the room")


@check("participant.canonical", "Canonical JSON", "RFC 8785: keys sort by UTF-16 code units.", role=THEIRS)
async def canonical(s: Session) -> None:
    room = await our_rooms.joined(s)
    content = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\xf6": 7}
    await s.user.send(room.room_id, "org.lmserver.conformance", content)
    event = next(e for e in room.lpdus if e.get("content") == content)
    expect(event["hashes"]["lpdu"].get("sha256") == draft.lpdu_hash(event), "hashed in another order")


async def _answered_late(s: Session, room: OurRoom, refusals: int) -> list[Inbound]:
    """Send a message whose first transactions are answered 500; the requests that came for it."""
    refused: list[Inbound] = []

    async def refuse(request: Inbound) -> Reply | None:
        if len(refused) == refusals:
            return None
        refused.append(request)
        return 500, {"errcode": "M_UNKNOWN", "error": "Come again"}

    since = len(s.me.received)
    with s.me.intercepting("send", refuse):
        await our_rooms.lpdu(s, room, s.fresh("keep trying "), RETRY_SECONDS)
    return [r for r in s.me.requests("send", since) if r.fields.get("pdus")]


@check(
    "participant.retry",
    SEND,
    "The sender retries the exact same request with the same transaction ID until it sees 200.",
    role=THEIRS,
)
async def retry(s: Session) -> None:
    requests = await _answered_late(s, await our_rooms.joined(s), 2)
    expect(len(requests) >= 3, f"{len(requests)} requests came, two were refused")
    expect(len({r.uri for r in requests[:3]}) == 1, f"transaction IDs: {[r.uri for r in requests[:3]]}")
    expect(len({r.body for r in requests[:3]}) == 1, "the body changed between the tries")


@check(
    "participant.one_in_flight",
    SEND,
    "The sender MUST wait for a 200 before it sends another transaction.",
    role=THEIRS,
)
async def one_in_flight(s: Session) -> None:
    room = await our_rooms.joined(s)
    with s.me.holding("send") as held:
        sends = [asyncio.create_task(our_rooms.lpdu(s, room, s.fresh("at once "))) for _ in range(5)]
        try:
            async with asyncio.timeout(WAIT):
                await held.came.wait()
            await asyncio.sleep(TIME_ENOUGH)
        finally:
            held.free.set()
            await asyncio.gather(*sends)
    expect(len(held.most) == 1, f"in flight at once: {held.most}")


# -- leaving and knocking --------------------------------------------------------------------------


@check(
    "participant.leave",
    "Rejecting Invites and Leaves",
    "A user's leave reaches the hub as an LPDU.",
    role=THEIRS,
)
async def leave(s: Session) -> None:
    ours = await our_rooms.hub(s)
    room = ours.open()
    await our_rooms.join(s, room)
    await s.user.ok("POST", f"{s.user.room(room.room_id)}/leave", {})
    event = await s.me.until(lambda: _member(room, "leave"), "the user's leave")
    await expect_lpdu(s, event)


def _member(room: OurRoom, membership: str) -> Event | None:
    """The LPDU of this membership, if it came."""
    return next((e for e in room.lpdus if e.get("content", {}).get("membership") == membership), None)


@check("participant.join_again", SEND_JOIN, "A user who left may join again.", role=THEIRS)
async def join_again(s: Session) -> None:
    ours = await our_rooms.hub(s)
    room = ours.open()
    await our_rooms.join(s, room)
    await s.user.ok("POST", f"{s.user.room(room.room_id)}/leave", {})
    await s.me.until(lambda: _member(room, "leave"), "the user's leave")
    await our_rooms.join(s, room)
    event_id = await ours.say(room, "welcome back")
    await our_rooms.seen(s, room, event_id)


@check(
    "participant.knock",
    SEND_KNOCK,
    "A user's knock is sent with make_knock and send_knock, as an LPDU.",
    role=THEIRS,
)
async def knock(s: Session) -> None:
    ours = await our_rooms.hub(s)
    room = ours.open(join_rule="knock")
    answer = await our_rooms.try_to(s, "knock", room)
    expect(answer.status == 200, f"the user is told {answer}")
    event: Any = (await our_rooms.sent(s, "send_knock", room)).fields
    expect(event["content"].get("membership") == "knock", f"content is {event['content']}")
    await expect_lpdu(s, event)
