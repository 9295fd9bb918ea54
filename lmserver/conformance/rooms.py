"""The rooms that checks share: how the suite comes into one of the server under test."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from lmserver.conformance.model import Failed, Skipped
from lmserver.conformance.remote_room import RemoteRoom
from lmserver.conformance.session import Session

LEVELS = {"org.lmserver.conformance.high": 75, "org.lmserver.conformance.low": 0}


async def room(s: Session) -> RemoteRoom:
    """A public room of the server, with our users `conformance` and, if a user of the server made it
    for us, `moderator` (level 50) in it."""
    return await s.once("room", lambda: _room(s))


async def governed(s: Session) -> RemoteRoom:
    """The same, where we know who has which power level."""
    if s.client is None:
        raise Skipped("needs a room in which our users have power: --client-url")
    return await room(s)


async def made(s: Session, **body: Any) -> RemoteRoom:
    """A new room, not joined yet."""
    return RemoteRoom(s, await s.user.create_room(room_version=s.version, **body))


async def found(s: Session) -> RemoteRoom:
    """The room the suite may join, not joined yet."""
    return await s.once("room to join", lambda: _found(s))


async def _room(s: Session) -> RemoteRoom:
    joined = await found(s)
    await joined.join(s.me.user("conformance"))
    if s.client is not None:
        await joined.appended(joined.member("join", s.me.user("moderator")))
    return joined


async def _found(s: Session) -> RemoteRoom:
    if s.options.room is not None:
        return RemoteRoom(s, s.options.room)
    if s.options.alias is not None:
        uri = "/_matrix/federation/v1/query/directory?room_alias=" + quote(s.options.alias, safe="")
        return RemoteRoom(s, (await s.me.ask("GET", uri)).expect(200)["room_id"])
    if s.client is not None:
        return await made(s, preset="public_chat", power_level_content_override=levels(s))
    return await _invited(s)


def levels(s: Session) -> dict[str, Any]:
    """Power levels with something to forbid at every level."""
    return {
        "users": {s.user.user_id: 100, s.me.user("moderator"): 50},
        "users_default": 0,
        "events": LEVELS,
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 75,
        "invite": 50,
    }


async def _invited(s: Session) -> RemoteRoom:
    """A room that a person invites us to."""
    user = s.me.user("conformance")
    if not s.options.wait:
        raise Skipped("needs a room: --client-url, --room, --alias, or --wait for an invite")
    s.say(f"Invite {user} to a room of version {s.version} on {s.server}, within {s.options.wait:.0f} s.")
    try:
        invite = await s.me.until(
            lambda: s.me.invites[-1] if s.me.invites else None, "an invite", s.options.wait
        )
    except Failed as error:
        raise Skipped(str(error)) from error
    return RemoteRoom(s, invite["event"]["room_id"])
