"""The server as the one whose user is invited (D04 §Invites, §Rejecting Invites and Leaves)."""

from __future__ import annotations

from typing import Any

from lmserver.conformance import draft, our_rooms
from lmserver.conformance.checks_participant import expect_lpdu
from lmserver.conformance.draft import Event
from lmserver.conformance.model import Level, Role, check, expect
from lmserver.conformance.our_room import OurRoom
from lmserver.conformance.session import Session

INVITE = "POST /_matrix/federation/v3/invite/:txnId"
LEAVES = "Rejecting Invites and Leaves"
THEIRS = Role.PARTICIPANT


async def _closed(s: Session) -> tuple[OurRoom, str]:
    """A new room of ours that needs an invite, and the user to invite."""
    ours = await our_rooms.hub(s)
    return ours.open(join_rule="invite"), our_rooms.their_user(s)


async def _signed(s: Session) -> tuple[Event, Event]:
    """An invite as we sent it, and as it came back."""

    async def make() -> tuple[Event, Event]:
        room, user = await _closed(s)
        event = our_rooms.invite_of(room, user)
        answer = (await our_rooms.invite(s, room, user, event=event)).expect(200)
        return event, our_rooms.signed_event(answer)

    return await s.once("invite of their user", make)


@check("invited.accepted", INVITE, "The response has the invite as `pdu`.", role=THEIRS)
async def accepted(s: Session) -> None:
    room, user = await _closed(s)
    answer = (await our_rooms.invite(s, room, user)).expect(200)
    pdu = our_rooms.signed_event(answer)
    expect(isinstance(pdu, dict), f"the answer is {answer}")


@check("invited.signature", INVITE, "The target server signs the event.", role=THEIRS)
async def signature(s: Session) -> None:
    _, pdu = await _signed(s)
    message = draft.reference(pdu, s.version)
    expect(
        draft.has_signature(pdu, s.server, await s.server_keys(), message),
        f"no valid signature of {s.server}: {pdu.get('signatures')}",
    )


@check(
    "invited.unchanged", INVITE, "The event comes back as it was sent, with one more signature.", role=THEIRS
)
async def unchanged(s: Session) -> None:
    sent, pdu = await _signed(s)
    expect(
        draft.without(pdu, "signatures") == draft.without(sent, "signatures"), f"sent {sent}, came back {pdu}"
    )
    kept = pdu.get("signatures", {}).get(s.me.name)
    expect(kept == sent["signatures"][s.me.name], f"our signature became {kept}")


@check(
    "invited.version",
    INVITE,
    "An unsupported room version is answered 400 M_INCOMPATIBLE_ROOM_VERSION.",
    role=THEIRS,
)
async def version(s: Session) -> None:
    room, user = await _closed(s)
    answer = await our_rooms.invite(s, room, user, room_version="org.lmserver.unknown")
    answer.expect(400, "M_INCOMPATIBLE_ROOM_VERSION")


async def _not_signed(s: Session, room: OurRoom, user: str, event: Any) -> None:
    answer = await our_rooms.invite(s, room, user, event=event)
    expect(400 <= answer.status < 500, f"the answer is {answer}")


@check("invited.stable_version", "Room Versions", "Servers MUST implement support for I.1.", role=THEIRS)
async def stable_version(s: Session) -> None:
    hub, user = await our_rooms.hub(s), our_rooms.their_user(s)
    room = OurRoom(hub.persona, f"!{s.fresh('stable')}:{s.me.name}", draft.STABLE_VERSION, join_rule="invite")
    (await our_rooms.invite(s, room, user)).expect(200)


@check("invited.not_a_member_event", INVITE, "type MUST be m.room.member.", role=THEIRS)
async def not_a_member_event(s: Session) -> None:
    room, user = await _closed(s)
    fields = room.fields("org.lmserver.conformance", {"membership": "invite"}, state_key=user)
    await _not_signed(s, room, user, room.complete(fields))


