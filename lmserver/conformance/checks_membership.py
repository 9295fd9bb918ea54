"""Invites, leaves and knocks with the server as the hub (D04 §Room Membership)."""

from __future__ import annotations

from typing import Any

from lmserver.conformance import draft, rooms
from lmserver.conformance.checks_join import expect_template, newcomer, private
from lmserver.conformance.draft import Event
from lmserver.conformance.model import Level, Role, check, expect
from lmserver.conformance.persona import Inbound, Persona, Reply
from lmserver.conformance.remote_room import RemoteRoom
from lmserver.conformance.session import Session

MAKE_LEAVE = "GET /_matrix/federation/v1/make_leave/:roomId/:userId"
SEND_LEAVE = "POST /_matrix/federation/v3/send_leave/:txnId"
MAKE_KNOCK = "GET /_matrix/federation/v1/make_knock/:roomId/:userId"
SEND_KNOCK = "POST /_matrix/federation/v3/send_knock/:txnId"
INVITE = "POST /_matrix/federation/v3/invite/:txnId"
STRIPPED = "Stripped State"
HUB = Role.HUB


def expect_stripped(events: Any) -> list[Event]:
    expect(isinstance(events, list), f"stripped state is {events!r}")
    listed: list[Event] = list(events or [])
    for event in listed:
        expect(
            set(event) == {"sender", "type", "state_key", "content"},
            f"stripped state has only sender, type, state_key and content, not {sorted(event)}",
        )
    return listed


# -- leaves -------------------------------------------------------------------------------------------


@check(
    "leave.template", MAKE_LEAVE, "The response has room_version, and event MUST be a partial LPDU.", role=HUB
)
async def leave_template(s: Session) -> None:
    room = await rooms.room(s)
    user = s.me.user("conformance")
    answer = (await room.make("leave", user)).expect(200)
    expect(answer.get("room_version") == s.version, f"room_version is {answer.get('room_version')!r}")
    expect(isinstance(answer.get("event"), dict), f"event is {answer.get('event')!r}")
    expect_template(answer, "leave", user)


@check(
    "leave.make_forbidden", MAKE_LEAVE, "A leave the auth rules forbid is answered 403 M_FORBIDDEN.", role=HUB
)
async def leave_make_forbidden(s: Session) -> None:
    (await (await rooms.room(s)).make("leave", newcomer(s))).expect(403, "M_FORBIDDEN")


@check("leave.unknown_room", MAKE_LEAVE, "A room ID that is not known is answered 404 M_NOT_FOUND.", role=HUB)
async def leave_unknown_room(s: Session) -> None:
    room = RemoteRoom(s, f"!nosuchroom:{s.server}")
    (await room.make("leave", newcomer(s))).expect(404, "M_NOT_FOUND")


@check("leave.sent", SEND_LEAVE, "A leave is appended and answered with an empty object.", role=HUB)
async def leave_sent(s: Session) -> None:
    room, user = await rooms.room(s), newcomer(s)
    await room.appended(room.member("join", user))
    lpdu = room.member("leave", user)
    answer = (await room.send_member("leave", lpdu)).expect(200)
    expect(answer == {}, f"the answer is {answer}")
    await room.echo(lpdu)


@check("leave.send_forbidden", SEND_LEAVE, "The auth rules are checked again: 403 M_FORBIDDEN.", role=HUB)
async def leave_send_forbidden(s: Session) -> None:
    room = await rooms.room(s)
    (await room.send_member("leave", room.member("leave", newcomer(s)))).expect(403, "M_FORBIDDEN")


# -- invites from the hub ------------------------------------------------------------------------------


async def _invitation(s: Session) -> tuple[RemoteRoom, Event]:
    """A private room, and the invite request that came for our user."""

    async def make() -> tuple[RemoteRoom, Event]:
        room, user = await rooms.made(s, preset="private_chat", name="Conformance"), s.me.user("invited")
        await s.user.change(room.room_id, "invite", user)
        return room, await invited(s.me, room.room_id, user)

    return await s.once("invite", make)


async def invited(persona: Persona, room_id: str, user: str) -> Event:
    """The invite request for a user of ours, once it has come."""

    def found() -> Event | None:
        for request in persona.invites:
            event = request.get("event") or {}
            if (event.get("room_id"), event.get("state_key")) == (room_id, user):
                return request
        return None

    return await persona.until(found, f"the invite of {user}")


@check(
    "invite.request",
    INVITE,
    "The hub sends event, room_version and invite_room_state to the target's server.",
    role=HUB,
)
async def invite_request(s: Session) -> None:
    _, request = await _invitation(s)
    expect(request.get("room_version") == s.version, f"room_version is {request.get('room_version')!r}")
    event = request["event"]
    expect(event.get("type") == "m.room.member", f"type MUST be m.room.member: {event}")
    expect(event["content"].get("membership") == "invite", f"membership MUST be invite: {event}")


