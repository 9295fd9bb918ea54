"""The events of a new room, in the order the specification gives (CS API §POST /createRoom).

Pure: a request's body goes in, drafts come out, and a body that is not as specified is refused
with the error to answer. Invites are sent by the caller once the room exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lmserver.protocol import ids
from lmserver.protocol.errors import InvalidIdentifier, UnknownRoomVersion
from lmserver.protocol.events import EventDraft
from lmserver.protocol.room_versions import RoomVersion, room_version

MAX_INVITES: Final = 100
MAX_INITIAL_STATE: Final = 100

_NUMERIC = frozenset(str(number) for number in range(1, 13))

# What only the server may say in m.room.create.
_SERVERS_OWN = ("creator", "room_version")

_PRESETS: Mapping[str, tuple[str, str, str]] = {
    # preset: (join_rule, history_visibility, guest_access)
    "private_chat": ("invite", "shared", "can_join"),
    "trusted_private_chat": ("invite", "shared", "can_join"),
    "public_chat": ("public", "shared", "forbidden"),
}


class BadRoomRequest(ValueError):
    """A body that cannot become a room: status 400 and this error code."""

    def __init__(self, errcode: str, reason: str) -> None:
        super().__init__(reason)
        self.errcode = errcode
        self.reason = reason


@dataclass(frozen=True, slots=True)
class NewRoom:
    """A createRoom body whose types have been checked."""

    version: RoomVersion
    preset: str
    public: bool
    alias_localpart: str | None = None
    name: str | None = None
    topic: str | None = None
    is_direct: bool = False
    invite: tuple[str, ...] = ()
    creation_content: Mapping[str, Any] = field(default_factory=dict)
    initial_state: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    power_override: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Versions:
    """Which version a new room gets. `map_numeric`: Matrix's own versions, "1" to "12", mean the
    default one, because some clients ask for "7" or "9" to get knocking or restricted rooms."""

    default: str
    map_numeric: bool = False

    def choose(self, asked: object) -> RoomVersion:
        """The version for what a client asks for, None for nothing; raises BadRoomRequest."""
        if asked is None or (self.map_numeric and isinstance(asked, str) and asked in _NUMERIC):
            return room_version(self.default)
        try:
            return room_version(asked)
        except UnknownRoomVersion:
            raise BadRoomRequest("M_UNSUPPORTED_ROOM_VERSION", "room version not supported") from None


def parse(body: Mapping[str, Any], versions: Versions) -> NewRoom:
    """Check a createRoom body; raises BadRoomRequest."""
    version = versions.choose(_optional(body, "room_version", str))
    visibility = _optional(body, "visibility", str) or "private"
    if visibility not in ("public", "private"):
        raise BadRoomRequest("M_INVALID_PARAM", "visibility is public or private")
    preset = _optional(body, "preset", str)
    if preset is None:
        preset = "public_chat" if visibility == "public" else "private_chat"
    if preset not in _PRESETS:
        raise BadRoomRequest("M_INVALID_PARAM", "preset is not known")
    if _optional(body, "invite_3pid", list):
        raise BadRoomRequest("M_THREEPID_DENIED", "third-party invites are not supported")
    return NewRoom(
        version=version,
        preset=preset,
        public=visibility == "public",
        alias_localpart=_alias_localpart(body),
        name=_optional(body, "name", str),
        topic=_optional(body, "topic", str),
        is_direct=bool(_optional(body, "is_direct", bool)),
        invite=_invited(body),
        creation_content=_optional(body, "creation_content", dict) or {},
        initial_state=_initial_state(body),
        power_override=_optional(body, "power_level_content_override", dict) or {},
    )


def drafts(
    room: NewRoom, room_id: str, creator: str, profile: Mapping[str, Any], alias: str | None, now_ms: int
) -> list[EventDraft]:
    """The room's first events; the first is m.room.create, the second the creator's join."""
    create = {k: v for k, v in room.creation_content.items() if k not in _SERVERS_OWN}
    create["room_version"] = room.version.id
    join_rule, visibility, guests = _PRESETS[room.preset]
    events: list[tuple[str, str, dict[str, Any]]] = [
        ("m.room.create", "", create),
        ("m.room.member", creator, {**profile, "membership": "join"}),
        ("m.room.power_levels", "", _power_levels(room, creator)),
    ]
    if alias is not None:
        events.append(("m.room.canonical_alias", "", {"alias": alias}))
    given = {(type_, key) for type_, key, _ in room.initial_state}
    for type_, content in (
        ("m.room.join_rules", {"join_rule": join_rule}),
        ("m.room.history_visibility", {"history_visibility": visibility}),
        ("m.room.guest_access", {"guest_access": guests}),
    ):
        if (type_, "") not in given:
            events.append((type_, "", content))
    events += room.initial_state
    if room.name is not None:
        events.append(("m.room.name", "", {"name": room.name}))
    if room.topic is not None:
        # Clients read the one or the other (CS API §m.room.topic).
        events.append(
            ("m.room.topic", "", {"topic": room.topic, "m.topic": {"m.text": [{"body": room.topic}]}})
        )
    return [EventDraft(room_id, t, creator, content, now_ms, key) for t, key, content in events]


def _power_levels(room: NewRoom, creator: str) -> dict[str, Any]:
    """The creator at 100, what makes or breaks a room at 100, the rest of the state at 50."""
    users = {creator: 100}
    if room.preset == "trusted_private_chat":
        users |= dict.fromkeys(room.invite, 100)
    # A call in a public room would ring everybody.
    calls = {"m.call.invite": 50} if room.preset == "public_chat" else {}
    levels: dict[str, Any] = {
        "users": users,
        "users_default": 0,
        "events": {
            "m.room.name": 50,
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.power_levels": 100,
            "m.room.history_visibility": 100,
            "m.room.encryption": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": 100,
            **calls,
        },
        "events_default": 0,
        "state_default": 50,
        "ban": 50,
        "kick": 50,
        "redact": 50,
        "invite": 50 if room.preset == "public_chat" else 0,
    }
    return {**levels, **room.power_override}


def _optional(body: Mapping[str, Any], key: str, kind: type) -> Any:
    """A field that may be absent or null; of the wrong type it is an error."""
    value = body.get(key)
    if value is not None and not isinstance(value, kind):
        raise BadRoomRequest("M_BAD_JSON", f"{key} has the wrong type")
    return value


def _alias_localpart(body: Mapping[str, Any]) -> str | None:
    name: str | None = _optional(body, "room_alias_name", str)
    if name is None:
        return None
    # The server's part is checked when the whole alias is made; these would change where it ends.
    if not name or any(c in name for c in ":#\0") or any(c.isspace() for c in name) or len(name) > 200:
        raise BadRoomRequest("M_INVALID_PARAM", "room_alias_name is not valid")
    return name


def _invited(body: Mapping[str, Any]) -> tuple[str, ...]:
    invited = _optional(body, "invite", list) or []
    if len(invited) > MAX_INVITES:
        raise BadRoomRequest("M_INVALID_PARAM", f"more than {MAX_INVITES} invites")
    try:
        return tuple(dict.fromkeys(ids.check_user_id(user_id) for user_id in invited))
    except InvalidIdentifier:
        raise BadRoomRequest("M_INVALID_PARAM", "an invited user is not a user ID") from None


def _initial_state(body: Mapping[str, Any]) -> tuple[tuple[str, str, dict[str, Any]], ...]:
    """State events by the client; create and members are the server's to make."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    entries = _optional(body, "initial_state", list) or []
    if len(entries) > MAX_INITIAL_STATE:
        raise BadRoomRequest("M_INVALID_PARAM", f"more than {MAX_INITIAL_STATE} state events")
    for entry in entries:
        if not isinstance(entry, dict):
            raise BadRoomRequest("M_BAD_JSON", "initial_state has an entry that is not an object")
        type_, key, content = entry.get("type"), entry.get("state_key", ""), entry.get("content")
        if not isinstance(type_, str) or not isinstance(key, str) or not isinstance(content, dict):
            raise BadRoomRequest("M_BAD_JSON", "initial_state has an entry of the wrong shape")
        if type_ in ("m.room.create", "m.room.member"):
            raise BadRoomRequest("M_BAD_JSON", f"initial_state may not have {type_}")
        found.append((type_, key, content))
    return tuple(found)
