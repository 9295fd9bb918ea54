"""The rooms of ours that checks share: how a user of the server under test comes into one."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

from lmserver.conformance import draft
from lmserver.conformance.draft import Event
from lmserver.conformance.exchange import Answer
from lmserver.conformance.model import Failed, Skipped
from lmserver.conformance.our_hub import OurHub
from lmserver.conformance.our_room import OurRoom
from lmserver.conformance.persona import WAIT, Inbound
from lmserver.conformance.session import Session


async def hub(s: Session) -> OurHub:
    """Our first name as a hub."""

    async def make() -> OurHub:
        made = OurHub(s, s.me)
        s.on_close(made.close)
        s.on_close(lambda: _leave_all(s))
        return made

    return await s.once("hub", make)


async def _leave_all(s: Session) -> None:
    """Take their user out of our rooms, so that nothing is kept for us when we are gone."""
    if s.client is not None:
        for room_id in (await s.client.ok("GET", "/joined_rooms"))["joined_rooms"]:
            if draft.server_of(room_id) == s.me.name:
                await s.client.call("POST", f"{s.client.room(room_id)}/leave", {})


def their_user(s: Session) -> str:
    """The user of the server that acts."""
    if s.client is not None:
        return s.client.user_id
    if s.options.user is None:
        raise Skipped("needs a user of the server: --client-url, or --user with --wait")
    return s.options.user


async def joined(s: Session) -> OurRoom:
    """A room of ours that a user of the server has joined."""
    return await s.once("room of ours with their user in it", lambda: _joined(s))


async def _joined(s: Session) -> OurRoom:
    ours = await hub(s)
    room = ours.open()
    if s.client is not None:
        await join(s, room)
    else:
        await _wait_for(s, ours, room, their_user(s))
    return room


async def join(s: Session, room: OurRoom) -> None:
    """Let their user join through the client API."""
    answer = await try_to(s, "join", room)
    if answer.status != 200:
        raise Failed(f"the user who joins {room.room_id} is told {answer}")


async def try_to(s: Session, what: str, room: OurRoom) -> Answer:
    """join or knock through the client API, naming us as the server to ask."""
    us = quote(s.me.name, safe="")
    return await s.user.call("POST", f"/{what}/{quote(room.room_id, safe='')}?server_name={us}&via={us}", {})


async def _wait_for(s: Session, ours: OurHub, room: OurRoom, user: str) -> None:
    """Invite a person, and wait until they have accepted."""
    if not s.options.wait:
        raise Skipped("needs a user of the server: --client-url, or --user with --wait")
    (await invite(s, room, user)).expect(200)
    s.say(f"Let {user} accept the invite from {room.owner}, within {s.options.wait:.0f} s.")

    def accepted() -> Event | None:
        event = room.state.get(("m.room.member", user))
        return event if event is not None and event["content"].get("membership") == "join" else None

    try:
        await s.me.until(accepted, "the invite to be accepted", s.options.wait)
    except Failed as error:
        raise Skipped(str(error)) from error


def invite_of(room: OurRoom, user: str) -> Event:
    """An invite of the owner's, complete, not appended."""
    return room.complete(room.fields("m.room.member", {"membership": "invite"}, state_key=user))


async def invite(s: Session, room: OurRoom, user: str, **changes: Any) -> Answer:
    """Invite a user of the server; the invite is in the room when the server has signed it."""
    content = {
        "event": invite_of(room, user), "room_version": room.version,
        "invite_room_state": room.stripped(), **changes,
    }  # fmt: skip
    answer = await s.me.ask("POST", s.paths.invite(s.fresh()), content)
    if answer.status == 200 and not changes:
        room.add(signed_event(answer.fields))
    return answer


def signed_event(answer: dict[str, Any]) -> Event:
    """`pdu` of an invite's answer, which the known peers call `event`."""
    event: Event = answer["pdu"] if "pdu" in answer else answer["event"]
    return event


async def sent(s: Session, endpoint: str, room: OurRoom, since: int = 0) -> Inbound:
    """The request to a send_ endpoint for a room of ours, once it has come."""

    def found() -> Inbound | None:
        asked = s.me.requests(endpoint, since)
        return next((r for r in asked if r.fields.get("room_id") == room.room_id), None)

    return await s.me.until(found, f"a {endpoint} for {room.room_id}")


async def lpdu(s: Session, room: OurRoom, text: str, seconds: float = WAIT) -> Event:
    """A message of their user, as the LPDU that came to us in this time."""

    def came() -> Event | None:
        return next((e for e in room.lpdus if e.get("content", {}).get("body") == text), None)

    content = {"msgtype": "m.text", "body": text}
    sending = asyncio.create_task(
        s.user.call("PUT", s.user.send_path(room.room_id, "m.room.message"), content)
    )
    try:
        found = await s.me.until(came, "the LPDU of a message of their user", seconds)
        # What the user is told then is another check's.
        await asyncio.wait([sending], timeout=2)
        return found
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def seen(s: Session, room: OurRoom, event_id: str) -> dict[str, Any]:
    """An event as their user sees it; it has been delivered before."""
    found = await s.user.event(room.room_id, event_id)
    if found is None:
        raise Failed(f"the user of {s.server} does not see {event_id}")
    return found
