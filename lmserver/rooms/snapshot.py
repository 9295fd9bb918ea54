"""The current state of a room in memory, valid for exactly one head.

A snapshot is keyed by the head's event ID, so it needs no invalidation: whoever holds the room's
row compares the two and reads what is missing. Snapshots are immutable; a change makes a new one
that shares what stayed the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from lmserver.protocol import hub, ids
from lmserver.protocol.events import Pdu
from lmserver.protocol.room_versions import RoomVersion, room_version
from lmserver.protocol.room_view import RoomView, StateEvent, StateKey
from lmserver.storage import room_log, room_state
from lmserver.storage.database import Executor
from lmserver.storage.fanout import CloseRange, OpenRange, RangeChange, SingleEvent
from lmserver.storage.room_log import RoomRow, StoredEvent

# Further behind than this, the state is read anew; a rejoin leaps much further and has to be.
MAX_CATCH_UP = 10_000
PIECE = 500


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The view that rules need, and how many joined users each server has."""

    view: RoomView
    servers: Mapping[str, int]

    def includes(self, server: str) -> bool:
        """Whether a server takes part in the room: it has a joined user or is the hub."""
        return server in self.servers or self.view.hub == server

    def after(self, pdu: Pdu, our_name: str, *, applies: bool = True) -> tuple[Snapshot, list[RangeChange]]:
        """The room after one more event, and what that means for who gets the list."""
        view = hub.advance(self.view, pdu, applies=applies)
        if not applies or pdu.type != "m.room.member" or pdu.state_key is None:
            return Snapshot(view, self.servers), []
        before = self.view.membership(pdu.state_key)
        after = view.membership(pdu.state_key)
        servers, changes = _count(self.servers, pdu, before, after, view.head_position, our_name)
        return Snapshot(view, servers), changes


def _count(
    servers: Mapping[str, int], pdu: Pdu, before: str, after: str, position: int, our_name: str
) -> tuple[Mapping[str, int], list[RangeChange]]:
    """Joined users per server after a membership change, and the ranges it opens or closes."""
    server = ids.server_of(pdu.state_key or "")
    count = servers.get(server, 0)
    step = (after == "join") - (before == "join")
    if step == 0:
        # Kick of an invited or knocking user, ban, invite withdrawal: its server must hear of it
        # although it is not in the room (D04 §Sending Events, fan-out targets). So must the server
        # of an invite that was completed anew after it had signed: the event ID is another.
        # Its own user's leave may have been sent when it thought it was still in the room.
        concerns_outsider = after in ("leave", "ban") or (
            after == "invite" and server not in pdu.fields["signatures"]
        )
        if concerns_outsider and count == 0 and server != our_name:
            return servers, [SingleEvent(server, position)]
        return servers, []
    counts = dict(servers)
    counts[server] = count + step
    if counts[server] == 0:
        del counts[server]
    if server == our_name:
        return counts, []
    if step > 0 and count == 0:
        return counts, [OpenRange(server, position)]
    if step < 0 and count == 1:
        return counts, [CloseRange(server, position)]
    return counts, []


def state_event_of(stored: StoredEvent) -> StateEvent:
    """The part of a stored state event that rules need; it passed the strict parser when it came."""
    fields = orjson.loads(stored.pdu)
    return StateEvent(
        stored.event_id, fields["type"], fields["state_key"], fields["sender"], fields["content"]
    )


def of_state(row: RoomRow, version: RoomVersion, state: Mapping[StateKey, StateEvent]) -> Snapshot:
    servers: dict[str, int] = {}
    for (type_, user_id), entry in state.items():
        if type_ == "m.room.member" and entry.content.get("membership") == "join":
            server = ids.server_of(user_id)
            servers[server] = servers.get(server, 0) + 1
    view = RoomView(
        room_id=row.room_id,
        version=version,
        hub=row.hub_server,
        head_event_id=row.head_event_id,
        head_position=row.head_position,
        state=state,
    )
    return Snapshot(view, servers)


async def load(db: Executor, row: RoomRow) -> Snapshot:
    """Read the whole current state of a room; the caller makes sure the head does not move.

    In pieces: a room may have any number of entries (attack R14).
    """
    state: dict[StateKey, StateEvent] = {}
    last: StateKey | None = ("", "")
    while last is not None:
        piece = await room_state.current_after(db, row.room_id, last, PIECE)
        for stored in piece:
            entry = state_event_of(stored)
            last = entry.type, entry.state_key
            state[last] = entry
        last = last if len(piece) == PIECE else None
    return of_state(row, room_version(row.room_version), state)


async def refresh(db: Executor, row: RoomRow, old: Snapshot | None) -> Snapshot:
    """The snapshot for the row's head, from the old one where that is possible."""
    if old is None or not 0 <= row.head_position - old.view.head_position <= MAX_CATCH_UP:
        return await load(db, row)
    if old.view.head_event_id == row.head_event_id:
        return old
    changes = await room_state.state_changes(db, row.room_id, old.view.head_position - 1, row.head_position)
    state = dict(old.view.state)
    for stored in changes:
        entry = state_event_of(stored)
        state[entry.type, entry.state_key] = entry
    return of_state(row, old.view.version, state)


async def of_room(db: Executor, room_id: str, old: Snapshot | None) -> Snapshot | None:
    row = await room_log.room(db, room_id)
    return None if row is None else await refresh(db, row, old)
