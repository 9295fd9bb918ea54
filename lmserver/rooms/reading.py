"""Rooms as one user may see them: events, history and state.

Every read of a client goes through an `Access`, worked out once per request. What is not in it does
not exist for the caller, so an endpoint cannot forget a check (attacks C6, C7).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from lmserver.protocol.events import EventDraft
from lmserver.protocol.room_versions import RoomVersion
from lmserver.rooms import relations, unsigned
from lmserver.rooms.access import Access, Reader, membership_now
from lmserver.rooms.client_format import ClientEvent, Extras, Shown, client_event
from lmserver.rooms.parsed_events import ParsedEvents
from lmserver.rooms.visible_ranges import spans_of, visibility_spans
from lmserver.storage import (
    account_data,
    aliases,
    erasures,
    room_batches,
    room_log,
    room_reads,
    room_state,
)
from lmserver.storage.client_transactions import TransactionKey
from lmserver.storage.database import Database
from lmserver.storage.room_log import StoredEvent

CHUNK: Final = 100
PIECE: Final = 500
"""Events parsed or rendered before others get their turn."""
MAX_SCANNED: Final = 5_000
"""Events one request looks at: a filter that matches nothing must not read the whole room."""


@dataclass(frozen=True, slots=True)
class Page:
    """Events of a walk through history; `end` is the gap to go on from, None at the end."""

    events: list[Shown]
    start: int
    end: int | None


Wanted = Callable[[Shown], bool]
T = TypeVar("T")


class Reading:
    """Answers readers from what is stored."""

    def __init__(self, db: Database, clock: Callable[[], int]) -> None:
        self._db = db
        self._clock = clock
        self._parsed = ParsedEvents()

    # -- access ---------------------------------------------------------------------------------

    async def access(self, user_id: str, room_id: str) -> Access | None:
        """What the user may see of the room; None when we do not know the room."""
        return (await self.accesses(user_id, [room_id])).get(room_id)

    async def accesses(self, user_id: str, room_ids: Sequence[str]) -> dict[str, Access]:
        """The same for many rooms; those we do not know are left out."""
        rooms, (members, settings), ignored = await asyncio.gather(
            room_batches.rooms(self._db, room_ids),
            room_batches.histories(self._db, room_ids, user_id),
            account_data.ignored_users(self._db, user_id),
        )
        started = [room_id for room_id, room in rooms.items() if room.min_position != 0]
        incomplete = await room_batches.incomplete(self._db, started) if started else set()
        some = [room_id for room_id, room in rooms.items() if room.has_erasures]
        erased = await erasures.in_rooms(self._db, some) if some else {}
        found: dict[str, Access] = {}
        for room_id, room in rooms.items():
            visibility = visibility_spans(settings.get(room_id, []), complete=room_id not in incomplete)
            spans = spans_of(members.get(room_id, []), "membership")
            left = membership_now(spans) in ("leave", "ban")
            if spans and left and await aliases.is_forgotten(self._db, user_id, room_id):
                spans = []
            found[room_id] = Access.of_history(room, spans, visibility, ignored, erased.get(room_id, {}))
        return found

    async def access_of_member(self, user_id: str, room_id: str) -> Access | None:
        """Access for somebody who was joined all through what will be read: /sync of a client
        that keeps up, where the history of memberships need not be asked."""
        return (await self.accesses_of_member(user_id, [room_id])).get(room_id)

    async def accesses_of_member(self, user_id: str, room_ids: Sequence[str]) -> dict[str, Access]:
        """The same for many rooms."""
        found = await room_batches.rooms(self._db, room_ids)
        ignored = await account_data.ignored_users(self._db, user_id)
        some = [room_id for room_id, room in found.items() if room.has_erasures]
        told = await self.accesses(user_id, some) if some else {}
        return {id_: told.get(id_) or Access.of_member(room, ignored) for id_, room in found.items()}

    # -- events ---------------------------------------------------------------------------------

    async def event(self, access: Access, event_id: str) -> Shown | None:
        """One event of the room, if the user may see it."""
        stored = await room_log.event(self._db, event_id, access.room_id)
        if stored is None or stored.soft_failed is not None:
            return None
        event = access.shown(stored)
        if access.ignores(event):
            return None
        if event.position is not None:
            return event if event.position in access.visible or _is_commit(access, event) else None
        return event if await self._in_visible_state(access, event) else None

    async def _in_visible_state(self, access: Access, event: Shown) -> bool:
        """An outlier, known from a join, is seen as part of a state the user may see."""
        if access.state_position is None or event.state_key is None:
            return False
        history = await room_state.state_history(self._db, access.room_id, event.type, event.state_key)
        return any(
            h.event_id == event.event_id
            and h.from_position < access.state_position
            and (h.to_position is None or bool(access.visible.within(h.from_position, h.to_position)))
            for h in history
        )

    async def backwards(
        self, access: Access, start: int, limit: int, wanted: Wanted, stop: int | None = None
    ) -> Page:
        """Visible events at or below `start`, newest first, down to `stop` (not included)."""
        start = min(start, access.room.head_position)
        lowest = access.room.min_position if stop is None else max(stop + 1, access.room.min_position)
        found: list[Shown] = []
        scanned = 0
        for first, top in reversed(access.visible.within(lowest, start)):
            last = top
            while last >= first:
                stored = await room_log.events_between(
                    self._db, access.room_id, first - 1, last, CHUNK, newest_first=True
                )
                if not stored:
                    break
                for row in stored:
                    scanned += 1
                    last = _position(row) - 1
                    event = _acceptable(row, access, wanted)
                    if event is not None:
                        found.append(event)
                    if len(found) == limit or scanned == MAX_SCANNED:
                        more = bool(access.visible.within(lowest, last))
                        return Page(found, start, last if more else None)
        return Page(found, start, None)

    async def forwards(
        self, access: Access, start: int, limit: int, wanted: Wanted, stop: int | None = None
    ) -> Page:
        """Visible events above `start`, oldest first, up to `stop` (included)."""
        start = max(start, access.room.min_position - 1)
        highest = access.room.head_position if stop is None else min(stop, access.room.head_position)
        found: list[Shown] = []
        scanned = 0
        for bottom, last in access.visible.within(start + 1, highest):
            first = bottom
            while first <= last:
                stored = await room_log.events_between(
                    self._db, access.room_id, first - 1, last, CHUNK, newest_first=False
                )
                if not stored:
                    break
                for row in stored:
                    scanned += 1
                    first = _position(row) + 1
                    event = _acceptable(row, access, wanted)
                    if event is not None:
                        found.append(event)
                    if len(found) == limit or scanned == MAX_SCANNED:
                        return Page(found, start, first - 1)
        # More may be said in the room later, so a reader who has got something may go on.
        return Page(found, start, highest if found else None)

    # -- state ----------------------------------------------------------------------------------

    async def state(self, access: Access, position: int | None = None) -> list[Shown]:
        """The whole state the user may see, or the older one before `position`."""
        at = access.state_position if position is None else access.state_at(position)
        if at is None:
            return []
        return await self.shown_many(await room_state.state_at(self._db, access.room_id, at), access)

    async def state_entry(self, access: Access, type_: str, state_key: str) -> Shown | None:
        if access.state_position is None:
            return None
        stored = await room_state.state_entry(
            self._db, access.room_id, access.state_position, type_, state_key
        )
        return None if stored is None else access.shown(stored)

    async def members(self, access: Access, position: int | None = None) -> list[tuple[str, Shown]]:
        """(membership, member event) of everybody, now or before `position`."""
        at = access.state_position if position is None else access.state_at(position)
        if at is None:
            return []
        found = await room_reads.members_at(self._db, access.room_id, at)
        return [(membership, access.shown(stored)) for membership, stored in found]

    async def members_named(self, access: Access, position: int, user_ids: Iterable[str]) -> list[Shown]:
        """The member events of some users before `position`; the newest that may be seen of those
        who have none there, because history from before our join is not all here."""
        at = access.state_at(position)
        wanted = list(dict.fromkeys(user_ids))
        if at is None or access.state_position is None or not wanted:
            return []
        stored = await room_reads.member_events(self._db, access.room_id, at, wanted)
        found = self.shown_all(stored, access)
        missing = set(wanted) - {event.state_key for event in found}
        if missing and access.room.min_position > 0:
            last = access.state_position
            stored = await room_reads.member_events(self._db, access.room_id, last, list(missing))
            found += self.shown_all(stored, access)
        return found

    async def repeats_annotation(self, draft: EventDraft, txn: TransactionKey) -> bool:
        """See relations.repeats_annotation."""
        return await relations.repeats_annotation(self._db, draft, txn)

    # -- showing --------------------------------------------------------------------------------

    def shown(self, stored: StoredEvent, version: RoomVersion) -> Shown:
        """For those who were in the room when it was sent."""
        return self._parsed.shown(stored, version)

    def shown_all(self, stored: Iterable[StoredEvent], access: Access) -> list[Shown]:
        version = access.version
        return [access.seen(self._parsed.shown(row, version)) for row in stored if row.soft_failed is None]

    async def shown_many(self, stored: Sequence[StoredEvent], access: Access) -> list[Shown]:
        """The same of any number, so that others get their turn in between (attack R14)."""
        found = self.shown_all(stored[:PIECE], access)
        for start in range(PIECE, len(stored), PIECE):
            await asyncio.sleep(0)
            found += self.shown_all(stored[start : start + PIECE], access)
        return found

    async def render(self, access: Access, reader: Reader, events: Sequence[Shown]) -> list[ClientEvent]:
        """Client events with what is private to the reader in `unsigned`."""

        def form(events: Sequence[Shown], extras: Extras) -> list[ClientEvent]:
            return [client_event(event, access.room_id, extras) for event in events]

        [rendered] = await self.render_rooms(reader, [(access, events)], form)
        return rendered

    async def render_rooms(
        self,
        reader: Reader,
        rooms: Sequence[tuple[Access, Sequence[Shown]]],
        form: Callable[[Sequence[Shown], Extras], list[T]],
    ) -> list[list[T]]:
        """Events of many rooms in a form, in as few round trips as one's; where there are many events in
        pieces of them, so that others get their turn in between (attack R14)."""
        few = [(access, events[:PIECE]) for access, events in rooms]
        extras = await unsigned.extras(self._db, reader, few, self._clock())
        found = [form(events, extras) for _, events in few]
        for index, (access, events) in enumerate(rooms):
            for start in range(PIECE, len(events), PIECE):
                piece = events[start : start + PIECE]
                extras = await unsigned.extras(self._db, reader, [(access, piece)], self._clock())
                found[index] += form(piece, extras)
        return found

    def render_alone(self, event: Shown) -> ClientEvent:
        """A user's own member event in a room of which nothing else may be seen."""
        return client_event(event, None, Extras(self._clock()))


def _is_commit(access: Access, event: Shown) -> bool:
    """MLS commits are shown to everybody who may see the state after them, whatever the history
    visibility (D04 §Updating Group State)."""
    return (
        event.type == "m.mls.commit"
        and event.state_key is None
        and access.state_position is not None
        and (event.position or 0) < access.state_position
    )


def _acceptable(row: StoredEvent, access: Access, wanted: Wanted) -> Shown | None:
    if row.soft_failed is not None:
        return None
    event = access.shown(row)
    return event if wanted(event) and not access.ignores(event) else None


def _position(row: StoredEvent) -> int:
    if row.position is None:
        raise ValueError("an outlier has no place in the list")
    return row.position
