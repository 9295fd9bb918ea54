"""What encrypting application services are told: messages to the devices of their users, whose device lists
changed, and how many one-time keys are left (MSC2409 §To-device, MSC3202).

A message to a device goes into a transaction and out of the device's queue at once, so it is told once,
and lost by no restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from lmserver.storage import appservices, e2e_keys, room_reads
from lmserver.storage.appservices import TakenMessage
from lmserver.storage.database import Connection, Database

MAX_MESSAGES: Final = 50
MSC2409: Final = "de.sorunome.msc2409."
MSC3202: Final = "org.matrix.msc3202."

JsonObject = dict[str, Any]


class Encryption:
    """Of one service."""

    def __init__(self, db: Database, service: str, sender: str) -> None:
        self._db = db
        self._service = service
        self._sender = sender
        self._since: int | None = None
        self._upto = 0
        self._noted = False
        self.unsettled = False
        """What was committed a moment ago could not be read yet."""

    def note(self) -> None:
        """Something has changed that may concern devices."""
        self._noted = True

    async def begin(self) -> None:
        """Settle how far changes of device lists are told of next. A service that is new to this is told
        of what follows from now on."""
        noted, self._noted = self._noted, False
        self._upto, upcoming = await room_reads.stream_positions(self._db)
        self.unsettled = self._noted = noted and self._upto < upcoming
        if self._since is None:
            since = await appservices.devices_position(self._db, self._service, self._upto)
            # Positions of a database that was restored may be smaller than they were.
            self._since = min(since, self._upto)

    async def take(self, db: Connection, events: Sequence[JsonObject]) -> JsonObject:
        """What belongs into a transaction beside these events, and taken once it commits."""
        messages = await appservices.take_to_device(db, self._service, MAX_MESSAGES)
        fields = await self._device_lists(db, events)
        if messages:
            fields |= _named(MSC2409, "to_device", [_event(message) for message in messages])
        if messages or events or fields:
            fields |= await self._key_counts(db, messages)
        return fields

    async def told(self, db: Connection) -> None:
        """In the same database transaction: what was taken is in one for the service."""
        await appservices.set_devices_position(db, self._service, self._upto)

    def committed(self) -> None:
        self._since = self._upto

    async def _device_lists(self, db: Connection, events: Sequence[JsonObject]) -> JsonObject:
        """Whose devices have to be looked up anew, and whose need not be followed any more: users who
        came into rooms of the service, or left the last of them."""
        moved = {e["state_key"] for e in events if e["type"] == "m.room.member"}
        changed = await e2e_keys.lists_changed(db, self._since or 0, self._upto)
        near = await appservices.users_near(db, self._service, changed | moved)
        came = {e["state_key"] for e in events if _membership(e) == "join"}
        now = sorted(near & (changed | came))
        left = sorted(user for user in moved - near if not self._is_here(user, events))
        if not now and not left:
            return {}
        return _named(MSC3202, "device_lists", {"changed": now, "left": left})

    def _is_here(self, user: str, events: Sequence[JsonObject]) -> bool:
        """Whether the last that is told of a user is not that they left."""
        last = [_membership(e) for e in events if e.get("state_key") == user and _membership(e)]
        return not last or last[-1] not in ("leave", "ban")

    async def _key_counts(self, db: Connection, messages: Iterable[TakenMessage]) -> JsonObject:
        """Of the devices that are written to, and of those of the service's own user."""
        own = await appservices.devices_with_keys(db, self._sender)
        devices = sorted({(m.user_id, m.device_id) for m in messages} | own)
        if not devices:
            return {}
        counts: dict[str, dict[str, Mapping[str, int]]] = {}
        fallback: dict[str, dict[str, Sequence[str]]] = {}
        for (user, device), found in zip(devices, await e2e_keys.key_counts(db, devices), strict=True):
            counts.setdefault(user, {})[device] = {"signed_curve25519": 0, **found.one_time}
            fallback.setdefault(user, {})[device] = found.fallback
        return {
            **_named(MSC3202, "device_one_time_keys_count", counts),
            f"{MSC3202}device_one_time_key_counts": counts,
            **_named(MSC3202, "device_unused_fallback_key_types", fallback),
        }


def _event(message: TakenMessage) -> JsonObject:
    event: JsonObject = orjson.loads(message.message)
    return {**event, "to_user_id": message.user_id, "to_device_id": message.device_id}


def _membership(event: JsonObject) -> Any:
    return event["content"].get("membership") if event["type"] == "m.room.member" else None


def _named(prefix: str, name: str, value: Any) -> JsonObject:
    """Under its name, and under the one it has until the proposal is accepted."""
    return {name: value, prefix + name: value}
