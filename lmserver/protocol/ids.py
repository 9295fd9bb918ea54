"""Grammar of every identifier (D04 §Server Names, §Rooms, §Users, §Devices, §Events, §Signing).

Identifiers arrive from peers and clients and end in SQL keys, URLs and DNS queries, so they are
checked once, here, by the letter and without normalising anything: `EVIL.org`, `evil.org` and
`evil.org:8448` are three servers. Each `check_*` returns its argument or raises
InvalidIdentifier; each `is_*` takes any object. No identifier exceeds 255 characters.

A server name is a DNS name. An address is refused in every form getaddrinfo reads as one (127.1,
0x7f.1, 2130706433): a name whose last label is a number could only be an address, no top-level
domain is numeric.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from lmserver.protocol.errors import InvalidIdentifier

MAX_LENGTH: Final = 255
MAX_PORT: Final = 65535

# RFC 1123 §2.1: letters, digits and inner hyphens; no empty label, so no trailing dot.
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_SERVER_NAME: Final = re.compile(rf"(?:{_LABEL}\.)*({_LABEL})(?::([0-9]{{1,5}}))?")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

_USER_LOCALPART: Final = re.compile(r"[a-z0-9\-.=_/+]+")
_ROOM_LOCALPART: Final = re.compile(r"[A-Za-z0-9\-.~_]+")
# D04 has no aliases: Matrix's grammar, without control characters and lone surrogates.
_ALIAS_LOCALPART: Final = re.compile(r"[^:\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_EVENT_ID: Final = re.compile(r"\$[A-Za-z0-9_-]+")
_KEY_ID: Final = re.compile(r"[a-z0-9_]+:[A-Za-z0-9_]+")
# D04 forgets A-Z, which its own "I.1" needs.
_ROOM_VERSION: Final = re.compile(r"[A-Za-z0-9.-]{1,128}")
_DEVICE_ID: Final = re.compile(r"[ -.0-~]+")

# Matrix appendices, §Opaque Identifiers.
_MEDIA_ID: Final = re.compile(r"[A-Za-z0-9_-]+")


def is_server_name(value: object) -> bool:
    """A DNS name with an optional port (D04 §Server Names)."""
    return isinstance(value, str) and len(value) <= MAX_LENGTH and _is_server_name(value)


@lru_cache(4096)
def _is_server_name(value: str) -> bool:
    """Remembered: a server meets the same few names in every event."""
    match = _SERVER_NAME.fullmatch(value)
    if match is None or _NUMBER.fullmatch(match[1]):
        return False
    return match[2] is None or int(match[2]) <= MAX_PORT


def is_user_id(value: object) -> bool:
    """`@localpart:server`, the localpart in lower case (D04 §Users)."""
    return _is_scoped(value, "@", _USER_LOCALPART)


def is_room_id(value: object) -> bool:
    """`!opaque:server` (D04 §Rooms)."""
    return _is_scoped(value, "!", _ROOM_LOCALPART)


def is_room_alias(value: object) -> bool:
    """`#localpart:server` (Matrix appendices, §Room Aliases)."""
    return _is_scoped(value, "#", _ALIAS_LOCALPART)


def is_event_id(value: object) -> bool:
    """`$` and a URL-safe reference hash (D04 §Events)."""
    return _matches(value, _EVENT_ID)


def is_key_id(value: object) -> bool:
    """`algorithm:version`, such as `ed25519:abc_1` (D04 §Signing)."""
    return _matches(value, _KEY_ID)


def is_device_id(value: object) -> bool:
    """Printable ASCII without a slash.

    D04 §Devices allows only letters, digits and "_"; clients of the Matrix client-server API may
    choose other device IDs, and ours are never part of a key ID in D04's sense.
    """
    return _matches(value, _DEVICE_ID)


def is_media_id(value: object) -> bool:
    """Letters, digits, "_" and "-" (CS API §Content repository: the media ID of an mxc:// URI)."""
    return _matches(value, _MEDIA_ID)


def is_room_version(value: object) -> bool:
    """1 to 128 letters, digits, hyphens and dots (D04 §Room Versions, with A-Z)."""
    return _matches(value, _ROOM_VERSION)


def check_server_name(value: object) -> str:
    """Raises InvalidIdentifier unless `is_server_name`."""
    return _checked(value, is_server_name, "server name is not valid")


def check_user_id(value: object) -> str:
    """Raises InvalidIdentifier unless `is_user_id`."""
    return _checked(value, is_user_id, "user ID is not valid")


def check_room_id(value: object) -> str:
    """Raises InvalidIdentifier unless `is_room_id`."""
    return _checked(value, is_room_id, "room ID is not valid")


def check_room_alias(value: object) -> str:
    """Raises InvalidIdentifier unless `is_room_alias`."""
    return _checked(value, is_room_alias, "room alias is not valid")


def check_event_id(value: object) -> str:
    """Raises InvalidIdentifier unless `is_event_id`."""
    return _checked(value, is_event_id, "event ID is not valid")


def check_key_id(value: object) -> str:
    """Raises InvalidIdentifier unless `is_key_id`."""
    return _checked(value, is_key_id, "key ID is not valid")


def server_of(id_: str) -> str:
    """The server name in a user ID, room ID or alias: all after the first ":".

    Raises InvalidIdentifier if there is no ":"; the grammar of the rest is the caller's to check.
    """
    _, colon, server = id_.partition(":")
    if not colon:
        raise InvalidIdentifier("identifier names no server")
    return server


def localpart_of(user_id: str) -> str:
    """What stands between the sigil and the first ":". Raises InvalidIdentifier if there is no ":"."""
    localpart, colon, _ = user_id.partition(":")
    if not colon:
        raise InvalidIdentifier("identifier names no server")
    return localpart[1:]


def _is_scoped(value: object, sigil: str, localpart: re.Pattern[str]) -> bool:
    return isinstance(value, str) and len(value) <= MAX_LENGTH and _is_scoped_text(value, sigil, localpart)


@lru_cache(4096)
def _is_scoped_text(value: str, sigil: str, localpart: re.Pattern[str]) -> bool:
    """Remembered, as names of servers are."""
    if not value.startswith(sigil):
        return False
    local, colon, server = value[1:].partition(":")
    return bool(colon) and localpart.fullmatch(local) is not None and is_server_name(server)


def _matches(value: object, grammar: re.Pattern[str]) -> bool:
    return isinstance(value, str) and len(value) <= MAX_LENGTH and grammar.fullmatch(value) is not None


def _checked(value: object, is_valid: Callable[[object], bool], reason: str) -> str:
    if not isinstance(value, str) or not is_valid(value):
        raise InvalidIdentifier(reason)
    return value
