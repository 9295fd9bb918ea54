"""The draft's algorithms, written for the suite alone (D04 §Signing to §Unpadded Base64).

Deliberately naive: what is fast or strict elsewhere is short here, so that the two can disagree.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

STABLE_VERSION = "I.1"
UNSTABLE_VERSION = "org.matrix.i-d.ralston-mimi-linearized-matrix.02"
MAX_EVENT = 65536

Event = dict[str, Any]

_KEPT = [
    "type", "room_id", "sender", "state_key", "content", "origin_server_ts", "hashes", "signatures",
    "prev_events", "auth_events", "hub_server",
]  # fmt: skip
_KEPT_CONTENT = {
    "m.room.member": ["membership"],
    "m.room.join_rules": ["join_rule"],
    "m.room.power_levels": [
        "ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default",
        "invite",
    ],
    "m.room.history_visibility": ["history_visibility"],
}  # fmt: skip


def canonical(value: Any) -> bytes:
    """RFC 8785 for values without floats: keys sort by UTF-16 code units."""
    return _text(value).encode("utf-8")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        members = sorted(value.items(), key=lambda member: member[0].encode("utf-16-be"))
        return "{" + ",".join(f"{_text(key)}:{_text(item)}" for key, item in members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def encode(data: bytes) -> str:
    """Unpadded base64."""
    return base64.b64encode(data).decode().rstrip("=")


def decode(text: str) -> bytes:
    """Base64 with or without padding; raises ValueError."""
    return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)


def without(value: Event, *names: str) -> Event:
    return {key: item for key, item in value.items() if key not in names}


def redact(event: Event, version: str) -> Event:
    """D04 §Event Redactions. Both known peers keep `allow` of join rules under the .02 name."""
    kept = {key: event[key] for key in _KEPT if key in event}
    if event["type"] != "m.room.create":
        allowed = list(_KEPT_CONTENT.get(event["type"], []))
        if version == UNSTABLE_VERSION and event["type"] == "m.room.join_rules":
            allowed.append("allow")
        kept["content"] = {key: event["content"][key] for key in allowed if key in event["content"]}
    return kept


def lpdu_of(pdu: Event) -> Event:
    """The LPDU inside a PDU: what its sender's server hashed and signed."""
    return {**without(pdu, "auth_events", "prev_events"), "hashes": {"lpdu": pdu["hashes"].get("lpdu")}}


def lpdu_hash(event: Event) -> str:
    """D04 §Content Hash Calculation, 1.1; of an LPDU or of the one inside a PDU."""
    return _sha256(without(event, "signatures", "hashes", "auth_events", "prev_events"))


def pdu_hash(event: Event) -> str:
    """D04 §Content Hash Calculation, 1.2. Without `hashes.lpdu` there is no `hashes` to cover."""
    covered = without(event, "signatures", "hashes")
    lpdu = event.get("hashes", {}).get("lpdu")
    return _sha256(covered if lpdu is None else {**covered, "hashes": {"lpdu": lpdu}})


def _sha256(value: Any) -> str:
    return encode(hashlib.sha256(canonical(value)).digest())


def reference(event: Event, version: str) -> bytes:
    """What is signed, and hashed for the ID: redacted, without signatures."""
    return canonical(without(redact(event, version), "signatures"))


def event_id(event: Event, version: str) -> str:
    digest = hashlib.sha256(reference(event, version)).digest()
    return "$" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


@dataclass(frozen=True)
class Key:
    """A signing key of a server of the suite."""

    server: str
    key_id: str
    private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def make(cls, server: str, key_id: str, seed: bytes | None = None) -> Key:
        made = Ed25519PrivateKey.generate() if seed is None else Ed25519PrivateKey.from_private_bytes(seed)
        return cls(server, key_id, made)

    @classmethod
    def derive(cls, server: str, seed: bytes, use: str) -> Key:
        """The same key for the same seed, server and use; other bytes have another key ID."""
        digest = hashlib.sha512(f"{use} {server} ".encode() + seed).digest()
        return cls.make(server, f"ed25519:{use}_{digest[32:36].hex()}", digest[:32])

    @property
    def public(self) -> str:
        return encode(self.private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> str:
        return encode(self.private.sign(message))

    def add_to(self, signatures: Any, message: bytes) -> dict[str, Any]:
        """The signatures with this key's added."""
        added = {server: dict(by_key) for server, by_key in (signatures or {}).items()}
        added.setdefault(self.server, {})[self.key_id] = self.sign(message)
        return added

    def sign_object(self, value: Event) -> Event:
        """D04 §Signing Arbitrary Objects."""
        message = canonical(without(value, "signatures"))
        return {**value, "signatures": self.add_to(value.get("signatures"), message)}

    def sign_event(self, event: Event, version: str) -> Event:
        """D04 §Signing Events, for an LPDU or PDU as it stands."""
        return {**event, "signatures": self.add_to(event.get("signatures"), reference(event, version))}


Keys = dict[str, str]
"""Key ID to public key in unpadded base64."""


def verifies(public: str, message: bytes, signature: object) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(decode(public)).verify(decode(str(signature)), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def has_signature(value: Event, server: str, keys: Keys, message: bytes) -> bool:
    """Whether one of the server's known keys signed the message (D04 §Checking Signatures)."""
    by_server = value.get("signatures", {})
    by_key = by_server.get(server, {}) if isinstance(by_server, dict) else {}
    if not isinstance(by_key, dict):
        return False
    return any(verifies(keys[key_id], message, sig) for key_id, sig in by_key.items() if key_id in keys)


def server_of(identifier: str) -> str:
    return identifier.partition(":")[2]


def selection(event: Event) -> list[tuple[str, str]]:
    """Type and state key of what `auth_events` must hold, as far as it is in the state
    (D04 §Auth Events Selection); join rules may stand there for a knock too."""
    wanted = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", event["sender"])]
    if event["type"] == "m.room.member":
        wanted.append(("m.room.member", event["state_key"]))
        if event["content"].get("membership") in ("join", "invite"):
            wanted.append(("m.room.join_rules", ""))
    return list(dict.fromkeys(wanted))
