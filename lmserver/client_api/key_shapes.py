"""The shapes of keys and of messages between devices, as clients send them: whatever is taken here is
handed on to other servers and clients, who must be able to take it too (attack C9)."""

from __future__ import annotations

from typing import Any, TypeGuard

from lmserver.accounts.device_data import MAX_ONE_TIME_KEYS
from lmserver.protocol import canonical_json, ids
from lmserver.protocol.edus import MAX_EDU
from lmserver.protocol.errors import InvalidJson
from lmserver.web.errors import bad_json, too_large

MAX_DEVICE_KEYS = MAX_EDU // 2
"""Bytes: an EDU carries them twice."""


def check_device_keys(value: object, user_id: str, device_id: str) -> None:
    """Keys of this device (CS API §Device keys)."""
    right = (
        isinstance(value, dict)
        and value.get("user_id") == user_id
        and value.get("device_id") == device_id
        and isinstance(value.get("algorithms"), list)
        and all(isinstance(algorithm, str) for algorithm in value["algorithms"])
        and _texts(value.get("keys"))
        and isinstance(value.get("signatures"), dict)
        and all(_texts(of_user) for of_user in value["signatures"].values())
    )
    if not right:
        raise bad_json("device_keys are not those of this device")
    check_canonical(value, "device_keys", MAX_DEVICE_KEYS)


def keys(body: dict[str, Any], name: str) -> dict[str, Any]:
    """One-time or fallback keys by "algorithm:id"; none where there are none."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_ONE_TIME_KEYS:
        raise bad_json(f"{name} is an object of at most {MAX_ONE_TIME_KEYS} keys")
    if name == "fallback_keys" and len({key_id.split(":")[0] for key_id in value}) < len(value):
        raise bad_json("There is one fallback key of each algorithm")
    for key_id, key in value.items():
        if ":" not in key_id or len(key_id) > 255 or "\0" in key_id or not isinstance(key, str | dict):
            raise bad_json(f"{name} maps algorithm:id to keys")
        check_canonical(key, name)
    return value


def check_claim(user_id: str, devices: object) -> None:
    """Device ID to the algorithm that is wanted."""
    if not ids.is_user_id(user_id) or not _texts(devices):
        raise bad_json("one_time_keys maps user IDs to devices and algorithms")
    if any("\0" in device_id + algorithm for device_id, algorithm in devices.items()):
        raise bad_json("one_time_keys maps user IDs to devices and algorithms")


def check_messages(user_id: str, by_device: object) -> None:
    """Device ID, or "*", to the content of a message."""
    if not ids.is_user_id(user_id) or not isinstance(by_device, dict):
        raise bad_json("messages maps user IDs to devices and contents")
    for device_id, content in by_device.items():
        if "\0" in device_id or not isinstance(content, dict):
            raise bad_json("messages maps user IDs to devices and contents")
        check_canonical(content, "messages")


def check_canonical(value: object, name: str, most: int = MAX_EDU) -> None:
    """What other servers are sent has one form, and no more bytes than they would take."""
    try:
        size = len(canonical_json.encode(value))
    except InvalidJson as error:
        raise bad_json(f"{name}: {error}") from None
    if size > most:
        raise too_large()


def _texts(value: object) -> TypeGuard[dict[str, str]]:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
