"""What redaction keeps, seen on LPDUs whose content hash is wrong (D04 §Event Redactions), and what
power levels are when they are not given (D04 §Calculating Power Levels)."""

from __future__ import annotations

from typing import Any

from lmserver.conformance import draft, rooms
from lmserver.conformance.draft import Event
from lmserver.conformance.model import Role, check, expect
from lmserver.conformance.remote_room import RemoteRoom
from lmserver.conformance.session import Session

REDACTIONS = "Event Redactions"
POWER = "Calculating Power Levels"
HUB = Role.HUB
EXTRA = {"org.lmserver.extra": {"not": "kept"}}


async def _redacted(room: RemoteRoom, lpdu: Event) -> Event:
    """The PDU of an LPDU whose content got something more after it was hashed."""
    changed = {**lpdu, "content": {**lpdu["content"], **EXTRA}}
    (await room.session.transaction([changed])).expect(200)
    return await room.echo(changed)


def _register(name: str, type_: str, text: str, content: dict[str, Any] | None) -> None:
    """A state event of the moderator's; without content the power levels as they are."""

    @check(f"redactions.{name}", REDACTIONS, text, role=HUB)
    async def kept(s: Session) -> None:
        room = await rooms.governed(s)
        now = room.state()[type_, ""]["content"] if content is None else content
        sender = s.me.user("moderator")
        pdu = await _redacted(room, room.lpdu(type_, now, sender=sender, state_key=""))
        expect(pdu["content"] == now, f"{now} with more in it became {pdu['content']}")


for _name, _type, _text, _content in (
    ("power_levels", "m.room.power_levels", "m.room.power_levels retains its nine fields.", None),
    ("join_rules", "m.room.join_rules", "m.room.join_rules retains join_rule.", {"join_rule": "public"}),
    ("history_visibility", "m.room.history_visibility",
     "m.room.history_visibility retains history_visibility.", {"history_visibility": "shared"}),
    ("other_state", "m.room.topic", "Of other events no content is retained.", {}),
):  # fmt: skip
    _register(_name, _type, _text, _content)


@check("redactions.member", REDACTIONS, "m.room.member retains membership.", role=HUB)
async def member(s: Session) -> None:
    room = await rooms.room(s)
    pdu = await _redacted(room, room.member("join", s.me.user(s.fresh("redacted"))))
    expect(pdu["content"] == {"membership": "join"}, f"the content is {pdu['content']}")


@check("redactions.top_level", REDACTIONS, "Top-level fields that are not listed are stripped.", role=HUB)
async def top_level(s: Session) -> None:
    room = await rooms.room(s)
    fields = room.fields("m.room.message", {"body": "x"}) | {"org.lmserver.unknown": "stripped"}
    pdu = await _redacted(room, room.seal(fields))
    expect("org.lmserver.unknown" not in pdu, f"it became {pdu}")
    message = draft.reference(pdu, s.version)
    expect(draft.has_signature(pdu, s.server, await s.server_keys(), message), "the hub's signature is wrong")


# -- defaults ---------------------------------------------------------------------------------------


async def _bare(s: Session) -> RemoteRoom:
    """A room whose power levels say nothing but who is the owner, with a user of ours in it."""

    async def make() -> RemoteRoom:
        room = await rooms.made(s, preset="public_chat")
        await s.user.put_state(room.room_id, "m.room.power_levels", {"users": {s.user.user_id: 100}})
        await room.join(s.me.user("conformance"))
        return room

    return await s.once("room with default levels", make)


@check("levels.message", POWER, "events_default is 0: anybody in the room may send messages.", role=HUB)
async def message_default(s: Session) -> None:
    room = await _bare(s)
    await room.appended(room.message("by default"))


@check("levels.invite", POWER, "invite is 0: anybody in the room may invite.", role=HUB)
async def invite_default(s: Session) -> None:
    room = await _bare(s)
    target = s.me.user(s.fresh("invited"))
    await room.appended(room.member("invite", s.me.user("conformance"), target=target))


@check("levels.state", POWER, "state_default is 50: users_default, 0, is not enough for state.", role=HUB)
async def state_default(s: Session) -> None:
    room = await _bare(s)
    await room.refused(room.lpdu("m.room.topic", {"topic": "by default"}, state_key=""))


@check("levels.kick", POWER, "kick is 50: users_default, 0, is not enough to kick.", role=HUB)
async def kick_default(s: Session) -> None:
    room, target = await _bare(s), s.me.user(s.fresh("target"))
    await room.appended(room.member("join", target))
    await room.refused(room.member("leave", s.me.user("conformance"), target=target))


@check("levels.ban", POWER, "ban is 50: users_default, 0, is not enough to ban.", role=HUB)
async def ban_default(s: Session) -> None:
    room = await _bare(s)
    target = s.me.user(s.fresh("target"))
    await room.refused(room.member("ban", s.me.user("conformance"), target=target))