@check("invited.not_an_invite", INVITE, "membership in content MUST be invite.", role=THEIRS)
async def not_an_invite(s: Session) -> None:
    room, user = await _closed(s)
    fields = room.fields("m.room.member", {"membership": "leave"}, state_key=user)
    await _not_signed(s, room, user, room.complete(fields))


@check(
    "invited.no_event",
    "Malformed Requests",
    "An invite without an event is answered 400 M_BAD_JSON.",
    role=THEIRS,
)
async def no_event(s: Session) -> None:
    room, user = await _closed(s)
    (await our_rooms.invite(s, room, user, event=None)).expect(400, "M_BAD_JSON")


@check("invited.unsigned", INVITE, "An invite that its hub did not sign is not accepted.", role=THEIRS)
async def unsigned(s: Session) -> None:
    room, user = await _closed(s)
    await _not_signed(s, room, user, {**our_rooms.invite_of(room, user), "signatures": {}})


@check("invited.forged", INVITE, "An invite whose signature is not valid is not accepted.", role=THEIRS)
async def forged(s: Session) -> None:
    room, user = await _closed(s)
    forger = draft.Key.make(s.me.name, s.me.key.key_id)
    await _not_signed(s, room, user, forger.sign_event(our_rooms.invite_of(room, user), s.version))


@check("invited.another_servers_user", INVITE, "An invite for a user of another server SHOULD be refused.",
       role=THEIRS, level=Level.SHOULD)  # fmt: skip
async def another_servers_user(s: Session) -> None:
    room, _ = await _closed(s)
    await _not_signed(s, room, "", our_rooms.invite_of(room, "@somebody:elsewhere.example.org"))


@check("invited.in_their_name", INVITE, "An invite by the server's own user, from us, SHOULD NOT be signed.",
       role=THEIRS, level=Level.SHOULD)  # fmt: skip
async def in_their_name(s: Session) -> None:
    room, user = await _closed(s)
    fields = room.fields("m.room.member", {"membership": "invite"}, sender=user, state_key=user)
    await _not_signed(s, room, user, room.complete(fields))


@check(
    "invited.same_response",
    "Transaction Identifiers",
    "The same transaction ID gets the same response.",
    role=THEIRS,
)
async def same_response(s: Session) -> None:
    room, user = await _closed(s)
    content = {"event": our_rooms.invite_of(room, user), "room_version": s.version,
               "invite_room_state": room.stripped()}  # fmt: skip
    uri = s.paths.invite(s.fresh())
    first = (await s.me.ask("POST", uri, content)).expect(200)
    second = (await s.me.ask("POST", uri, content)).expect(200)
    expect(first == second, "the second answer is another one")


@check("invited.without_state", INVITE, "invite_room_state MAY be excluded from the request.", role=THEIRS)
async def without_state(s: Session) -> None:
    room, user = await _closed(s)
    content = {"event": our_rooms.invite_of(room, user), "room_version": s.version}
    (await s.me.ask("POST", s.paths.invite(s.fresh()), content)).expect(200)


@check("invited.join", INVITE, "Who is invited joins with make_join and send_join.", role=THEIRS)
async def join(s: Session) -> None:
    room, user = await _closed(s)
    (await our_rooms.invite(s, room, user)).expect(200)
    await s.user.ok("POST", f"{s.user.room(room.room_id)}/join", {})
    event = (await our_rooms.sent(s, "send_join", room)).fields
    await expect_lpdu(s, event)


@check(
    "invited.reject", LEAVES, "An invite is rejected with make_leave and send_leave, as an LPDU.", role=THEIRS
)
async def reject(s: Session) -> None:
    room, user = await _closed(s)
    (await our_rooms.invite(s, room, user)).expect(200)
    await s.user.ok("POST", f"{s.user.room(room.room_id)}/leave", {})
    event = (await our_rooms.sent(s, "send_leave", room)).fields
    expect((event["sender"], event["content"].get("membership")) == (user, "leave"), f"{event}")
    await expect_lpdu(s, event)
