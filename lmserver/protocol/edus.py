"""Ephemeral data units as we send them (D04 §Ephemeral Data Units; SS API §EDUs for what D04 leaves out).

Every one names its sender twice: the draft's text says `sender_id`, its schema `sender`.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from lmserver.protocol import canonical_json, unpadded_base64
from lmserver.protocol.canonical_json import JsonObject

TO_DEVICE: Final = "m.direct_to_device"
DEVICE_LIST: Final = "m.device_list_update"
SIGNING_KEY: Final = "m.signing_key_update"
UNSTABLE_SIGNING_KEY: Final = "org.matrix.signing_key_update"
TYPING: Final = "m.typing"
RECEIPT: Final = "m.receipt"
PRESENCE: Final = "m.presence"

MAX_EDU: Final = 65_536
"""Bytes of the content of one message or of one device's keys: as much as an event may have."""


def to_device(
    sender: str, target: str, target_device: str, message_type: str, message: JsonObject, message_id: str
) -> bytes:
    """One message for one device (D04 §To-Device Messaging).

    The draft names no `message_id`, Matrix does: with it a receiver knows the message again whatever
    transaction brings it. Raises InvalidJson for a message without canonical form.
    """
    content: JsonObject = {
        "target": target,
        "target_device": target_device,
        "message_type": message_type,
        "message": message,
        "message_id": message_id,
    }
    return _edu(TO_DEVICE, sender, content)


def message_id(*parts: str) -> str:
    """The same for the same message: made of who sent what to whom under which transaction ID."""
    digest = sha256(b"\0".join(part.encode("utf-8", "surrogatepass") for part in parts)).digest()
    return unpadded_base64.encode_urlsafe(digest)[:32]


def device_list_update(user_id: str, device_id: str, keys: JsonObject | None, stream_id: int) -> bytes:
    """A device with new keys, or one that is gone, in two forms at once: as the device signed them
    (D04 §Device Info Publishing), and as Matrix names it (SS API §m.device_list_update).

    `stream_id` counts the changes of the user's list from 1, so the one before is known. Raises
    InvalidJson for keys without canonical form.
    """
    content: JsonObject = {
        "changed": [] if keys is None else [keys],
        "removed": [device_id] if keys is None else [],
        "user_id": user_id,
        "device_id": device_id,
        "stream_id": stream_id,
        "prev_id": [stream_id - 1] if stream_id > 1 else [],
        "deleted": keys is None,
    }
    return _edu(DEVICE_LIST, user_id, content if keys is None else {**content, "keys": keys})


def signing_key_update(user_id: str, keys: Mapping[str, JsonObject]) -> bytes:
    """A user's cross-signing keys as others may see them, by usage (SS API §m.signing_key_update)."""
    return _edu(SIGNING_KEY, user_id, {"user_id": user_id} | {f"{usage}_key": k for usage, k in keys.items()})


def typing(room_id: str, user_id: str, is_typing: bool) -> bytes:
    """SS API §Typing Notifications."""
    return _edu(TYPING, user_id, {"room_id": room_id, "user_id": user_id, "typing": is_typing})


def receipt(room_id: str, user_id: str, event_id: str, ts: int, thread_id: str) -> bytes:
    """A public receipt (SS API §Receipts); `thread_id` is "" for one without thread."""
    data: JsonObject = {"ts": ts} | ({"thread_id": thread_id} if thread_id else {})
    content = {room_id: {"m.read": {user_id: {"event_ids": [event_id], "data": data}}}}
    return _edu(RECEIPT, user_id, content)


def presence(user_id: str, content: JsonObject) -> bytes:
    """SS API §Presence, of one user."""
    return _edu(PRESENCE, user_id, {"push": [{"user_id": user_id, **content}]})


def _edu(type_: str, sender: str, content: JsonObject) -> bytes:
    return canonical_json.encode({"type": type_, "sender": sender, "sender_id": sender, "content": content})
