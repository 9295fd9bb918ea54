"""Ed25519 signatures over JSON objects and events (D04 §Signing).

Which servers must have signed what: the sender's server signs the LPDU when another server is
the hub, the hub signs the full PDU. No other signature counts, and none causes a key fetch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import CryptoError

from lmserver.protocol import canonical_json, unpadded_base64
from lmserver.protocol.errors import InvalidBase64, SignatureError

if TYPE_CHECKING:
    from lmserver.protocol.events import Lpdu, Pdu

SIGNATURE_BYTES = 64
_SAME_LENGTH = "A" * 86  # of 64 bytes in unpadded base64
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """An Ed25519 public key of 32 bytes."""

    key_bytes: bytes

    def __post_init__(self) -> None:
        if len(self.key_bytes) != KEY_BYTES:
            raise SignatureError("verify key has the wrong length")

    @classmethod
    def from_base64(cls, text: str) -> VerifyKey:
        """Raises InvalidBase64 or SignatureError."""
        return cls(unpadded_base64.decode(text))

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raises SignatureError; libsodium refuses malleable signatures and small-order keys."""
        if len(signature) != SIGNATURE_BYTES:
            raise SignatureError("signature has the wrong length")
        try:
            crypto_sign_open(signature + message, self.key_bytes)
        except (CryptoError, ValueError, TypeError) as error:
            raise SignatureError("signature is not valid") from error


@dataclass(slots=True, eq=False)
class SigningKey:
    """A server's Ed25519 signing key and the name it signs for.

    One object for as long as the server runs: whoever holds it follows a rotation.
    """

    server_name: str
    key_id: str
    seed: bytes = field(repr=False)
    verify_key: VerifyKey
    _secret: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, server_name: str, key_id: str, seed: bytes) -> SigningKey:
        """`seed` is 32 bytes from the operating system's generator."""
        public, secret = crypto_sign_seed_keypair(seed)
        return cls(server_name, key_id, seed, VerifyKey(public), secret)

    def become(self, other: SigningKey) -> None:
        """Sign as `other` does from now on."""
        self.key_id, self.seed = other.key_id, other.seed
        self.verify_key, self._secret = other.verify_key, other._secret

    def sign(self, message: bytes) -> bytes:
        """A signature of 64 bytes."""
        return crypto_sign(message, self._secret)[:SIGNATURE_BYTES]

    def sign_base64(self, message: bytes) -> str:
        return unpadded_base64.encode(self.sign(message))

    def sign_into(self, signatures: dict[str, Any], message: bytes) -> None:
        """Put a signature in the place of an event's signatures that is this server's."""
        signatures[self.server_name] = {self.key_id: self.sign_base64(message)}


class Signer(Protocol):
    """What a hub completes events with: its key, or a list of what the key will sign."""

    @property
    def server_name(self) -> str: ...

    def sign_into(self, signatures: dict[str, Any], message: bytes) -> None: ...


class LaterSignatures:
    """Signatures made after the events have been decided: an event's ID does not depend on them, so the
    next event does not wait for them either. Until `finish` their places hold a text of the same length,
    and nothing may be made of an event's bytes but their number."""

    def __init__(self, key: SigningKey) -> None:
        self._key = replace(key)  # which may be rotated in between
        self._waiting: list[tuple[dict[str, str], bytes]] = []

    @property
    def server_name(self) -> str:
        return self._key.server_name

    def __len__(self) -> int:
        return len(self._waiting)

    def sign_into(self, signatures: dict[str, Any], message: bytes) -> None:
        place = {self._key.key_id: _SAME_LENGTH}
        signatures[self._key.server_name] = place
        self._waiting.append((place, message))

    def finish(self, start: int, stop: int) -> None:
        """Make those from `start` up to `stop`; ranges that do not overlap may be made side by side."""
        for place, message in self._waiting[start:stop]:
            place[self._key.key_id] = self._key.sign_base64(message)


KeySet = Mapping[str, Mapping[str, VerifyKey]]
"""Server name to key ID to key."""


def _bytes_to_sign(obj: Mapping[str, Any]) -> bytes:
    return canonical_json.encode(
        {key: value for key, value in obj.items() if key not in ("signatures", "unsigned")}
    )


def sign_json(obj: dict[str, Any], key: SigningKey) -> dict[str, Any]:
    """A copy of the object with the key's signature added (D04 §Signing Arbitrary Objects)."""
    signatures = {server: dict(sigs) for server, sigs in obj.get("signatures", {}).items()}
    signatures.setdefault(key.server_name, {})[key.key_id] = key.sign_base64(_bytes_to_sign(obj))
    return {**obj, "signatures": signatures}


def check_json_signature(obj: Mapping[str, Any], server: str, keys: Mapping[str, VerifyKey]) -> None:
    """Raises SignatureError unless `server` signed the object with one of its known `keys`."""
    _check(obj.get("signatures"), server, keys, _bytes_to_sign(obj))


def required_signers(event: Lpdu | Pdu) -> tuple[str, ...]:
    """The servers whose signature the event needs (D04 §Receiving Events, step 2)."""
    hub = event.hub_server
    if hub is None or hub == event.server or not event.has_place:
        return (event.server,)
    return (event.server, hub)


def check_event_signatures(event: Lpdu | Pdu, keys: KeySet) -> None:
    """Raises SignatureError unless every required signature is there and valid.

    With a hub that is not the sender's server the sender's signature covers the LPDU and the
    hub's the full PDU; otherwise one signature covers the event as it is.
    """
    signatures = event.fields["signatures"]
    signers = required_signers(event)
    if len(signers) == 1:
        _check(signatures, event.server, keys.get(event.server, {}), event.reference_bytes)
        return
    sender, hub = signers
    _check(signatures, hub, keys.get(hub, {}), event.reference_bytes)
    _check(signatures, sender, keys.get(sender, {}), event.lpdu_reference_bytes)


def _check(signatures: object, server: str, keys: Mapping[str, VerifyKey], message: bytes) -> None:
    """One valid signature with a known key is enough (D04 §Checking Signatures)."""
    by_server = signatures.get(server) if isinstance(signatures, dict) else None
    if not isinstance(by_server, dict):
        raise SignatureError("signature of a required server is missing")
    for key_id, text in by_server.items():
        key = keys.get(key_id)
        if key is None or not isinstance(text, str):
            continue
        try:
            key.verify(message, unpadded_base64.decode(text))
        except (InvalidBase64, SignatureError):
            continue
        return
    raise SignatureError("no valid signature of a required server")
