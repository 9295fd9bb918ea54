"""What one user may see of one room, from the history of their membership and of the room's visibility."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmserver.protocol.room_versions import RoomVersion, room_version
from lmserver.rooms.client_format import Shown, redacted, shown
from lmserver.rooms.erasures import NO_ERASURES, Erasures
from lmserver.rooms.visible_ranges import (
    EVERYTHING,
    FOREVER,
    Ranges,
    Span,
    last_joined,
    visibility_spans,
    visible_to_user,
)
from lmserver.storage import room_log, room_state
from lmserver.storage.database import Executor
from lmserver.storage.room_log import RoomRow, StoredEvent


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads: the device matters only for `unsigned.transaction_id`."""

    user_id: str
    device_id: str | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """What one user may see of one room.

    `state_position` names the newest state for the user: the state before that position; None
    when the user may see no state. `membership` is "leave" for somebody who forgot the room. `ignored`
    are those whose messages the user does not want; their state events count like anybody's.
    """

    room: RoomRow
    version: RoomVersion
    membership: str
    visible: Ranges
    state_position: int | None
    ignored: frozenset[str] = frozenset()
    memberships: tuple[Span, ...] = ()
    erasures: Erasures = NO_ERASURES

    @classmethod
    def of_history(
        cls,
        room: RoomRow,
        members: Sequence[Span],
        visibility: Sequence[Span],
        ignored: frozenset[str],
        erased: Mapping[str, int],
    ) -> Access:
        """From the spans of the user's membership and of the room's history visibility, and who was erased
        (see Erasures)."""
        membership = membership_now(members)
        open_now = (
            bool(visibility) and visibility[-1].end is None and visibility[-1].value == "world_readable"
        )
        return cls(
            room,
            room_version(room.room_version),
            membership,
            visible_to_user(members, visibility),
            _state_position(room, members, membership, open_now),
            ignored,
            tuple(members),
            Erasures(erased, members) if erased else NO_ERASURES,
        )

    @classmethod
    def of_member(cls, room: RoomRow, ignored: frozenset[str]) -> Access:
        """Of a user who was joined all through what will be read, in a room where nobody was erased."""
        return cls(
            room,
            room_version(room.room_version),
            "join",
            EVERYTHING,
            room.head_position + 1,
            ignored,
            (Span(-FOREVER, None, "join"),),
        )

    @property
    def room_id(self) -> str:
        return self.room.room_id

    @property
    def joined(self) -> bool:
        return self.membership == "join"

    @property
    def nothing(self) -> bool:
        """Nothing of the room may be seen: for this user it is as if it did not exist."""
        return self.state_position is None and not self.visible.intervals

    @property
    def follows(self) -> bool:
        """Whether what is true of the room now may be seen, and not only what was until some moment."""
        return self.state_position is not None and FOREVER in self.visible

    def shown(self, stored: StoredEvent) -> Shown:
        """An event as this user may see it."""
        return self.seen(shown(stored, self.version))

    def seen(self, event: Shown) -> Shown:
        """The same of one that others share."""
        return redacted(event, self.version) if self.erases(event) else event

    def erases(self, event: Shown) -> bool:
        """Whether the sender was erased before this user came."""
        return bool(self.erasures) and self.erasures.hide(
            event.sender, event.type, event.state_key, event.position
        )

    def ignores(self, event: Shown) -> bool:
        """CS API §Ignoring Users: every way of reading a room leaves these events out."""
        return event.sender in self.ignored and event.state_key is None

    def heard(self, events: list[Shown]) -> list[Shown]:
        """Those not ignored."""
        return [event for event in events if not self.ignores(event)] if self.ignored else events

    def membership_at(self, position: int) -> str:
        """The user's membership after the event at a position."""
        index = bisect_right(self.memberships, position, key=lambda span: span.start)
        span = self.memberships[index - 1] if index else None
        return span.value if span is not None and (span.end is None or position < span.end) else "leave"

    def state_at(self, position: int) -> int | None:
        """The state before `position`, or the nearest later one that the user may see: neither newer
        than the last nor between events that are hidden."""
        if self.state_position is None:
            return None
        nearest = self.visible.state_from(position)
        return self.state_position if nearest is None else min(nearest, self.state_position)


def membership_now(members: Sequence[Span]) -> str:
    return members[-1].value if members and members[-1].end is None else "leave"


def _state_position(room: RoomRow, members: Sequence[Span], membership: str, open_now: bool) -> int | None:
    """Joined users see the current state, others that of the moment they left (CS API §GET
    /rooms/{roomId}/state), anybody that of a world-readable room."""
    if membership == "join" or open_now:
        return room.head_position + 1
    left = last_joined(members)
    return None if left is None else left + 1


async def history_visibility(db: Executor, room: RoomRow) -> list[Span]:
    """The room's history visibility over all positions."""
    complete = (
        room.min_position == 0
        or await room_log.event_position(db, room.room_id, room.create_event_id) is not None
    )
    history = await room_state.state_history(db, room.room_id, "m.room.history_visibility", "")
    return visibility_spans(history, complete=complete)
