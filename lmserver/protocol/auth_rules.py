"""The authorization rules, in the draft's order, its number beside each (D04 §Authorization Rules).

Pure: an event and the room before it go in, AuthRejected comes out or nothing does. Rules 1 and 2
(signatures) are `signatures.check_event_signatures`; rule 3 is `check_create`, rule 4
`check_auth_events`, and rules 5 to 10 are `authorize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lmserver.protocol import ids
from lmserver.protocol.errors import AuthRejected
from lmserver.protocol.events import Pdu
from lmserver.protocol.power_levels import PowerLevels, is_level
from lmserver.protocol.room_view import RoomView, StateKey


class Authorizable(Protocol):
    """What rules read of an event: drafts, LPDUs and PDUs all have it."""

    @property
    def room_id(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def state_key(self) -> str | None: ...
    @property
    def sender(self) -> str: ...
    @property
    def content(self) -> dict[str, Any]: ...


# -- D04 §Auth Events Selection -------------------------------------------------------------------


def auth_types(event: Authorizable) -> list[StateKey]:
    """The state an event is authorized by."""
    if event.type == "m.room.create":
        return []
    keys = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", event.sender)]
    if event.type == "m.room.member":
        if event.state_key is not None and event.state_key != event.sender:
            keys.append(("m.room.member", event.state_key))
        # The draft forgets knocks, whose rule reads the join rule too (protocol decision 2).
        if event.content.get("membership") in ("join", "invite", "knock"):
            keys.append(("m.room.join_rules", ""))
    return keys


def select_auth_events(event: Authorizable, view: RoomView) -> list[str]:
    """The event IDs that `auth_events` must name."""
    found = (view.state.get(key) for key in auth_types(event))
    return [entry.event_id for entry in found if entry is not None]


def check_auth_events(pdu: Pdu, view: RoomView) -> None:
    """Rule 4: `auth_events` is what the selection gives; raises AuthRejected."""
    cited = pdu.auth_events
    # 4.1: no duplicates.
    if len(set(cited)) != len(cited):
        raise AuthRejected("4.1", "auth_events has duplicates")
    # 4.2: nothing but what the selection names; what is not state of this room is none of it.
    expected = set(select_auth_events(pdu, view))
    if set(cited) - expected:
        raise AuthRejected("4.2", "auth_events names other events than the selection")
    # 4.3: the create event is among them.
    create = view.get("m.room.create")
    if create is None or create.event_id not in cited:
        raise AuthRejected("4.3", "auth_events does not name m.room.create")
    missing = expected - set(cited)
    rules = view.get("m.room.join_rules")
    tolerated = {rules.event_id} if rules is not None and pdu.membership == "knock" else set()
    if missing - tolerated:
        raise AuthRejected("4.2", "auth_events lacks events of the selection")


# -- rule 3 ---------------------------------------------------------------------------------------


def check_create(pdu: Pdu) -> None:
    """Rule 3, for the event at position 0; raises AuthRejected."""
    if pdu.type != "m.room.create" or pdu.state_key != "":
        raise AuthRejected("3", "the first event is not m.room.create")
    # 3.1
    if pdu.prev_events or pdu.auth_events:
        raise AuthRejected("3.1", "m.room.create has prev_events or auth_events")
    # 3.2
    if ids.server_of(pdu.room_id) != ids.server_of(pdu.sender):
        raise AuthRejected("3.2", "the room ID is of another server than the creator")
    # 3.3
    if pdu.content.get("room_version") != pdu.version.id:
        raise AuthRejected("3.3", "room_version is not the room's")


# -- rules 5 to 10 --------------------------------------------------------------------------------


def authorize(event: Authorizable, view: RoomView) -> None:
    """Rules 5 to 10 against the room before the event; raises AuthRejected."""
    # 3.1: every event but the first has a predecessor, so a create event is never the second.
    if event.type == "m.room.create":
        raise AuthRejected("3.1", "a room has one m.room.create")
    # 5
    if event.type == "m.room.member":
        _member(event, view)
        return
    # 6
    if view.membership(event.sender) != "join":
        raise AuthRejected("6", "the sender is not in the room")
    levels = PowerLevels.from_view(view)
    # 7
    if levels.event(event.type, event.state_key is not None) > levels.user(event.sender):
        raise AuthRejected("7", "the sender's power level is too low for this event")
    # 8
    if event.state_key is not None and event.state_key.startswith("@") and event.state_key != event.sender:
        raise AuthRejected("8", "the state key is another user's ID")
    _unsupported_join_rule(event, view)
    # 9
    if event.type == "m.room.power_levels" and event.state_key == "":
        _power_levels(event, view, levels)
    # 10: allow


def _unsupported_join_rule(event: Authorizable, view: RoomView) -> None:
    """Rules that nobody could join under are not set (protocol decision 4)."""
    if view.version.restricted_joins or event.type != "m.room.join_rules" or event.state_key != "":
        return
    if event.content.get("join_rule") in ("restricted", "knock_restricted"):
        raise AuthRejected("5.2.6", "restricted join rules are not part of this room version")


# -- rule 5 ---------------------------------------------------------------------------------------


def _member(event: Authorizable, view: RoomView) -> None:
    membership = event.content.get("membership")
    # 5.1
    if event.state_key is None or not ids.is_user_id(event.state_key) or not isinstance(membership, str):
        raise AuthRejected("5.1", "a member event needs a user ID as state key and a membership")
    rule = _MEMBERSHIP_RULES.get(membership)
    # 5.7
    if rule is None:
        raise AuthRejected("5.7", "the membership is unknown")
    rule(event, event.state_key, view)


def _join(event: Authorizable, target: str, view: RoomView) -> None:
    # 5.2.2 before 5.2.1: else anybody could join the creator right after the create event.
    if event.sender != target:
        raise AuthRejected("5.2.2", "nobody joins for somebody else")
    # 5.2.1
    create = view.get("m.room.create")
    if create is not None and view.head_event_id == create.event_id and target == create.sender:
        return
    current = view.membership(target)
    # 5.2.3
    if current == "ban":
        raise AuthRejected("5.2.3", "the user is banned")
    # 5.2.4
    if view.join_rule() in ("invite", "knock") and current in ("invite", "join"):
        return
    # 5.2.5
    if view.join_rule() == "public":
        return
    # 5.2.6
    raise AuthRejected("5.2.6", "the join rule does not let the user in")


def _invite(event: Authorizable, target: str, view: RoomView) -> None:
    # 5.3.1
    if view.membership(event.sender) != "join":
        raise AuthRejected("5.3.1", "the sender is not in the room")
    # 5.3.2
    if view.membership(target) in ("join", "ban"):
        raise AuthRejected("5.3.2", "the user is in the room already or banned")
    levels = PowerLevels.from_view(view)
    # 5.3.3
    if levels.user(event.sender) >= levels.action("invite"):
        return
    # 5.3.4
    raise AuthRejected("5.3.4", "the sender's power level is too low to invite")


def _leave(event: Authorizable, target: str, view: RoomView) -> None:
    # 5.4.1
    if event.sender == target:
        if view.membership(target) in ("knock", "join", "invite"):
            return
        raise AuthRejected("5.4.1", "the user is not in the room")
    # 5.4.2
    if view.membership(event.sender) != "join":
        raise AuthRejected("5.4.2", "the sender is not in the room")
    levels = PowerLevels.from_view(view)
    level = levels.user(event.sender)
    # 5.4.3
    if view.membership(target) == "ban" and level < levels.action("ban"):
        raise AuthRejected("5.4.3", "the sender's power level is too low to unban")
    # 5.4.4
    if level >= levels.action("kick") and levels.user(target) < level:
        return
    # 5.4.5
    raise AuthRejected("5.4.5", "the sender's power level is too low to kick this user")


def _ban(event: Authorizable, target: str, view: RoomView) -> None:
    # 5.5.1
    if view.membership(event.sender) != "join":
        raise AuthRejected("5.5.1", "the sender is not in the room")
    levels = PowerLevels.from_view(view)
    level = levels.user(event.sender)
    # 5.5.2
    if level >= levels.action("ban") and levels.user(target) < level:
        return
    # 5.5.3
    raise AuthRejected("5.5.3", "the sender's power level is too low to ban this user")


def _knock(event: Authorizable, target: str, view: RoomView) -> None:
    # 5.6.1
    if view.join_rule() != "knock":
        raise AuthRejected("5.6.1", "the join rule does not allow knocking")
    # 5.6.2
    if event.sender != target:
        raise AuthRejected("5.6.2", "nobody knocks for somebody else")
    # 5.6.3
    if view.membership(target) not in ("ban", "join"):
        return
    # 5.6.4
    raise AuthRejected("5.6.4", "the user is in the room already or banned")


_MEMBERSHIP_RULES: Mapping[str, Callable[[Authorizable, str, RoomView], None]] = {
    "join": _join,
    "invite": _invite,
    "leave": _leave,
    "ban": _ban,
    "knock": _knock,
}


# -- rule 9 ---------------------------------------------------------------------------------------

_LEVEL_FIELDS = ("users_default", "events_default", "state_default", "ban", "redact", "kick", "invite")


def _power_levels(event: Authorizable, view: RoomView, levels: PowerLevels) -> None:
    new = event.content
    # 9.1
    if any(field in new and not is_level(new[field]) for field in _LEVEL_FIELDS):
        raise AuthRejected("9.1", "a power level is not an integer")
    # 9.2
    if "events" in new and not _is_level_map(new["events"]):
        raise AuthRejected("9.2", "events is not an object of integers")
    # 9.3
    if "users" in new and not (_is_level_map(new["users"]) and all(map(ids.is_user_id, new["users"]))):
        raise AuthRejected("9.3", "users is not an object of user IDs and integers")
    # 9.4
    old = levels.content
    if old is None:
        return
    own = levels.user(event.sender)
    _changed_fields(old, new, own)
    _changed_entries("events", ("9.6", "9.7"), old, new, own)
    _changed_entries("users", ("9.8", "9.9"), old, new, own, sender=event.sender)
    # 9.10: allow


def _is_level_map(value: object) -> bool:
    return isinstance(value, dict) and all(is_level(level) for level in value.values())


def _changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], own: int) -> None:
    """9.5: a field added, changed or removed was and is within the sender's reach."""
    for field in _LEVEL_FIELDS:
        before, after = old.get(field), new.get(field)
        if before == after:
            continue
        # 9.5.1
        if before is not None and is_level(before) and before > own:
            raise AuthRejected("9.5.1", "a level above the sender's own is changed")
        # 9.5.2
        if after is not None and after > own:
            raise AuthRejected("9.5.2", "a level is set above the sender's own")


def _changed_entries(
    field: str,
    rules: tuple[str, str],
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    own: int,
    *,
    sender: str | None = None,
) -> None:
    """9.6 to 9.9. Of `users`, one's own entry may be lowered whatever it is, and another's only
    from below one's own level (protocol decision 3 reads 9.8 as "or equal")."""
    before = old.get(field) if isinstance(old.get(field), dict) else {}
    after = new.get(field, {})
    removed_rule, added_rule = rules
    for name in {*(before or {}), *after}:
        was, now = (before or {}).get(name), after.get(name)
        if was == now:
            continue
        # 9.6, 9.8
        if was is not None and name != sender and (was > own or (sender is not None and was == own)):
            raise AuthRejected(removed_rule, "an entry out of the sender's reach is changed")
        # 9.7, 9.9
        if now is not None and now > own:
            raise AuthRejected(added_rule, "an entry is set above the sender's own level")
