"""The table of room versions: each is one row of data plus pure functions.

A room version is immutable once published (D04 §Room Versions), so everything that differs
between versions stands here as data and the algorithms ask the row, never the identifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lmserver.protocol import ids
from lmserver.protocol.errors import UnknownRoomVersion

I_1_ID = "I.1"
LM_02_ID = "org.matrix.i-d.ralston-mimi-linearized-matrix.02"

# D04 §Events: the whole event in canonical JSON, every signature included.
MAX_EVENT_BYTES = 65536


@dataclass(frozen=True, slots=True)
class RoomVersion:
    """What a room version decides.

    ``redacted_content`` maps an event type to the content keys that survive redaction; ``None``
    keeps the whole content, an absent type keeps nothing.
    """

    id: str
    stable: bool
    redacted_top_level: frozenset[str]
    redacted_content: Mapping[str, frozenset[str] | None]
    restricted_joins: bool = False
    knocking: bool = True


_TOP_LEVEL = frozenset(
    {
        "type",
        "room_id",
        "sender",
        "state_key",
        "content",
        "origin_server_ts",
        "hashes",
        "signatures",
        "prev_events",
        "auth_events",
        "hub_server",
    }
)

_POWER_LEVELS = frozenset(
    {
        "ban",
        "events",
        "events_default",
        "invite",
        "kick",
        "redact",
        "state_default",
        "users",
        "users_default",
    }
)


def _content_rules(join_rules: frozenset[str]) -> Mapping[str, frozenset[str] | None]:
    return MappingProxyType(
        {
            "m.room.create": None,
            "m.room.member": frozenset({"membership"}),
            "m.room.join_rules": join_rules,
            "m.room.power_levels": _POWER_LEVELS,
            "m.room.history_visibility": frozenset({"history_visibility"}),
        }
    )


# D04 §Event Redactions, to the letter.
I_1 = RoomVersion(
    id=I_1_ID,
    stable=True,
    redacted_top_level=_TOP_LEVEL,
    redacted_content=_content_rules(frozenset({"join_rule"})),
)

# The same algorithms under the name peers test with. Both known peers keep `allow` in join
# rules, so keeping it is what makes event IDs agree.
LM_02 = RoomVersion(
    id=LM_02_ID,
    stable=False,
    redacted_top_level=_TOP_LEVEL,
    redacted_content=_content_rules(frozenset({"join_rule", "allow"})),
)

SUPPORTED: Mapping[str, RoomVersion] = MappingProxyType({v.id: v for v in (I_1, LM_02)})


def room_version(id_: object) -> RoomVersion:
    """The row for an identifier; raises UnknownRoomVersion for anything else, strings or not."""
    if isinstance(id_, str):
        version = SUPPORTED.get(id_)
        if version is not None:
            return version
    unknown = UnknownRoomVersion("room version not supported")
    unknown.version = id_ if ids.is_room_version(id_) and isinstance(id_, str) else None
    raise unknown