@check(
    "invite.event", INVITE, "The event is fully formed: hashed, signed by the hub, with its place.", role=HUB
)
async def invite_event(s: Session) -> None:
    _, request = await _invitation(s)
    event = request["event"]
    expect(len(event.get("prev_events", [])) == 1 and event.get("auth_events"), f"it has no place: {event}")
    expect(event["hashes"].get("sha256") == draft.pdu_hash(event), "its content hash is wrong")
    message = draft.reference(event, s.version)
    expect(
        draft.has_signature(event, s.server, await s.server_keys(), message), "the hub's signature is wrong"
    )


@check(
    "invite.stripped_state",
    STRIPPED,
    "Stripped state MUST only have sender, type, state_key and content.",
    role=HUB,
)
async def invite_stripped_state(s: Session) -> None:
    _, request = await _invitation(s)
    expect_stripped(request.get("invite_room_state", []))


@check("invite.stripped_types", STRIPPED, "Create, name and join rules SHOULD be in it, if in the room.",
       role=HUB, level=Level.SHOULD)  # fmt: skip
async def invite_stripped_types(s: Session) -> None:
    _, request = await _invitation(s)
    types = {event["type"] for event in request.get("invite_room_state", [])}
    missing = {"m.room.create", "m.room.name", "m.room.join_rules"} - types
    expect(not missing, f"missing: {sorted(missing)}")


@check("invite.then_join", INVITE, "Who is invited may join.", role=HUB)
async def invite_then_join(s: Session) -> None:
    room, user = await rooms.made(s, preset="private_chat"), s.me.user(s.fresh("invited"))
    await s.user.change(room.room_id, "invite", user)
    await room.handshake("join", user)
    membership = await s.user.membership(room.room_id, user)
    expect(membership == "join", f"the membership is {membership}")


@check("invite.then_reject", SEND_LEAVE, "An invite is rejected with make_leave and send_leave.", role=HUB)
async def invite_then_reject(s: Session) -> None:
    room, user = await private(s), s.me.user(s.fresh("invited"))
    await s.user.change(room.room_id, "invite", user)
    await room.handshake("leave", user)
    membership = await s.user.membership(room.room_id, user)
    expect(membership == "leave", f"the membership is {membership}")


@check(
    "invite.refused_by_target",
    INVITE,
    "An invite that the target's server refuses is not appended.",
    role=HUB,
)
async def invite_refused_by_target(s: Session) -> None:
    room, user = await rooms.made(s, preset="private_chat"), s.me.user(s.fresh("unwilling"))

    async def refuse(request: Inbound) -> Reply | None:
        return 403, {"errcode": "M_FORBIDDEN", "error": "No invites, please"}

    with s.me.intercepting("invite", refuse):
        body = {"user_id": user}
        answer = await s.user.call("POST", f"{s.user.room(room.room_id)}/invite", body)
    expect(answer.status != 200, f"the user is told {answer}")
    membership = await s.user.membership(room.room_id, user)
    expect(membership != "invite", f"the membership is {membership}")


# -- invites through the hub --------------------------------------------------------------------------


async def _proxy(s: Session, room: RemoteRoom, sender: str, target: str) -> Any:
    content = {
        "event": room.member("invite", sender, target=target),
        "room_version": s.version,
        "invite_room_state": [],
    }
    return await s.me.ask("POST", s.paths.invite(s.fresh()), content)


@check(
    "invite.proxied",
    INVITE,
    "A participant's invite is completed and sent on; the signed event comes back.",
    role=HUB,
)
async def invite_proxied(s: Session) -> None:
    room, user = await rooms.governed(s), s.other.user(s.fresh("invited"))
    answer = (await _proxy(s, room, s.me.user("moderator"), user)).expect(200)
    await invited(s.other, room.room_id, user)
    pdu = answer["pdu"]
    expect((pdu["sender"], pdu["state_key"]) == (s.me.user("moderator"), user), f"another event: {pdu}")
    missing = {s.me.name, s.other.name, s.server} - set(pdu["signatures"])
    expect(not missing, f"not signed by {sorted(missing)}")


@check(
    "invite.proxied_appended",
    INVITE,
    "The hub appends the signed event and sends it to all participants.",
    role=HUB,
)
async def invite_proxied_appended(s: Session) -> None:
    room, user = await rooms.governed(s), s.other.user(s.fresh("invited"))
    answer = (await _proxy(s, room, s.me.user("moderator"), user)).expect(200)

    def sent() -> Event | None:
        return next((e for e in s.me.pdus if e.get("state_key") == user), None)

    pdu = await s.me.until(sent, "the hub to send the invite to us as a participant")
    expect(pdu == answer["pdu"], f"another event than was answered: {pdu}")


