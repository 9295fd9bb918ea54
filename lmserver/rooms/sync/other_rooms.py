"""Rooms the user is not in: invites, knocks, and rooms left.

What is known of them comes from a room's list or from outside it (storage/outside.py); of the two
the one committed last counts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import orjson

from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.room_versions import room_version
from lmserver.rooms.access import Access
from lmserver.rooms.client_format import Shown, shown, stripped
from lmserver.rooms.reading import Reading
from lmserver.rooms.stripped_state import SHOWN
from lmserver.rooms.sync.interval import Interval, SyncRequest
from lmserver.rooms.sync.timeline import Form, RoomSections, Window
from lmserver.storage import aliases, outside, room_log, room_reads, room_state
from lmserver.storage.database import Executor
from lmserver.storage.outside import OutsideMembership
from lmserver.storage.room_reads import MemberEntry

RefusesInvites = Callable[[str, str], Awaitable[bool]]
"""Whether a user does not want to be invited by a sender: (user, sender)."""
_SECTION = {"invite": "invite_state", "knock": "knock_state"}


class OtherRooms:
    """The `invite`, `knock` and `leave` parts of a /sync answer."""

    def __init__(
        self, db: Executor, reading: Reading, sections: RoomSections, refuses_invites: RefusesInvites
    ) -> None:
        self._db = db
        self._reading = reading
        self._sections = sections
        self._refuses_invites = refuses_invites

    async def add(
        self,
        request: SyncRequest,
        interval: Interval,
        form: Form,
        entries: Sequence[MemberEntry],
        rooms: dict[str, JsonObject],
    ) -> None:
        """Put every room of these kinds with news into `rooms`, by section and room ID."""
        since = 0 if interval.since is None else interval.since.stream
        told = await outside.of_user(self._db, request.user_id, since, interval.upto.stream)
        listed = {entry.room_id: entry for entry in entries}
        newer = {t.room_id: t for t in told if not _overtaken(t, listed.get(t.room_id))}
        for entry in entries:
            if entry.room_id not in newer and request.filter.room_passes(entry.room_id):
                await self._of_list(request, interval, form, entry, rooms)
        for membership in newer.values():
            if request.filter.room_passes(membership.room_id):
                await self._from_outside(request, interval, form, membership, rooms)

    # -- rooms with a list ----------------------------------------------------------------------

    async def _of_list(
        self,
        request: SyncRequest,
        interval: Interval,
        form: Form,
        entry: MemberEntry,
        rooms: dict[str, JsonObject],
    ) -> None:
        if entry.membership in ("leave", "ban"):
            left = await self._left(request, interval, form, entry)
            if left is not None:
                rooms["leave"][entry.room_id] = left
        elif entry.membership in _SECTION and (interval.initial or interval.is_recent(entry)):
            pending = await self._pending(request.user_id, entry)
            if pending is not None:
                rooms[entry.membership][entry.room_id] = pending

    async def _pending(self, user_id: str, entry: MemberEntry) -> JsonObject | None:
        """An invite to, or a knock at, a room whose list we have."""
        room = await room_log.room(self._db, entry.room_id)
        if room is None:
            return None
        version = room_version(room.room_version)
        at = entry.from_position + 1
        events = []
        for type_ in SHOWN:
            stored = await room_state.state_entry(self._db, entry.room_id, at, type_, "")
            if stored is not None:
                events.append(stripped(shown(stored, version)))
        own = await room_reads.member_events(self._db, entry.room_id, at, [user_id])
        members = [shown(stored, version) for stored in own]
        senders = [m.sender for m in members if m.sender != user_id]
        if senders and await self._refuses_invites(user_id, senders[0]):
            return None  # its server need not have asked ours, which is in the room
        if senders:
            inviters = await room_reads.member_events(self._db, entry.room_id, at, senders)
            members = [shown(stored, version) for stored in inviters] + members
        events += [stripped(m) for m in members]
        return {_SECTION[entry.membership]: {"events": events}}

    async def _left(
        self, request: SyncRequest, interval: Interval, form: Form, entry: MemberEntry
    ) -> JsonObject | None:
        if not await self._tells_left(request, interval, entry.room_id, interval.is_recent(entry)):
            return None
        access = await self._reading.access(request.user_id, entry.room_id)
        own_event = await self._own_event(entry, access)
        if access is None or own_event is None:
            return None
        if own_event.position is None:
            # Part of the state that another user's join brought: all there is to see of the room.
            return self._only(form, own_event)
        after = None
        if interval.since is not None and entry.room_id in interval.left:
            after = await room_reads.position_before(self._db, entry.room_id, interval.since.stream)
        window = Window(after, own_event.position)
        return await self._sections.left(access, request.reader, window, own_event, form)

    async def _own_event(self, entry: MemberEntry, access: Access | None) -> Shown | None:
        stored = await room_log.event(self._db, entry.event_id, entry.room_id)
        return None if stored is None or access is None else access.shown(stored)

    # -- rooms without one ----------------------------------------------------------------------

    async def _from_outside(
        self,
        request: SyncRequest,
        interval: Interval,
        form: Form,
        told: OutsideMembership,
        rooms: dict[str, JsonObject],
    ) -> None:
        if told.membership == "invite" and await self._refuses_invites(request.user_id, told.sender):
            return  # blocked since it came
        if told.membership in _SECTION:
            events = stripped_events(told)
            rooms[told.membership][told.room_id] = {_SECTION[told.membership]: {"events": events}}
        elif await self._tells_left(request, interval, told.room_id, not interval.initial):
            rooms["leave"][told.room_id] = self._only(form, own_event_of(told))

    async def _tells_left(self, request: SyncRequest, interval: Interval, room_id: str, recent: bool) -> bool:
        """Whether a room left is part of the answer (CS API §GET /sync, include_leave)."""
        if interval.initial and not request.filter.include_leave:
            return False
        if not interval.initial and not recent and not request.full_state:
            return False
        return not await aliases.is_forgotten(self._db, request.user_id, room_id)

    def _only(self, form: Form, own_event: Shown | None) -> JsonObject:
        """A room left of which nothing but the user's own member event may be seen, if that."""
        events = [] if own_event is None else [self._reading.render_alone(own_event)]
        states: JsonObject = {name: {"events": []} for name in form.state_after or ("state",)}
        return {"timeline": {"events": events, "limited": False}, **states}


def _overtaken(told: OutsideMembership, entry: MemberEntry | None) -> bool:
    return entry is not None and entry.stream_xid >= told.stream_xid


def stripped_events(told: OutsideMembership) -> list[JsonObject]:
    """What the hub said of the room, with the member event we have checked instead of its word."""
    others = [
        event
        for event in outside.decode_state(told.stripped_state)
        if (event["type"], event["state_key"]) != ("m.room.member", told.user_id)
    ]
    own = own_event_of(told)
    return others if own is None else [*others, stripped(own)]


def own_event_of(told: OutsideMembership) -> Shown | None:
    """The member event; a knock's is our LPDU, whose fields a client sees are the PDU's."""
    if told.seen_event is None:
        return None
    return Shown(told.event_id or "", None, orjson.loads(told.seen_event), None)
