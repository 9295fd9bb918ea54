"""Ephemeral data units from other servers (D04 §EDUs), in the draft's form, in Matrix's and in its
older one with `edu_type`.

Whatever is not well-formed, not of the sending server or not known is ignored: an EDU never
fails a transaction and never harms another (attack B23).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeGuard

import orjson
import structlog

from lmserver.protocol import ids
from lmserver.protocol.edus import MAX_EDU, TO_DEVICE
from lmserver.storage.database import DatabaseUnavailable
from lmserver.storage.to_device import RemoteMessage

MAX_TARGETS = 10_000
"""Messages of one transaction; the rest of it is ignored."""
MAX_TEXT = 255

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Edu:
    """One EDU; `sender`, if it names one, is a user of the origin."""

    sender: str | None
    content: dict[str, Any]

    def user(self, origin: str, claimed: Any) -> str | None:
        """The user it is about: the sender, and whom its content names, if those agree and are the
        origin's."""
        if claimed is None:
            return self.sender
        right = is_of(claimed, origin) and self.sender in (None, claimed)
        return claimed if right else None


ToDeviceSink = Callable[[str, Sequence[RemoteMessage]], Awaitable[None]]
"""(origin, messages): stores them; unknown users and devices, and messages that came before, are ignored."""
Taker = Callable[[str, Sequence[Edu]], Awaitable[None]]
"""(origin, EDUs of its type in one transaction, in order)."""


class EduDispatcher:
    """`takers` maps an EDU type (m.typing, m.receipt, m.device_list_update, ...) to who takes it.

    Users inside the content are for the taker to check against the origin.
    """

    def __init__(self, our_name: str, to_device: ToDeviceSink, takers: Mapping[str, Taker]) -> None:
        self._our_name = our_name
        self._to_device = to_device
        self._takers = takers

    async def to_devices(self, origin: str, txn_id: str, edus: Sequence[Any]) -> None:
        """Messages to devices alone. Raises only DatabaseUnavailable, so that the peer sends the
        transaction again."""
        messages: dict[bytes, RemoteMessage] = {}
        for place, item in enumerate(edus):
            kind, edu = _parse(item, origin)
            if edu is None or kind != TO_DEVICE:
                continue
            for message in self._messages(edu, f"{txn_id}/{place}"):
                if len(messages) < MAX_TARGETS:
                    messages.setdefault(message.key, message)
        if messages:
            await self._take(TO_DEVICE, self._to_device, origin, list(messages.values()))

    async def receive(self, origin: str, edus: Sequence[Any]) -> None:
        """All others. Raises the same."""
        others: dict[str, list[Edu]] = {}
        for item in edus:
            kind, edu = _parse(item, origin)
            if edu is not None and kind in self._takers:
                others.setdefault(kind, []).append(edu)
        for kind, of_kind in others.items():
            await self._take(kind, self._takers[kind], origin, of_kind)

    @staticmethod
    async def _take(
        kind: str, take: Callable[[str, Sequence[Any]], Awaitable[None]], origin: str, items: Sequence[Any]
    ) -> None:
        """All at once; if that fails for no reason we know, each by itself."""
        for batch in (items, *([item] for item in items)):
            try:
                await take(origin, batch)
            except DatabaseUnavailable:
                raise
            except Exception as error:  # a defect in one must not stop the others
                log.error("edu_failed", kind=kind, origin=origin, error=type(error).__name__, exc_info=error)
            else:
                if batch is items:
                    return

    def _messages(self, edu: Edu, place: str) -> Iterator[RemoteMessage]:
        content, sender = edu.content, edu.sender
        message_id = content.get("message_id")
        if "target" in content:
            targets = [(content["target"], content.get("target_device"), content.get("message"))]
            type_ = content.get("message_type")
        else:
            if "sender" in content and content["sender"] != (sender or content["sender"]):
                return
            targets = list(_targets(content.get("messages")))
            type_ = content.get("type")
        if sender is None or not _is_text(type_):
            return
        # Without an ID of its own a message is known by its place in the transaction that brought it,
        # which is repeated unchanged until we answer.
        name = f"id {message_id}" if _is_text(message_id) else f"at {place}"
        for user_id, device_id, message in targets:
            if not is_of(user_id, self._our_name) or not _is_text(device_id) or not isinstance(message, dict):
                continue
            data = orjson.dumps({"type": type_, "sender": sender, "content": message})
            if len(data) <= MAX_EDU + 2 * MAX_TEXT:
                yield RemoteMessage(_key(sender, name, user_id, device_id), user_id, device_id, data)


def _parse(item: Any, origin: str) -> tuple[str, Edu | None]:
    """The type and what stands in the EDU, or None for what is not the origin's to send."""
    if not isinstance(item, dict) or not isinstance(item.get("content"), dict):
        return "", None
    kind, content = item.get("type", item.get("edu_type")), item["content"]
    senders = [item[name] for name in ("sender", "sender_id") if name in item]
    if not senders and kind == TO_DEVICE and "sender" in content:
        senders = [content["sender"]]  # Matrix names it inside
    if not isinstance(kind, str) or not all(is_of(sender, origin) for sender in senders):
        return "", None
    if len(set(senders)) > 1:
        return "", None
    return kind, Edu(senders[0] if senders else None, content)


def _targets(messages: Any) -> Iterator[tuple[Any, Any, Any]]:
    """SS API §m.direct_to_device: a map of users to devices to messages."""
    for user_id, devices in (messages if isinstance(messages, dict) else {}).items():
        for device_id, message in (devices if isinstance(devices, dict) else {}).items():
            yield user_id, device_id, message


def _key(*parts: str) -> bytes:
    return sha256(b"\0".join(part.encode("utf-8", "surrogatepass") for part in parts)).digest()


def is_of(user_id: Any, server: str) -> TypeGuard[str]:
    """Whether this is the ID of a user of the server."""
    return isinstance(user_id, str) and ids.is_user_id(user_id) and ids.server_of(user_id) == server


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and "\0" not in value
