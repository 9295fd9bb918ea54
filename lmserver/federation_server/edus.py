"""Ephemeral data units from other servers (D04 §EDUs), in the draft's form and in Matrix's.

Whatever is not well-formed, not of the sending server or not known is ignored: an EDU never
fails a transaction (attack B23).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from lmserver.protocol import ids
from lmserver.storage.database import DatabaseUnavailable

MAX_TARGETS = 1000
MAX_TEXT = 255

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ToDevice:
    """One message for one device; `device_id` "*" means all of the user's."""

    sender: str
    user_id: str
    device_id: str
    type: str
    content: dict[str, Any]
    message_id: str | None


ToDeviceSink = Callable[[str, Sequence[ToDevice]], Awaitable[None]]
"""(origin, messages): stores them; unknown users and devices are ignored."""
EduSinkFunction = Callable[[str, str | None, dict[str, Any]], Awaitable[None]]
"""(origin, sender if the EDU names one, content)."""


class EduDispatcher:
    """`others` maps an EDU type (m.typing, m.receipt, m.device_list_update, ...) to who takes it.

    Senders inside the content of those are for the taker to check against the origin.
    """

    def __init__(self, our_name: str, to_device: ToDeviceSink, others: Mapping[str, EduSinkFunction]) -> None:
        self._our_name = our_name
        self._to_device = to_device
        self._others = others

    async def receive(self, origin: str, edus: Sequence[Any]) -> None:
        """Raises only DatabaseUnavailable, so that the peer sends the transaction again."""
        for edu in edus:
            try:
                await self._receive(origin, edu)
            except DatabaseUnavailable:
                raise
            except Exception as error:  # a defect in one kind must not stop the others
                log.error("edu_failed", origin=origin, error=type(error).__name__, exc_info=error)

    async def _receive(self, origin: str, edu: Any) -> None:
        if not isinstance(edu, dict) or not isinstance(edu.get("content"), dict):
            return
        kind = edu.get("type", edu.get("edu_type"))
        content: dict[str, Any] = edu["content"]
        senders = [edu[name] for name in ("sender", "sender_id") if name in edu]
        if any(not _is_of(sender, origin) for sender in senders) or len(set(senders)) > 1:
            return
        sender: str | None = senders[0] if senders else None
        if kind == "m.direct_to_device":
            messages = list(self._messages(origin, sender, content))
            if messages:
                await self._to_device(origin, messages)
        elif isinstance(kind, str) and kind in self._others:
            await self._others[kind](origin, sender, content)

    def _messages(self, origin: str, sender: str | None, content: dict[str, Any]) -> Iterator[ToDevice]:
        if "target" in content:
            if sender is not None:
                yield from self._one(
                    sender,
                    content["target"],
                    content.get("target_device"),
                    content.get("message_type"),
                    content.get("message"),
                    None,
                )
            return
        inner = content.get("sender", sender)
        if (
            not isinstance(inner, str)
            or not _is_of(inner, origin)
            or (sender is not None and inner != sender)
        ):
            return
        yield from self._matrix(inner, content)

    def _matrix(self, sender: str, content: dict[str, Any]) -> Iterator[ToDevice]:
        """SS API §m.direct_to_device: a map of users to devices to messages."""
        users, message_id = content.get("messages"), content.get("message_id")
        if not isinstance(users, dict) or not (message_id is None or _is_text(message_id)):
            return
        left = MAX_TARGETS
        for user_id, devices in users.items():
            if not isinstance(devices, dict):
                continue
            for device_id, message in devices.items():
                if left == 0:
                    return
                left -= 1
                yield from self._one(sender, user_id, device_id, content.get("type"), message, message_id)

    def _one(
        self, sender: str, user_id: Any, device_id: Any, type_: Any, message: Any, message_id: str | None
    ) -> Iterator[ToDevice]:
        ok = _is_of(user_id, self._our_name) and _is_text(device_id) and _is_text(type_)
        if ok and isinstance(message, dict):
            yield ToDevice(sender, user_id, device_id, type_, message, message_id)


def _is_of(user_id: Any, server: str) -> bool:
    return isinstance(user_id, str) and ids.is_user_id(user_id) and ids.server_of(user_id) == server


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and "\0" not in value
