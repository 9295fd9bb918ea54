"""LPDUs and PDUs as distinct types (D04 §Events, §Linearized PDU).

Parsing is the schema check of D04 §Receiving Events, step 1: what comes out of `parse_lpdu` and
`parse_pdu` has every field in its grammar, and nothing about hashes or signatures is known yet.
The fields of an event are never changed in place; bytes derived from them are computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from lmserver.protocol import canonical_json, hashes, ids, unpadded_base64
from lmserver.protocol.errors import InvalidBase64, InvalidIdentifier, SchemaError, TooLarge
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import MAX_EVENT_BYTES, RoomVersion

# What a hub may still have to add to an LPDU: five auth events, one prev event, a hash, its own
# signature and, on an invite, the target server's (names of up to 255 characters each).
HUB_RESERVE_BYTES: Final = 1536
MAX_LPDU_BYTES: Final = MAX_EVENT_BYTES - HUB_RESERVE_BYTES

MAX_TEXT = 255
MAX_AUTH_EVENTS = 10
MAX_PREV_EVENTS = 20
SHA256_BYTES = 32

# Never part of an event between servers: computed (event_id) or private to a server (unsigned).
_NOT_ON_THE_WIRE = ("unsigned", "event_id")


@dataclass(frozen=True, slots=True, eq=False)
class EventDraft:
    """What a local user wants to send, before anything is hashed, signed or ordered."""

    room_id: str
    type: str
    sender: str
    content: dict[str, Any]
    origin_server_ts: int
    state_key: str | None = None

    @property
    def server(self) -> str:
        return ids.server_of(self.sender)

    def fields(self) -> dict[str, Any]:
        """The draft as the beginning of an event; raises InvalidJson for what has no canonical form."""
        fields: dict[str, Any] = {
            "room_id": self.room_id,
            "type": self.type,
            "sender": self.sender,
            "origin_server_ts": self.origin_server_ts,
            "content": self.content,
        }
        if self.state_key is not None:
            fields["state_key"] = self.state_key
        canonical_json.check(fields)
        return fields


class _Event:
    """What LPDUs and PDUs share. Instances are immutable by convention; derived bytes are cached.

    The fields come from `canonical_json.parse`, or from a draft whose content hash has been made:
    either way they have been checked to have a canonical form.
    """

    __slots__ = (
        "_canonical",
        "_event_id",
        "_reference",
        "content",
        "fields",
        "hub_server",
        "lpdu_hash",
        "origin_server_ts",
        "room_id",
        "sender",
        "server",
        "state_key",
        "type",
        "version",
    )
    has_place: ClassVar[bool]

    def __init__(self, fields: dict[str, Any], version: RoomVersion) -> None:
        self.fields = fields
        self.version = version
        self.room_id: str = fields["room_id"]
        self.type: str = fields["type"]
        self.state_key: str | None = fields.get("state_key")
        self.sender: str = fields["sender"]
        self.server: str = ids.server_of(self.sender)
        self.origin_server_ts: int = fields["origin_server_ts"]
        self.content: dict[str, Any] = fields["content"]
        self.hub_server: str | None = fields.get("hub_server")
        lpdu = fields["hashes"].get("lpdu")
        self.lpdu_hash: str | None = None if lpdu is None else lpdu["sha256"]
        self._canonical: bytes | None = None
        self._event_id: str | None = None
        self._reference: bytes | None = None

    @property
    def canonical(self) -> bytes:
        """The canonical bytes of the whole event, signatures included: what is stored and sent."""
        if self._canonical is None:
            self._canonical = canonical_json.encode_valid(self.fields)
        return self._canonical

    def size(self) -> int:
        """The number of its canonical bytes, which need not be final yet: nothing of them is kept."""
        return len(canonical_json.encode_valid(self.fields))

    @property
    def reference_bytes(self) -> bytes:
        """What is signed and hashed for the event ID."""
        if self._reference is None:
            self._reference = hashes.reference_bytes(self.fields, self.version)
        return self._reference

    @property
    def event_id(self) -> str:
        if self._event_id is None:
            self._event_id = hashes.event_id_of_bytes(self.reference_bytes)
        return self._event_id

    @property
    def lpdu_key(self) -> tuple[str, str] | None:
        """What makes an LPDU the same one: its hash and who signed it. The hash alone is a claim
        that anybody can make of anybody's."""
        return None if self.lpdu_hash is None else (self.lpdu_hash, self.sender)

    @property
    def is_state(self) -> bool:
        return self.state_key is not None

    @property
    def membership(self) -> str | None:
        """`content.membership` of a member event, if it is a string."""
        value = self.content.get("membership") if self.type == "m.room.member" else None
        return value if isinstance(value, str) else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.event_id} {self.type!r} in {self.room_id}>"


