"""What one /sync answer is asked for and read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lmserver.rooms.access import Reader
from lmserver.rooms.sync.filters import SyncFilter
from lmserver.rooms.sync.tokens import SyncToken
from lmserver.storage.room_reads import MemberChange, MemberEntry, RoomSpan


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """One /sync request, parsed. `state_after` names the sections that take the place of `state`
    (MSC4222)."""

    user_id: str
    device_id: str
    since: SyncToken | None
    filter: SyncFilter
    timeout: float
    full_state: bool = False
    state_after: tuple[str, ...] = ()

    @property
    def reader(self) -> Reader:
        return Reader(self.user_id, self.device_id)


@dataclass(frozen=True, slots=True)
class Interval:
    """What is read: the stream interval and the memberships as they were at its end.

    `newly_joined` are rooms the client knows nothing of, or not all since `since`; `left` those it
    was joined to at `since` and is out of. `spans` are the rooms with new events. `known` says that
    the journal has the whole interval, `memberships_may_differ` that some membership may have changed.
    """

    since: SyncToken | None
    upto: SyncToken
    joined: Mapping[str, MemberEntry]
    ignored: frozenset[str] = frozenset()
    newly_joined: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()
    changed_membership: frozenset[str] = frozenset()
    spans: Mapping[str, RoomSpan] = field(default_factory=dict)
    member_changes: Sequence[MemberChange] = ()
    known: bool = False
    memberships_may_differ: bool = True

    @property
    def initial(self) -> bool:
        return self.since is None

    def is_new(self, room_id: str) -> bool:
        return self.initial or room_id in self.newly_joined

    def is_recent(self, entry: MemberEntry) -> bool:
        return self.since is not None and entry.stream_xid >= self.since.stream
