"""Devices and cross-signing keys that sign each other for good, as clients make them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from lmserver.protocol import unpadded_base64
from lmserver.protocol.signatures import SigningKey, sign_json

Json = dict[str, Any]


def signing_key(user_id: str, key_id: str | None = None) -> SigningKey:
    """A new key; named after itself unless it is a device's."""
    key = SigningKey.from_seed(user_id, "", os.urandom(32))
    key.key_id = key_id or f"ed25519:{public(key)}"
    return key


def public(key: SigningKey) -> str:
    return unpadded_base64.encode(key.verify_key.key_bytes)


def only(obj: Json, key: SigningKey) -> Json:
    """The object with this signature and no other, as signatures are uploaded."""
    bare = {name: value for name, value in obj.items() if name not in ("signatures", "unsigned")}
    return sign_json(bare, key)


@dataclass
class SigningDevice:
    """A device's signing key and what it publishes."""

    user_id: str
    device_id: str
    key: SigningKey = field(init=False)
    keys: Json = field(init=False)

    def __post_init__(self) -> None:
        self.key = signing_key(self.user_id, f"ed25519:{self.device_id}")
        self.keys = sign_json(
            {
                "user_id": self.user_id,
                "device_id": self.device_id,
                "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
                "keys": {self.key.key_id: public(self.key)},
            },
            self.key,
        )


class Identity:
    """The three cross-signing keys of a user."""

    def __init__(self, user_id: str, device: SigningDevice | None = None) -> None:
        self.user_id = user_id
        self.master, self.self_signing, self.user_signing = (signing_key(user_id) for _ in range(3))
        self.master_key = self._object("master", self.master)
        if device is not None:
            self.master_key = sign_json(self.master_key, device.key)

    def _object(self, usage: str, key: SigningKey) -> Json:
        return {"user_id": self.user_id, "usage": [usage], "keys": {key.key_id: public(key)}}

    @property
    def self_signing_key(self) -> Json:
        return sign_json(self._object("self_signing", self.self_signing), self.master)

    @property
    def user_signing_key(self) -> Json:
        return sign_json(self._object("user_signing", self.user_signing), self.master)

    @property
    def body(self) -> Json:
        """For POST /keys/device_signing/upload."""
        return {
            "master_key": self.master_key,
            "self_signing_key": self.self_signing_key,
            "user_signing_key": self.user_signing_key,
        }
