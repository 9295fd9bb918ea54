"""What one /sync answer is asked for and read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmserver.rooms.reading import Reader
from lmserver.rooms.sync.filters import SyncFilter
from lmserver.rooms.sync.tokens import SyncToken
from lmserver.storage.room_reads import MemberChange, MemberEntry, RoomSpan


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """One /sync request, parsed."""

    user_id: str
    device_id: str
    since: SyncToken | None
    filter: SyncFilter
    timeout: float
    full_state: bool = False

    @property
    def reader(self) -> Reader:
        return Reader(self.user_id, self.device_id)


@dataclass(frozen=True, slots=True)
class Interval:
    """What is read: the stream interval and the memberships as they were at its end."""

    since: SyncToken | None
    upto: SyncToken
    joined: Mapping[str, MemberEntry]
    newly_joined: frozenset[str]
    changed_membership: frozenset[str]
    spans: Mapping[str, RoomSpan]
    member_changes: Sequence[MemberChange]

    @property
    def initial(self) -> bool:
        return self.since is None

    def is_new(self, room_id: str) -> bool:
        return self.initial or room_id in self.newly_joined

    def is_recent(self, entry: MemberEntry) -> bool:
        return self.since is not None and entry.stream_xid >= self.since.stream
