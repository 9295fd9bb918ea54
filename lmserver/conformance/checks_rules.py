"""The auth rules, as a hub applies them to LPDUs (D04 §Auth Rules Algorithm).

Two tables: what has to be refused, and what has to be allowed. In the room our `conformance` has
level 0, `moderator` 50, the server's own user 100; see `rooms.levels`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from lmserver.conformance import rooms
from lmserver.conformance.draft import Event
from lmserver.conformance.model import Role, check
from lmserver.conformance.remote_room import RemoteRoom
from lmserver.conformance.session import Session

RULES = "Auth Rules Algorithm"
LEVELS = "m.room.power_levels"


@dataclass(frozen=True)
class Cast:
    """Who acts: `plain` and `moderator` are in the room, `outsider` is not, `owner` has level 100."""

    room: RemoteRoom
    plain: str
    moderator: str
    outsider: str
    owner: str

    async def joined(self) -> str:
        """One more user of ours with level 0."""
        user = self.room.session.me.user(self.room.session.fresh("joined"))
        await self.room.appended(self.room.member("join", user))
        return user

    async def banned(self) -> str:
        user = await self.joined()
        await self.room.appended(self.room.member("ban", self.moderator, target=user))
        return user

    async def gone(self) -> str:
        user = await self.joined()
        await self.room.appended(self.room.member("leave", user))
        return user

    def levels(self, **changes: Any) -> Event:
        """The moderator's event that changes the current power levels so."""
        content = {**self.room.state()["m.room.power_levels", ""]["content"], **changes}
        return self.room.lpdu(LEVELS, content, sender=self.moderator, state_key="")

    def current(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = dict(self.room.state()["m.room.power_levels", ""]["content"][name])
        return found


Act = Callable[[Cast], Awaitable[Event]]
"""Makes the event of a row."""


def _at_once(make: Callable[[Cast], Event]) -> Act:
    async def act(cast: Cast) -> Event:
        return make(cast)

    return act


async def _cast(s: Session) -> Cast:
    room = await rooms.governed(s)
    outsider = s.me.user(s.fresh("outsider"))
    return Cast(room, s.me.user("conformance"), s.me.user("moderator"), outsider, s.user.user_id)


async def _join_banned(c: Cast) -> Event:
    return c.room.member("join", await c.banned())


async def _invite_banned(c: Cast) -> Event:
    return c.room.member("invite", c.moderator, target=await c.banned())


async def _leave_banned(c: Cast) -> Event:
    return c.room.member("leave", await c.banned())


async def _unban_without_power(c: Cast) -> Event:
    return c.room.member("leave", c.plain, target=await c.banned())


async def _kick_without_power(c: Cast) -> Event:
    return c.room.member("leave", c.plain, target=await c.joined())


async def _kick_by_outsider(c: Cast) -> Event:
    return c.room.member("leave", c.outsider, target=await c.joined())


async def _ban_by_outsider(c: Cast) -> Event:
    return c.room.member("ban", c.outsider, target=await c.joined())


async def _ban_without_power(c: Cast) -> Event:
    return c.room.member("ban", c.plain, target=await c.joined())


async def _message_after_leaving(c: Cast) -> Event:
    return c.room.message("I left", sender=await c.gone())


async def _message_when_banned(c: Cast) -> Event:
    return c.room.message("I am banned", sender=await c.banned())


def _custom(c: Cast, type_: str, sender: str, state_key: str | None = None) -> Event:
    return c.room.lpdu(type_, {}, sender=sender, state_key=state_key)


HIGH = "org.lmserver.conformance.high"

FORBIDDEN: dict[str, tuple[str, Act]] = {
    "second_create": ("3.1: a create event with prev_events is rejected: a room has one.",
        _at_once(lambda c: c.room.lpdu("m.room.create", {"room_version": c.room.version},
                                       sender=c.moderator, state_key=""))),
    "member_without_state_key": ("5.1: a membership without state_key is rejected.",
        _at_once(lambda c: c.room.lpdu("m.room.member", {"membership": "join"}))),
    "member_without_membership": ("5.1: a membership event without membership is rejected.",
        _at_once(lambda c: c.room.lpdu("m.room.member", {}, state_key=c.plain))),
    "unknown_membership": ("5.7: an unknown membership is rejected.",
        _at_once(lambda c: c.room.member("org.lmserver.unknown", c.plain))),
    "join_for_another": ("5.2.2: a join for another user is rejected.",
        _at_once(lambda c: c.room.member("join", c.plain, target=c.outsider))),
    "join_when_banned": ("5.2.3: a banned user cannot join.", _join_banned),
    "invite_by_outsider": ("5.3.1: who is not in the room cannot invite.",
        _at_once(lambda c: c.room.member("invite", c.outsider, target=f"@x:{c.room.session.me.name}"))),
    "invite_of_member": ("5.3.2: who is in the room cannot be invited.",
        _at_once(lambda c: c.room.member("invite", c.moderator, target=c.plain))),
    "invite_of_banned": ("5.3.2: who is banned cannot be invited.", _invite_banned),
    "invite_without_power": ("5.3.4: an invite below the invite level is rejected.",
        _at_once(lambda c: c.room.member("invite", c.plain, target=c.outsider))),
    "leave_of_outsider": ("5.4.1: who is not in the room cannot leave it.",
        _at_once(lambda c: c.room.member("leave", c.outsider))),
    "leave_of_banned": ("5.4.1: a banned user cannot lift the ban by leaving.", _leave_banned),
    "kick_by_outsider": ("5.4.2: who is not in the room cannot kick.", _kick_by_outsider),
    "unban_without_power": ("5.4.3: an unban below the ban level is rejected.", _unban_without_power),
    "kick_without_power": ("5.4.5: a kick below the kick level is rejected.", _kick_without_power),
    "kick_of_higher": ("5.4.4: nobody kicks a user who is not below them.",
        _at_once(lambda c: c.room.member("leave", c.moderator, target=c.owner))),
    "ban_by_outsider": ("5.5.1: who is not in the room cannot ban.", _ban_by_outsider),
    "ban_without_power": ("5.5.3: a ban below the ban level is rejected.", _ban_without_power),
    "ban_of_higher": ("5.5.2: nobody bans a user who is not below them.",
        _at_once(lambda c: c.room.member("ban", c.moderator, target=c.owner))),
    "knock_on_public": ("5.6.1: a knock needs the join rule knock.",
        _at_once(lambda c: c.room.member("knock", c.outsider))),
    "outsider": ("6: the sender has to be joined.",
        _at_once(lambda c: c.room.message("from outside", sender=c.outsider))),
    "left": ("6: who has left sends nothing.", _message_after_leaving),
    "banned": ("6: who is banned sends nothing.", _message_when_banned),
    "event_level": ("7: an event needs the level that `events` gives for its type.",
        _at_once(lambda c: _custom(c, HIGH, c.plain))),
    "event_level_of_moderator": ("7: `events` overrides state_default.",
        _at_once(lambda c: _custom(c, HIGH, c.moderator, ""))),
    "state_level": ("7: a state event needs state_default.",
        _at_once(lambda c: _custom(c, "m.room.topic", c.plain, ""))),
    "anothers_state_key": ("8: a state_key that starts with @ is the sender.",
        _at_once(lambda c: _custom(c, "org.lmserver.conformance.state", c.moderator, c.plain))),
    "level_as_text": ("9.1: levels are integers, not text.", _at_once(lambda c: c.levels(kick="50"))),
    "level_as_boolean": ("9.1: levels are integers, not booleans.", _at_once(lambda c: c.levels(ban=True))),
    "events_no_object": ("9.2: events is an object.", _at_once(lambda c: c.levels(events=[]))),
    "events_level_as_text": ("9.2: the values of events are integers.",
        _at_once(lambda c: c.levels(events={**c.current("events"), "x": "0"}))),
    "users_no_user": ("9.3: the keys of users are user IDs.",
        _at_once(lambda c: c.levels(users={**c.current("users"), "nobody": 0}))),
    "users_level_as_text": ("9.3: the values of users are integers.",
        _at_once(lambda c: c.levels(users={**c.current("users"), c.plain: "10"}))),
    "lower_field_above_own": ("9.5.1: a level above the sender's own cannot be changed.",
        _at_once(lambda c: c.levels(redact=50))),
    "raise_field_above_own": ("9.5.2: no level is set above the sender's own.",
        _at_once(lambda c: c.levels(ban=51))),
    "add_field_above_own": ("9.5.2: no level is set above the sender's own, users_default neither.",
        _at_once(lambda c: c.levels(users_default=51))),
    "change_event_above_own": ("9.6.1: an event's level above the sender's own cannot be changed.",
        _at_once(lambda c: c.levels(events={**c.current("events"), HIGH: 50}))),
    "remove_event_above_own": ("9.6.1: nor removed.",
        _at_once(lambda c: c.levels(events={k: v for k, v in c.current("events").items() if k != HIGH}))),
    "add_event_above_own": ("9.7.1: no event's level is set above the sender's own.",
        _at_once(lambda c: c.levels(events={**c.current("events"), "org.lmserver.new": 51}))),
    "demote_higher": ("9.8.1: a user above the sender cannot be changed.",
        _at_once(lambda c: c.levels(users={**c.current("users"), c.owner: 0}))),
    "remove_higher": ("9.8.1: nor removed.",
        _at_once(lambda c: c.levels(users={k: v for k, v in c.current("users").items() if k != c.owner}))),
    "promote_self": ("9.9.1: nobody promotes themselves.",
        _at_once(lambda c: c.levels(users={**c.current("users"), c.moderator: 100}))),
    "promote_above_own": ("9.9.1: nobody is promoted above the sender.",
        _at_once(lambda c: c.levels(users={**c.current("users"), c.plain: 51}))),
}  # fmt: skip


async def _leave(c: Cast) -> Event:
    return c.room.member("leave", await c.joined())


async def _rejoin(c: Cast) -> Event:
    return c.room.member("join", await c.gone())


async def _kick(c: Cast) -> Event:
    return c.room.member("leave", c.moderator, target=await c.joined())


async def _ban(c: Cast) -> Event:
    return c.room.member("ban", c.moderator, target=await c.joined())


async def _unban(c: Cast) -> Event:
    return c.room.member("leave", c.moderator, target=await c.banned())


ALLOWED: dict[str, tuple[str, Act]] = {
    "join": ("5.2.5: anybody may join a public room.", _at_once(lambda c: c.room.member("join", c.outsider))),
    "join_again": ("5.2.5: who has left may join again.", _rejoin),
    "join_changed": ("5.2.5: who is joined may send their membership again, changed.",
        _at_once(lambda c: c.room.lpdu("m.room.member", {"membership": "join", "displayname": "C"},
                                       state_key=c.plain))),
    "invite": ("5.3.3: who has the level may invite.",
        _at_once(lambda c: c.room.member("invite", c.moderator, target=c.outsider))),
    "leave": ("5.4.1: who is joined may leave.", _leave),
    "kick": ("5.4.4: who has the level may kick whoever is below them.", _kick),
    "ban": ("5.5.2: who has the level may ban whoever is below them.", _ban),
    "ban_outsider": ("5.5.2: who is banned need not be in the room.",
        _at_once(lambda c: c.room.member("ban", c.moderator, target=c.outsider))),
    "unban": ("5.4.4: a kick lifts a ban.", _unban),
    "message": ("10: an event that no rule forbids is allowed.",
        _at_once(lambda c: c.room.message("allowed"))),
    "event_level": ("7: `events` may need less than the default.",
        _at_once(lambda c: _custom(c, "org.lmserver.conformance.low", c.plain, ""))),
    "state": ("7: who has state_default may send state.",
        _at_once(lambda c: c.room.lpdu("m.room.topic", {"topic": "Conformance"}, sender=c.moderator,
                                       state_key=""))),
    "own_state_key": ("8: one's own user ID may be the state_key.",
        _at_once(lambda c: _custom(c, "org.lmserver.conformance.state", c.moderator, c.moderator))),
    "levels_unchanged": ("9.10: power levels that change nothing are allowed.",
        _at_once(lambda c: c.levels())),
    "add_user": ("9.10: a user may be given a level up to the sender's own.",
        _at_once(lambda c: c.levels(users={**c.current("users"), c.outsider: 50}))),
    "add_event": ("9.10: an event may be given a level up to the sender's own.",
        _at_once(lambda c: c.levels(events={**c.current("events"), "org.lmserver.added": 50}))),
    "change_field": ("9.10: a level may be changed within the sender's own.",
        _at_once(lambda c: c.levels(kick=49 if c.room.state()[LEVELS, ""]["content"]["kick"] == 50 else 50))),
}  # fmt: skip


def _register_forbidden(name: str, text: str, act: Act) -> None:
    @check(f"rules.{name}", RULES, text, role=Role.HUB)
    async def forbidden(s: Session) -> None:
        cast = await _cast(s)
        await cast.room.refused(await act(cast))


def _register_allowed(name: str, text: str, act: Act) -> None:
    @check(f"allowed.{name}", RULES, text, role=Role.HUB)
    async def allowed(s: Session) -> None:
        cast = await _cast(s)
        await cast.room.appended(await act(cast))


for _name, (_text, _act) in FORBIDDEN.items():
    _register_forbidden(_name, _text, _act)
for _name, (_text, _act) in ALLOWED.items():
    _register_allowed(_name, _text, _act)
