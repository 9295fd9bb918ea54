"""Typing, receipts and presence in EDUs (SS API §Typing Notifications, §Receipts, §Presence): shapes, and
whose they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmserver.federation_server.edus import Edu, is_of
from lmserver.protocol import ids
from lmserver.rooms.presence import MAX_STATUS, STATES, Presence, Status
from lmserver.rooms.remote_ephemeral import RemoteEphemeral, RemoteReceipt, RemoteTyping

MAX_RECEIPTS = 1_000
"""Receipts of one transaction; the rest of it is ignored."""
MAX_EVENT_IDS = 10
MAX_PRESENCE = 100
"""Users of one transaction."""


class EphemeralEdus:
    """Takers for the dispatcher."""

    def __init__(self, rooms: RemoteEphemeral, presence: Presence, clock: Callable[[], int]) -> None:
        self._rooms = rooms
        self._presence = presence
        self._clock = clock

    async def typing(self, origin: str, found: Sequence[Edu]) -> None:
        """m.typing."""
        changes = []
        for edu in found:
            room_id, is_typing = edu.content.get("room_id"), edu.content.get("typing")
            user_id = edu.user(origin, edu.content.get("user_id"))
            if user_id is not None and ids.is_room_id(room_id) and isinstance(is_typing, bool):
                changes.append(RemoteTyping(str(room_id), user_id, is_typing))
        await self._rooms.receive_typing(changes)

    async def receipts(self, origin: str, found: Sequence[Edu]) -> None:
        """m.receipt: of the public ones those of the origin's own users, whoever the sender is."""
        receipts: list[RemoteReceipt] = []
        for edu in found:
            for receipt in self._receipts(origin, edu):
                if len(receipts) >= MAX_RECEIPTS:
                    break
                receipts.append(receipt)
        await self._rooms.receive_receipts(receipts)

    async def presence(self, origin: str, found: Sequence[Edu]) -> None:
        """m.presence: the users of the origin in its `push` lists."""
        statuses: dict[str, Status] = {}
        for edu in found:
            push = edu.content.get("push")
            for entry in (push if isinstance(push, list) else [])[:MAX_PRESENCE]:
                user_id = edu.user(origin, entry.get("user_id")) if isinstance(entry, dict) else None
                if user_id is not None and entry.get("presence") in STATES and len(statuses) < MAX_PRESENCE:
                    statuses[user_id] = self._status(entry)
        await self._presence.changed_elsewhere(list(statuses.items()))

    def _status(self, entry: dict[str, Any]) -> Status:
        text, ago = entry.get("status_msg"), entry.get("last_active_ago")
        return Status(
            entry["presence"],
            text if isinstance(text, str) and len(text) <= MAX_STATUS else None,
            max(0, self._clock() - ago) if type(ago) is int and ago >= 0 else 0,
        )

    def _receipts(self, origin: str, edu: Edu) -> Iterator[RemoteReceipt]:
        for room_id, kinds in edu.content.items():
            by_user = kinds.get("m.read") if ids.is_room_id(room_id) and isinstance(kinds, dict) else None
            for user_id, value in (by_user if isinstance(by_user, dict) else {}).items():
                if (
                    not is_of(user_id, origin)
                    or edu.sender not in (None, user_id)
                    or not isinstance(value, dict)
                ):
                    continue
                data = value.get("data")
                thread_id = _thread(data)
                if thread_id is None:
                    continue
                for event_id in _event_ids(value.get("event_ids")):
                    yield RemoteReceipt(room_id, user_id, event_id, thread_id, self._ts(data))

    def _ts(self, data: Any) -> int:
        """When it was read, by their clock, but not in the future."""
        now, ts = self._clock(), data.get("ts") if isinstance(data, dict) else None
        return min(ts, now) if type(ts) is int and ts >= 0 else now


def _event_ids(value: Any) -> list[str]:
    found = value[:MAX_EVENT_IDS] if isinstance(value, list) else []
    return [event_id for event_id in found if ids.is_event_id(event_id)]


def _thread(data: Any) -> str | None:
    """ "" for no thread, or its root's ID; None for what is none."""
    thread = data.get("thread_id", "") if isinstance(data, dict) else ""
    return thread if thread in ("", "main") or ids.is_event_id(thread) else None