class Lpdu(_Event):
    """A participant's partial event: signed by its server, without a place in the list."""

    __slots__ = ()
    has_place = False

    @property
    def lpdu_reference_bytes(self) -> bytes:
        return self.reference_bytes


class Pdu(_Event):
    """A full event with its place in the list (`prev_events`) and the hub's signature.

    `altered_from` is set on a redacted copy that stands for an event with wrong hashes: the
    canonical bytes as they came. `unverified` marks an event whose signatures do not hold or could
    not be checked: it has its place in the chain and nothing else.
    """

    __slots__ = ("altered_from", "auth_events", "prev_events", "unverified")
    has_place = True

    def __init__(
        self, fields: dict[str, Any], version: RoomVersion, *, altered_from: bytes | None = None
    ) -> None:
        super().__init__(fields, version)
        self.altered_from = altered_from
        self.unverified = False
        self.auth_events: list[str] = fields["auth_events"]
        self.prev_events: list[str] = fields["prev_events"]

    @property
    def lpdu_reference_bytes(self) -> bytes:
        """What the sender's server signed: the redacted LPDU inside this PDU."""
        redacted = redact(self.fields, self.version)
        for key in ("signatures", "auth_events", "prev_events"):
            redacted.pop(key, None)
        redacted["hashes"] = {"lpdu": self.fields["hashes"]["lpdu"]}
        return canonical_json.encode_valid(redacted)

    def redacted(self, *, altered_from: bytes | None = None) -> Pdu:
        """The redacted copy: the same event ID, the same signatures."""
        return Pdu(redact(self.fields, self.version), self.version, altered_from=altered_from)

    def with_signature(self, server: str, key_id: str, signature: str) -> Pdu:
        """A copy with one more signature; event ID and hashes stay the same."""
        signatures = {name: dict(sigs) for name, sigs in self.fields["signatures"].items()}
        signatures.setdefault(server, {})[key_id] = signature
        return Pdu({**self.fields, "signatures": signatures}, self.version)


def is_lpdu_shaped(fields: Mapping[str, Any]) -> bool:
    """Whether an object is meant as an LPDU: told by its shape, never by the sender's flag."""
    return "auth_events" not in fields


def parse_lpdu(fields: Mapping[str, Any], version: RoomVersion) -> Lpdu:
    """Check an object against the LPDU schema; raises SchemaError or TooLarge."""
    clean = _without_local_fields(fields)
    _check_common(clean)
    if "prev_events" in clean or "auth_events" in clean:
        raise SchemaError("an LPDU has no prev_events or auth_events")
    if "hub_server" not in clean:
        raise SchemaError("an LPDU names its hub_server")
    if set(clean["hashes"]) != {"lpdu"}:
        raise SchemaError("an LPDU has hashes.lpdu and no other hash")
    lpdu = Lpdu(clean, version)
    if len(lpdu.canonical) > MAX_LPDU_BYTES:
        raise TooLarge("event is too large")
    return lpdu


