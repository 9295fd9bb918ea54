"""Rooms' parts of a /sync answer from memory, for clients that keep up.

What most clients wait for is one message in a room they were in all along. Its form is made once,
when the first of them is told, and the same bytes go to everybody; only the age differs. Whatever
needs more than that (state, redactions, gaps) is left to the database.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from lmserver.protocol.room_versions import room_version
from lmserver.rooms.access import Reader
from lmserver.rooms.client_format import ENCRYPTED, Extras, Shown, told
from lmserver.rooms.reading import Reading
from lmserver.rooms.sync.journal import Journal, position_of
from lmserver.rooms.sync.timeline import Form
from lmserver.rooms.sync.tokens import RoomToken
from lmserver.storage import client_transactions, room_batches
from lmserver.storage.database import Executor
from lmserver.storage.room_batches import Point
from lmserver.storage.stream import NewEvent
from lmserver.storage.together import Together

MAX_VERSIONS: Final = 4_000
MAX_LOADED: Final = 2_000
"""Member events read for lazy loading."""


@dataclass(slots=True)
class _Member:
    """A member event and since when it is known to be the user's newest in the room."""

    at: int
    loading: asyncio.Task[Shown | None]


class RecentRooms:
    """Sections of rooms in which nothing happened but messages."""

    def __init__(self, db: Executor, journal: Journal, reading: Reading, clock: Callable[[], int]) -> None:
        self._db = db
        self._journal = journal
        self._reading = reading
        self._clock = clock
        self._members: OrderedDict[tuple[str, str], _Member] = OrderedDict()
        self._versions: OrderedDict[str, str] = OrderedDict()
        self._asked_versions = Together(partial(versions_of, db))
        journal.on_another_database(self._members.clear)

    def window(self, room_id: str, since: int, upto: int) -> list[NewEvent]:
        """The room's events in a stream interval, in list order; empty when the journal cannot tell them
        as they are."""
        events = self._journal.events(room_id, since, upto)
        plain = all(self._is_plain(room_id, event) for event in events)
        return events if plain and not self._journal.redacted(room_id, since) else []

    def _is_plain(self, room_id: str, event: NewEvent) -> bool:
        """Whether nothing is told with the event but its age: what others say of it differs by reader."""
        stored = event.stored
        known = event.state_key is not None or stored.redacted_by is not None
        return not known and not self._journal.is_related(room_id, stored.event_id)

    async def sections(
        self,
        reader: Reader,
        windows: Mapping[str, Sequence[NewEvent]],
        form: Form,
        ignored: frozenset[str],
    ) -> dict[str, dict[str, Any]]:
        """`timeline` and `state` of rooms whose members the reader has been among all along, without
        messages of those ignored. Rooms that cannot be told from memory are left out."""
        wanted = form.wanted
        if not wanted.shows_whole_events:
            return {}
        shown: dict[str, list[Shown]] = {}
        for room_id, events in windows.items():
            name = await self._version(room_id)
            if name is None:
                continue
            version = room_version(name)
            seen = [e.stored for e in events if e.stored.soft_failed is None and e.sender not in ignored]
            passing = wanted.timeline.chosen([self._reading.shown(row, version) for row in seen])
            if wanted.timeline.room_passes(room_id) and len(passing) <= wanted.timeline_limit:
                shown[room_id] = passing
        extras = Extras(
            self._clock(),
            transaction_ids=await self._transaction_ids(reader, shown),
            # Who is told from memory has been a member all along.
            memberships={e.event_id: "join" for room in shown.values() for e in room if e.type == ENCRYPTED},
        )
        found: dict[str, dict[str, Any]] = {}
        for room_id, timeline in shown.items():
            state = await self._needed_members(room_id, timeline, form)
            if state is None:
                continue
            # The token of the gap before the first event, or after the last where none is shown.
            before = timeline[0].position if timeline else position_of(windows[room_id][-1]) + 1
            found[room_id] = {
                "timeline": {
                    "events": told(timeline, extras),
                    "limited": False,
                    "prev_batch": str(RoomToken((before or 0) - 1)),
                },
                **{name: {"events": told(state, extras)} for name in form.state_after or ("state",)},
            }
        return found

    async def _transaction_ids(
        self, reader: Reader, shown: Mapping[str, Sequence[Shown]]
    ) -> Mapping[str, str]:
        own = {
            event.event_id: room_id
            for room_id, events in shown.items()
            for event in events
            if event.sender == reader.user_id
        }
        if not own or reader.device_id is None:
            return {}
        return await client_transactions.transaction_ids(self._db, reader.user_id, reader.device_id, own)

    async def _version(self, room_id: str) -> str | None:
        """None for a room that is gone."""
        version = self._versions.get(room_id)
        if version is None:
            version = await self._asked_versions.answer(room_id)
            if version is not None:
                self._versions[room_id] = version
            if len(self._versions) > MAX_VERSIONS:
                self._versions.popitem(last=False)
        return version

    # -- lazy loading ---------------------------------------------------------------------------

    async def _needed_members(self, room_id: str, events: Sequence[Shown], form: Form) -> list[Shown] | None:
        """Member events of the senders the client does not know; None when one is not to be had."""
        wanted = form.wanted
        if not wanted.lazy or not wanted.state.room_passes(room_id):
            return []
        needed = dict.fromkeys(
            event.sender for event in events
            if wanted.redundant_members or (room_id, event.sender) not in form.members.known
        )  # fmt: skip
        found: list[Shown] = []
        for user_id in needed:
            member = await self._member(room_id, user_id, events[0].position or 0)
            if member is None:
                return None
            form.members.told[room_id, user_id] = member.event_id
            if wanted.state.passes(member):
                found.append(member)
        return found

    async def _member(self, room_id: str, user_id: str, position: int) -> Shown | None:
        """The member event of somebody who has just sent something."""
        key = (room_id, user_id)
        known = self._members.get(key)
        if known is None or not self._still_true(room_id, user_id, known):
            loading = asyncio.create_task(self._load(room_id, user_id, position), name="member event")
            loading.add_done_callback(lambda task: task.cancelled() or task.exception())
            known = self._members[key] = _Member(self._journal.end, loading)
            if len(self._members) > MAX_LOADED:
                self._members.popitem(last=False)
        known.at = self._journal.end
        return await asyncio.shield(known.loading)

    def _still_true(self, room_id: str, user_id: str, known: _Member) -> bool:
        task = known.loading
        failed = task.done() and (task.cancelled() or task.exception() is not None)
        return (
            not failed
            and self._journal.covers(known.at)
            and not self._journal.membership_changed(user_id, known.at)
            and not self._journal.redacted(room_id, known.at)
        )

    async def _load(self, room_id: str, user_id: str, position: int) -> Shown | None:
        found = await room_batches.member_events(self._db, [Point(room_id, position)], [user_id])
        stored = found.get(room_id, [])
        version = await self._version(room_id)
        if version is None or not stored or stored[0].redacted_by is not None:
            return None
        return self._reading.shown(stored[0], room_version(version))


async def versions_of(db: Executor, room_ids: Sequence[str]) -> list[str | None]:
    """The rooms' versions, None for one that is gone. All who are woken by one message ask about the same."""
    rooms = await room_batches.rooms(db, list(dict.fromkeys(room_ids)))
    return [room.room_version if (room := rooms.get(room_id)) else None for room_id in room_ids]
