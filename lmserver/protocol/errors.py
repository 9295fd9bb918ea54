"""Every way an input can be refused by the protocol, as one tree.

`str(error)` is a short reason from a fixed vocabulary: it never quotes the input, so it may be
sent to a peer, logged and used as a metrics label. The layers above map classes, never texts, to
HTTP answers.

    ProtocolError
    ├── InvalidJson            not JSON as we accept it            400 M_NOT_JSON
    ├── InvalidIdentifier      a name outside its grammar          400 M_INVALID_PARAM
    ├── InvalidBase64          not base64 as we accept it          400 M_BAD_JSON
    ├── SchemaError            JSON of the wrong shape             400 M_BAD_JSON, or event dropped
    │   └── TooLarge           larger than the draft allows        413 M_TOO_LARGE, or event dropped
    ├── SignatureError         missing or wrong signature          event dropped
    ├── UnknownRoomVersion     a room version we do not speak      400 M_INCOMPATIBLE_ROOM_VERSION
    ├── AuthRejected           an auth rule says no                403 M_FORBIDDEN, or event rejected
    └── RequestAuthError       X-Matrix refused                    401 M_FORBIDDEN
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Base of the tree. `str(e)` is safe to send to a peer."""


class InvalidJson(ProtocolError):
    """Bytes that are not JSON as we accept it, or a value that could not have been parsed from it."""


class InvalidIdentifier(ProtocolError):
    """A server name, user ID, room ID, ... outside its grammar (D04 §Architecture)."""


class InvalidBase64(ProtocolError):
    """Text that is not canonical base64 (D04 §Unpadded Base64)."""


class SchemaError(ProtocolError):
    """JSON of the wrong shape: a missing member, a wrong type, a value out of range."""


class TooLarge(SchemaError):
    """Larger than the draft allows (D04 §Events: 65536 bytes an event)."""


class SignatureError(ProtocolError):
    """A required signature is missing or wrong (D04 §Checking Signatures)."""


class UnknownRoomVersion(ProtocolError):
    """A room version this server does not speak (D04 §Room Versions); `version` if it is one at all."""

    version: str | None = None


class AuthRejected(ProtocolError):
    """An authorization rule says no (D04 §Auth Rules Algorithm).

    `rule` is the rule's number in the draft, such as "5.3.2"; `reason` says it in words.
    """

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(rule, reason)
        self.rule = rule
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason} (rule {self.rule})"


class RequestAuthError(ProtocolError):
    """A request's X-Matrix authorization is missing, malformed or wrong (D04 §Request Authentication)."""
