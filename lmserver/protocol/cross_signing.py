"""Cross-signing keys and the signatures between them and devices (CS API §Cross-signing): pure.

A master key vouches for a user's self-signing key, which signs the user's devices, and for the
user-signing key, which signs other users' master keys. Devices may sign their user's master key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.errors import InvalidBase64, ProtocolError, SignatureError
from lmserver.protocol.signatures import VerifyKey, check_json_signature

MASTER: Final = "master"
SELF_SIGNING: Final = "self_signing"
USER_SIGNING: Final = "user_signing"
USAGES: Final = (MASTER, SELF_SIGNING, USER_SIGNING)
PUBLIC_USAGES: Final = (MASTER, SELF_SIGNING)
"""What other users may see."""


class BadKey(ValueError):
    """Not a cross-signing key of this user and usage; the text says why."""


@dataclass(frozen=True, slots=True)
class CrossSigningKey:
    """A key as its user published it: `fields` is the signed object, `public` its unpadded base64."""

    usage: str
    public: str
    fields: JsonObject

    @property
    def key_id(self) -> str:
        return f"ed25519:{self.public}"

    @property
    def verify_key(self) -> VerifyKey:
        return VerifyKey.from_base64(self.public)

    def with_signatures(self, signatures: Mapping[str, Mapping[str, str]]) -> CrossSigningKey:
        return CrossSigningKey(self.usage, self.public, {**self.fields, "signatures": signatures})


def parse(value: object, user_id: str, usage: str) -> CrossSigningKey:
    """Exactly one Ed25519 key, named after itself. Raises BadKey."""
    if not isinstance(value, dict) or value.get("user_id") != user_id:
        raise BadKey(f"the {usage} key is not one of the user")
    usages, keys = value.get("usage"), value.get("keys")
    if not isinstance(usages, list) or usage not in usages:
        raise BadKey(f"the {usage} key is not meant to be one")
    if not isinstance(keys, dict) or len(keys) != 1:
        raise BadKey(f"the {usage} key holds one key")
    ((key_id, public),) = keys.items()
    if not isinstance(public, str) or key_id != f"ed25519:{public}":
        raise BadKey(f"the {usage} key is named after its public key")
    key = CrossSigningKey(usage, public, value)
    try:
        key.verify_key  # noqa: B018 - whether it is one
    except (InvalidBase64, SignatureError):
        raise BadKey(f"the {usage} key is no Ed25519 key") from None
    return key


def signatures_of(obj: Mapping[str, Any], user_id: str) -> dict[str, str]:
    """Key ID to signature of what claims to be signed by a user."""
    signatures = obj.get("signatures")
    of_user = signatures.get(user_id) if isinstance(signatures, dict) else None
    if not isinstance(of_user, dict):
        return {}
    return {key_id: text for key_id, text in of_user.items() if isinstance(text, str)}


def signed_by(obj: Mapping[str, Any], user_id: str, key_id: str, key: VerifyKey) -> bool:
    """Whether the object carries this key's valid signature."""
    try:
        check_json_signature(obj, user_id, {key_id: key})
    except SignatureError:
        return False
    return True


def device_key(device_keys: Mapping[str, Any], device_id: str) -> VerifyKey | None:
    """The Ed25519 key a device published."""
    keys = device_keys.get("keys")
    text = keys.get(f"ed25519:{device_id}") if isinstance(keys, dict) else None
    try:
        return VerifyKey.from_base64(text) if isinstance(text, str) else None
    except ProtocolError:
        return None


def same_object(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a signature over the one is a signature over the other."""
    return _signed_part(one) == _signed_part(other)


def with_signatures(obj: JsonObject, added: Mapping[str, Mapping[str, str]]) -> JsonObject:
    """A copy of the object with further signatures: user ID to key ID to signature."""
    found = obj.get("signatures")
    signatures = dict(found) if isinstance(found, dict) else {}
    for user_id, by_key in added.items():
        of_user = signatures.get(user_id)
        signatures[user_id] = {**(of_user if isinstance(of_user, dict) else {}), **by_key}
    return {**obj, "signatures": signatures}


def _signed_part(obj: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in obj.items() if key not in ("signatures", "unsigned")}
