"""What another server may see of a room (D04 §History Visibility; protocol decision 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from lmserver.rooms.access import history_visibility
from lmserver.rooms.erasures import Erasures
from lmserver.rooms.visible_ranges import FOREVER, Ranges, Span, last_joined, visible_to_user
from lmserver.storage import erasures, room_state
from lmserver.storage.database import Executor
from lmserver.storage.room_log import RoomRow, StoredEvent
from lmserver.storage.room_state import MembershipSpan


@dataclass(frozen=True, slots=True)
class ServerView:
    """`until` is the last position the server was joined at, None if it never was."""

    visible: Ranges
    until: int | None
    erasures: Erasures

    def knows(self, event: StoredEvent) -> bool:
        """Whether the server has any reason to know that the event exists (attacks B16, B17)."""
        if event.soft_failed is not None:
            return False
        if event.position is None:
            return self.until == FOREVER
        return (self.until is not None and event.position <= self.until) or event.position in self.visible

    def hides(self, event: StoredEvent) -> bool:
        """Whether the server gets only the redacted copy; MLS commits are always shown.

        An event without a position is part of a state: see `hides_state_entry`.
        """
        if event.position is None or event.position in self.visible:
            return self.erases(event)
        return bool(orjson.loads(event.pdu)["type"] != "m.mls.commit")

    def erases(self, event: StoredEvent) -> bool:
        """Whether the sender was erased before the server came."""
        if not self.erasures:
            return False
        fields = orjson.loads(event.pdu)
        return self.erasures.hide(fields["sender"], fields["type"], fields.get("state_key"), event.position)


async def hides_state_entry(db: Executor, view: ServerView, event: StoredEvent) -> bool:
    """The same for state that came with our join: shown if the server may see any moment at which
    it was in force."""
    if view.erases(event):
        return True
    fields = orjson.loads(event.pdu)
    lives = await room_state.state_history(db, event.room_id, fields["type"], fields["state_key"])
    return not any(
        view.visible.within(life.from_position, FOREVER if life.to_position is None else life.to_position)
        for life in lives
        if life.event_id == event.event_id
    )


async def server_view(db: Executor, room: RoomRow, server: str) -> ServerView:
    spans = server_spans(await room_state.server_memberships(db, room.room_id, server))
    visible = visible_to_user(spans, await history_visibility(db, room))
    erased = (await erasures.in_rooms(db, [room.room_id])).get(room.room_id, {})
    return ServerView(visible, last_joined(spans), Erasures(erased, spans))


def server_spans(memberships: Sequence[MembershipSpan]) -> list[Span]:
    """The membership of a server: joined while any user is, else invited while any user is."""
    steps: list[tuple[int, str, int]] = []
    for m in memberships:
        if m.membership in ("join", "invite"):
            steps.append((m.from_position, m.membership, 1))
            if m.to_position is not None:
                steps.append((m.to_position, m.membership, -1))
    steps.sort(key=lambda step: step[0])
    counts = {"join": 0, "invite": 0}
    spans: list[Span] = []
    value, start = "leave", 0
    for index, (position, membership, change) in enumerate(steps):
        counts[membership] += change
        if index + 1 < len(steps) and steps[index + 1][0] == position:
            continue
        now = "join" if counts["join"] else "invite" if counts["invite"] else "leave"
        if now != value:
            if value != "leave":
                spans.append(Span(start, position, value))
            value, start = now, position
    if value != "leave":
        spans.append(Span(start, None, value))
    return spans