@check("invite.proxied_refusal", INVITE, "The target server's refusal SHOULD be proxied verbatim.",
       role=HUB, level=Level.SHOULD)  # fmt: skip
async def invite_proxied_refusal(s: Session) -> None:
    room, user = await rooms.governed(s), s.other.user(s.fresh("unwilling"))

    async def refuse(request: Inbound) -> Reply | None:
        return 403, {"errcode": "M_FORBIDDEN", "error": "This user is shy"}

    with s.other.intercepting("invite", refuse):
        answer = await _proxy(s, room, s.me.user("moderator"), user)
    answer.expect(403, "M_FORBIDDEN")
    expect(answer.fields.get("error") == "This user is shy", f"the answer is {answer}")


@check("invite.forbidden", INVITE, "An invite the auth rules forbid is answered 403 M_FORBIDDEN.", role=HUB)
async def invite_forbidden(s: Session) -> None:
    room = await rooms.governed(s)
    answer = await _proxy(s, room, s.me.user("conformance"), s.other.user(s.fresh("invited")))
    answer.expect(403, "M_FORBIDDEN")


# -- knocks -------------------------------------------------------------------------------------------


async def _knocking(s: Session) -> RemoteRoom:
    """A room one may knock on."""
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    return await s.once(
        "room to knock on",
        lambda: rooms.made(s, preset="private_chat", name="Knock, please", initial_state=[rule]),
    )


@check(
    "knock.template",
    MAKE_KNOCK,
    "The response MUST be a partial LPDU: a knock of the user in the path.",
    role=HUB,
)
async def knock_template(s: Session) -> None:
    room, user = await _knocking(s), newcomer(s)
    expect_template((await room.make("knock", user)).expect(200), "knock", user)


@check(
    "knock.version",
    MAKE_KNOCK,
    "A room version not in `ver` is answered 400 M_INCOMPATIBLE_ROOM_VERSION.",
    role=HUB,
)
async def knock_version(s: Session) -> None:
    room = await _knocking(s)
    answer = await room.make("knock", newcomer(s), "org.lmserver.unknown")
    answer.expect(400, "M_INCOMPATIBLE_ROOM_VERSION")


@check(
    "knock.make_forbidden", MAKE_KNOCK, "A knock the auth rules forbid is answered 403 M_FORBIDDEN.", role=HUB
)
async def knock_make_forbidden(s: Session) -> None:
    (await (await rooms.room(s)).make("knock", newcomer(s))).expect(403, "M_FORBIDDEN")


@check("knock.unknown_room", MAKE_KNOCK, "A room ID that is not known is answered 404 M_NOT_FOUND.", role=HUB)
async def knock_unknown_room(s: Session) -> None:
    room = RemoteRoom(s, f"!nosuchroom:{s.server}")
    (await room.make("knock", newcomer(s))).expect(404, "M_NOT_FOUND")


@check("knock.sent", SEND_KNOCK, "A knock is appended; the answer has stripped_state.", role=HUB)
async def knock_sent(s: Session) -> None:
    room, user = await _knocking(s), newcomer(s)
    answer = await room.handshake("knock", user)
    expect_stripped(answer.get("stripped_state"))
    membership = await s.user.membership(room.room_id, user)
    expect(membership == "knock", f"the membership is {membership}")


@check("knock.retracted", SEND_LEAVE, "A knock is retracted with make_leave and send_leave.", role=HUB)
async def knock_retracted(s: Session) -> None:
    room, user = await _knocking(s), newcomer(s)
    await room.handshake("knock", user)
    await room.handshake("leave", user)
    membership = await s.user.membership(room.room_id, user)
    expect(membership == "leave", f"the membership is {membership}")


@check("knock.approved", "Knocks", "A knock is approved by an invite, which lets the user join.", role=HUB)
async def knock_approved(s: Session) -> None:
    room, user = await _knocking(s), newcomer(s)
    await room.handshake("knock", user)
    await s.user.change(room.room_id, "invite", user)
    await invited(s.me, room.room_id, user)
    await room.handshake("join", user)


@check(
    "knock.join_forbidden", "Auth Rules Algorithm", "5.2.4: in a knock room a join needs an invite.", role=HUB
)
async def knock_join_forbidden(s: Session) -> None:
    room, user = await _knocking(s), newcomer(s)
    await room.handshake("knock", user)
    (await room.send_member("join", room.member("join", user))).expect(403, "M_FORBIDDEN")


@check("knock.send_forbidden", SEND_KNOCK, "The auth rules are checked again: 403 M_FORBIDDEN.", role=HUB)
async def knock_send_forbidden(s: Session) -> None:
    room = await private(s)
    (await room.send_member("knock", room.member("knock", newcomer(s)))).expect(403, "M_FORBIDDEN")
