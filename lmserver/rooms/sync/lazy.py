"""Lazy loading of members: which member events a device has been sent (CS API §Lazy-loading room
members).

What an answer carried counts as known only when the device comes back with that answer's token. A
device that asks again with the token before it has lost the answer; one that comes with any other
token knows nothing we know of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from lmserver.rooms.sync.tokens import SyncToken

MAX_DEVICES: Final = 10_000
MAX_MEMBERS: Final = 500
"""Members remembered of one device; beyond that all are forgotten."""

Member = tuple[str, str]
"""(room ID, user ID)."""


@dataclass(slots=True)
class Members:
    """What one answer may leave out, and what it tells; both by member to event ID."""

    known: Mapping[Member, str] = field(default_factory=dict)
    told: dict[Member, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Device:
    at: SyncToken
    known: dict[Member, str]
    next: SyncToken
    told: dict[Member, str]


class LazyMembers:
    """What each device knows, in memory and bounded: what is forgotten is told again."""

    def __init__(self) -> None:
        self._devices: OrderedDict[tuple[str, str], _Device] = OrderedDict()

    def begin(self, user_id: str, device_id: str, since: SyncToken | None) -> Members:
        """For a request with this token."""
        device = self._devices.get((user_id, device_id))
        if device is None or since is None:
            return Members()
        if since == device.next:
            device.at, device.known = since, device.known | device.told
            device.told = {}
            if len(device.known) > MAX_MEMBERS:
                device.known = {}
        return Members(device.known if since == device.at else {})

    def answered(
        self, user_id: str, device_id: str, since: SyncToken | None, next_batch: SyncToken, members: Members
    ) -> None:
        """An answer to that request goes out."""
        if not members.known and not members.told and (user_id, device_id) not in self._devices:
            return
        known = dict(members.known) if since is not None else {}
        self._devices[user_id, device_id] = _Device(since or next_batch, known, next_batch, members.told)
        self._devices.move_to_end((user_id, device_id))
        if len(self._devices) > MAX_DEVICES:
            self._devices.popitem(last=False)
