"""What /sync reads besides rooms: account data, to-device messages, receipts, device keys.

One class between the answer and the tables, so that the rules of an answer stand in one place
and the tables' shapes in another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from lmserver.protocol.canonical_json import JsonObject
from lmserver.storage import receipts
from lmserver.storage.database import Executor
from lmserver.storage.receipts import Receipt

MAX_MESSAGES: Final = 100
"""Messages to a device in one answer, unless more were sent at once."""
MAX_RECEIPTS: Final = 5_000
"""Receipts of one answer; the furthest ones are kept."""

KeyCounts = tuple[dict[str, int], list[str]]
"""One-time keys left by algorithm, and algorithms with an unused fallback key."""


class DeviceData(Protocol):
    """To-device messages and key counts, kept by whoever owns devices."""

    async def messages(
        self, user_id: str, device_id: str, since: int, upto: int, most: int = MAX_MESSAGES
    ) -> tuple[list[JsonObject], int]:
        """Messages in [since, upto) with the position reading got to; those before `since` are
        acknowledged and deleted (CS API §Send-to-Device messaging)."""
        ...

    async def key_counts(self, user_id: str, device_id: str) -> KeyCounts: ...

    async def changed_users(self, user_id: str, since: int, upto: int) -> set[str]:
        """Users whose device list or cross-signing keys changed in [since, upto), and those whose keys
        the user signed, which nobody else can see."""
        ...


class AccountData(Protocol):
    """Account data, global under the room ID ""."""

    async def changed(self, user_id: str, since: int, upto: int) -> dict[str, list[JsonObject]]:
        """Events by room ID that changed in [since, upto)."""
        ...

    async def of_rooms(self, user_id: str, room_ids: Iterable[str]) -> dict[str, list[JsonObject]]:
        """All account data of some rooms."""
        ...


class PresenceData(Protocol):
    """Who is online."""

    async def changed(self, user_id: str, since: int | None) -> list[JsonObject]:
        """Events of users the user shares a room with, after a serial number."""
        ...


class Feeds:
    """The non-room parts of one user's stream."""

    def __init__(
        self, db: Executor, devices: DeviceData, account_data: AccountData, presence: PresenceData
    ) -> None:
        self._db = db
        self._presence = presence
        self._devices = devices
        self._account_data = account_data

    async def to_device(
        self, user_id: str, device_id: str, since: int, upto: int, most: int = MAX_MESSAGES
    ) -> tuple[list[JsonObject], int]:
        """See DeviceData.messages; an answer never goes further than the messages it carries."""
        return await self._devices.messages(user_id, device_id, since, upto, most)

    async def key_counts(self, user_id: str, device_id: str) -> KeyCounts:
        """In every answer, zero included: clients take an absent count for no keys and upload."""
        counts, fallback = await self._devices.key_counts(user_id, device_id)
        return {"signed_curve25519": 0, **counts}, fallback

    async def changed_device_lists(self, user_id: str, since: int, upto: int) -> set[str]:
        return await self._devices.changed_users(user_id, since, upto)

    async def account_data(self, user_id: str, since: int | None, upto: int) -> dict[str, list[JsonObject]]:
        return await self._account_data.changed(user_id, since or 0, upto)

    async def presence(self, user_id: str, since: int | None) -> list[JsonObject]:
        return await self._presence.changed(user_id, since)

    async def room_account_data(self, user_id: str, room_ids: Iterable[str]) -> dict[str, list[JsonObject]]:
        return await self._account_data.of_rooms(user_id, room_ids)

    async def receipts(
        self, user_id: str, room_ids: Sequence[str], since: int | None, upto: int
    ) -> dict[str, JsonObject]:
        """`m.receipt` contents by room: private receipts only the user's own."""
        return receipt_contents(
            await receipts.changed(self._db, user_id, room_ids, since or 0, upto, MAX_RECEIPTS)
        )

    async def receipts_on(
        self, user_id: str, room_ids: Sequence[str], event_ids: Sequence[str], upto: int
    ) -> dict[str, JsonObject]:
        """The same of the user's own receipts in these rooms and of all public ones on some events."""
        return receipt_contents(await receipts.on_events(self._db, user_id, room_ids, event_ids, upto))


def receipt_contents(found: Iterable[Receipt]) -> dict[str, JsonObject]:
    """`m.receipt` contents by room."""
    contents: dict[str, JsonObject] = {}
    for receipt in found:
        by_event = contents.setdefault(receipt.room_id, {}).setdefault(receipt.event_id, {})
        by_event.setdefault(receipt.receipt_type, {})[receipt.user_id] = _data(receipt)
    return contents


def _data(receipt: Receipt) -> dict[str, Any]:
    data: dict[str, Any] = {"ts": receipt.ts}
    if receipt.thread_id:
        data["thread_id"] = receipt.thread_id
    return data