def parse_pdu(fields: Mapping[str, Any], version: RoomVersion) -> Pdu:
    """Check an object against the PDU schema; raises SchemaError or TooLarge."""
    clean = _without_local_fields(fields)
    _check_common(clean)
    if not isinstance(clean["hashes"].get("sha256"), str):
        raise SchemaError("hashes.sha256 is missing")
    _check_event_ids(clean, "auth_events", MAX_AUTH_EVENTS)
    _check_event_ids(clean, "prev_events", MAX_PREV_EVENTS)
    if "hub_server" in clean and len(clean["prev_events"]) != 1:
        raise SchemaError("an event of a hub has exactly one prev_event")
    if clean["type"] != "m.room.create" and not clean["prev_events"]:
        raise SchemaError("prev_events is empty")
    pdu = Pdu(clean, version)
    if len(pdu.canonical) > MAX_EVENT_BYTES:
        raise TooLarge("event is too large")
    return pdu


def check_draft(draft: EventDraft) -> None:
    """The grammar a local client's event has to meet; raises SchemaError or InvalidJson."""
    _check_text(draft.type, "type")
    if draft.state_key is not None:
        _check_text(draft.state_key, "state_key")
    if len(canonical_json.encode_valid(draft.fields())) > MAX_LPDU_BYTES - HUB_RESERVE_BYTES:
        raise TooLarge("event is too large")


def _without_local_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    clean = dict(fields)
    for key in _NOT_ON_THE_WIRE:
        clean.pop(key, None)
    return clean


def _check_common(fields: dict[str, Any]) -> None:
    """The fields LPDUs and PDUs share, in the order of D04 §Events."""
    try:
        ids.check_room_id(fields.get("room_id", ""))
        _check_text(fields.get("type"), "type")
        if "state_key" in fields:
            _check_text(fields["state_key"], "state_key")
        ids.check_user_id(fields.get("sender", ""))
        if "hub_server" in fields:
            ids.check_server_name(fields["hub_server"])
    except InvalidIdentifier as error:
        raise SchemaError("an identifier is not valid") from error
    timestamp = fields.get("origin_server_ts")
    if type(timestamp) is not int or abs(timestamp) > canonical_json.MAX_INT:
        raise SchemaError("origin_server_ts is not an integer in range")
    if not isinstance(fields.get("content"), dict):
        raise SchemaError("content is not an object")
    _check_hashes(fields)
    _check_signatures(fields.get("signatures"))


def _check_text(value: object, name: str) -> None:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise SchemaError(f"{name} is not a string of at most 255 characters")
    if "\0" in value:
        raise SchemaError(f"{name} contains NUL")


def _check_hashes(fields: dict[str, Any]) -> None:
    """hashes.lpdu stands with hub_server and never without (D04 §Events, `hashes`)."""
    claimed = fields.get("hashes")
    if not isinstance(claimed, dict):
        raise SchemaError("hashes is not an object")
    lpdu = claimed.get("lpdu")
    if ("hub_server" in fields) != (lpdu is not None):
        raise SchemaError("hashes.lpdu and hub_server go together")
    if lpdu is not None:
        if not isinstance(lpdu, dict):
            raise SchemaError("hashes.lpdu is not an object")
        _check_sha256(lpdu.get("sha256"))
    if "sha256" in claimed:
        _check_sha256(claimed["sha256"])


def _check_sha256(value: object) -> None:
    # A hash of the wrong length could never match; refused early it cannot fill a unique index.
    if not isinstance(value, str) or len(value) > 44:
        raise SchemaError("a content hash is not an encoded SHA-256")
    try:
        if len(unpadded_base64.decode(value)) != SHA256_BYTES:
            raise SchemaError("a content hash is not an encoded SHA-256")
    except InvalidBase64 as error:
        raise SchemaError("a content hash is not an encoded SHA-256") from error


def _check_signatures(value: object) -> None:
    if not isinstance(value, dict):
        raise SchemaError("signatures is not an object")
    for by_key in value.values():
        if not isinstance(by_key, dict) or not all(isinstance(s, str) for s in by_key.values()):
            raise SchemaError("signatures are not objects of strings")


def _check_event_ids(fields: dict[str, Any], name: str, most: int) -> None:
    value = fields.get(name)
    if not isinstance(value, list) or len(value) > most:
        raise SchemaError(f"{name} is not a list of at most {most} event IDs")
    if not all(ids.is_event_id(entry) for entry in value):
        raise SchemaError(f"{name} has an entry that is not an event ID")
