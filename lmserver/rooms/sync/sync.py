"""GET /sync: what happened since a token, or a wait until something does (CS API §Syncing).

The answer is read for an interval of the stream, [since, upto), whose end is settled before
anything else is read; whatever commits meanwhile belongs to the next interval. What the journal
shows not to have happened in the interval is not asked of the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.notifier import Notifier
from lmserver.rooms.reading import Reading
from lmserver.rooms.sync.device_lists import DeviceListChanges, device_list_changes
from lmserver.rooms.sync.feeds import Feeds, KeyCounts
from lmserver.rooms.sync.inboxes import Inboxes
from lmserver.rooms.sync.interval import Interval, SyncRequest
from lmserver.rooms.sync.intervals import Intervals
from lmserver.rooms.sync.joined_rooms import JoinedRooms
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.sync.lazy import LazyMembers
from lmserver.rooms.sync.memberships import Memberships, UserRooms
from lmserver.rooms.sync.other_rooms import OtherRooms, RefusesInvites
from lmserver.rooms.sync.polls import Poll, Polls
from lmserver.rooms.sync.timeline import Form, RoomSections
from lmserver.rooms.sync.tokens import SyncToken
from lmserver.rooms.sync.waiting import Waiting
from lmserver.rooms.typing import Typing
from lmserver.rooms.unread import Unread
from lmserver.storage.database import Executor

WHOLE_AT_ONCE: Final = 4
"""First answers and full states being made at a time: each may be megabytes (attack R5)."""


@dataclass(slots=True)
class _Answer:
    """An answer being put together, with what the wait needs to know of it."""

    next_batch: SyncToken
    joined_rooms: frozenset[str] = frozenset()
    body: JsonObject = field(default_factory=dict)
    rooms: dict[str, JsonObject] = field(
        default_factory=lambda: {"join": {}, "invite": {}, "knock": {}, "leave": {}}
    )
    device_lists: DeviceListChanges = field(default_factory=DeviceListChanges)

    @property
    def has_news(self) -> bool:
        return (
            any(self.rooms.values())
            or any(self.body.get(part) for part in ("to_device", "account_data", "presence"))
            or bool(self.device_lists.changed or self.device_lists.left)
        )

    @property
    def settled(self) -> int:
        return self.next_batch.stream

    def document(self, key_counts: KeyCounts) -> JsonObject:
        lists = self.device_lists
        return {
            "next_batch": str(self.next_batch),
            "rooms": {name: section for name, section in self.rooms.items() if section},
            "account_data": {"events": self.body.get("account_data", [])},
            "presence": {"events": self.body.get("presence", [])},
            "to_device": {"events": self.body.get("to_device", [])},
            "device_lists": {"changed": sorted(lists.changed), "left": sorted(lists.left)},
            "device_one_time_keys_count": key_counts[0],
            "device_unused_fallback_key_types": key_counts[1],
        }


class SyncService:
    """Answers /sync."""

    def __init__(
        self,
        db: Executor,
        journal: Journal,
        notifier: Notifier,
        reading: Reading,
        typing: Typing,
        feeds: Feeds,
        refuses_invites: RefusesInvites,
        unread: Unread,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._journal = journal
        self._waiting = Waiting(journal, notifier)
        self._typing = typing
        self._feeds = feeds
        self._inboxes = Inboxes(feeds, journal)
        self._memberships = Memberships(db, journal)
        self._intervals = Intervals(db, journal)
        self._lazy = LazyMembers()
        sections = RoomSections(db, reading)
        self._joined = JoinedRooms(db, journal, reading, sections, typing, feeds, unread, clock)
        self._other_rooms = OtherRooms(db, reading, sections, refuses_invites)
        self._polls = Polls()
        self._whole = asyncio.Semaphore(WHOLE_AT_ONCE)

    async def sync(self, request: SyncRequest) -> JsonObject:
        """The answer, at once when there is news, else after at most the request's timeout. Events in
        it may be serialized already, as orjson.Fragment."""
        members = self._lazy.begin(request.user_id, request.device_id, request.since)
        form = Form(request.filter, request.state_after, members)
        with self._polls.enter(request.user_id, request.device_id) as poll:
            if request.since is None or request.full_state:
                async with self._whole:
                    upcoming = (await self._journal.advance()).upcoming
                    answer, counts = await asyncio.gather(
                        self._answer(request, form, upcoming),
                        self._feeds.key_counts(request.user_id, request.device_id),
                    )
            else:
                answer, counts = await self._wait_for_news(request, form, poll)
        if request.filter.lazy:
            self._lazy.answered(request.user_id, request.device_id, request.since, answer.next_batch, members)
        return answer.document(counts)

    async def _wait_for_news(self, request: SyncRequest, form: Form, poll: Poll) -> tuple[_Answer, KeyCounts]:
        """An answer ends with the counts of the device's keys, which are asked for as soon as there may be
        one, and anew after a look that found nothing."""
        asked: asyncio.Task[KeyCounts] | None = None

        def ask() -> asyncio.Task[KeyCounts]:
            nonlocal asked
            if asked is None:
                asked = asyncio.create_task(
                    self._feeds.key_counts(request.user_id, request.device_id), name="key counts"
                )
                asked.add_done_callback(_look_at_failure)
            return asked

        async def look(upcoming: int) -> _Answer:
            nonlocal request, asked
            answer = await self._answer(request, form, upcoming)
            # Unless it has news, nothing below its end was for this user: later looks begin there.
            request = replace(request, since=answer.next_batch)
            if not answer.has_news:
                asked = None
            return answer

        def expecting() -> None:
            ask()

        answer = await self._waiting.for_news(
            poll, request.user_id, request.device_id, request.timeout, look, expecting
        )
        return answer, await ask()

    # -- one answer -----------------------------------------------------------------------------

    async def _answer(self, request: SyncRequest, form: Form, upcoming: int) -> _Answer:
        answer, interval = await self._read(request, form, upcoming, may_know=True)
        if interval.known and not (interval.since and self._journal.covers(interval.since.stream)):
            # It let go of some of the interval while we read it.
            answer, _ = await self._read(request, form, upcoming, may_know=False)
        return answer

    async def _read(
        self, request: SyncRequest, form: Form, upcoming: int, *, may_know: bool
    ) -> tuple[_Answer, Interval]:
        settled, epoch = self._journal.end, self._journal.epoch or 0
        since = request.since
        if since is not None and (since.epoch != epoch or since.stream > upcoming):
            since = None  # from before the database was restored: begin anew
        typing_serial = self._typing.serial
        upto = settled if since is None else max(settled, since.stream)
        messages, upto = await self._inboxes.messages(
            request.user_id, request.device_id, 0 if since is None else since.stream, upto
        )
        memberships = await self._memberships.at(request.user_id, upto)
        interval = await self._intervals.read(
            request.user_id, memberships, since, SyncToken(upto, typing_serial, epoch), may_know=may_know
        )
        answer = _Answer(interval.upto, memberships.joined_ids)
        if messages:
            answer.body["to_device"] = messages
        await self._presence(request, interval, answer)
        by_room = await self._account_data(request, interval, answer)
        joined = self._joined.sections(request, interval, form, by_room)
        if interval.memberships_may_differ or request.full_state:
            others = self._other_rooms.add(request, interval, form, memberships.entries, answer.rooms)
            answer.rooms["join"], _ = await asyncio.gather(joined, others)
        else:
            answer.rooms["join"] = await joined
        answer.device_lists = await self._device_lists(request.user_id, interval, memberships)
        return answer, interval

    async def _presence(self, request: SyncRequest, interval: Interval, answer: _Answer) -> None:
        since = None if interval.since is None else interval.since.typing
        wanted = request.filter.presence
        answer.body["presence"] = [
            event
            for event in await self._feeds.presence(request.user_id, since)
            if wanted.type_passes(event["type"]) and wanted.sender_passes(event["sender"])
        ]

    async def _account_data(
        self, request: SyncRequest, interval: Interval, answer: _Answer
    ) -> dict[str, list[JsonObject]]:
        """Global account data into the answer; that of rooms by room."""
        since = None if interval.since is None else interval.since.stream
        if interval.known and not self._journal.changed("account_data", request.user_id, since or 0):
            return {}
        changed = await self._feeds.account_data(request.user_id, since, interval.upto.stream)
        wanted = request.filter.account_data
        everywhere = [e for e in changed.pop("", []) if wanted.type_passes(e["type"])]
        if everywhere:
            answer.body["account_data"] = everywhere
        return changed

    async def _device_lists(
        self, user_id: str, interval: Interval, memberships: UserRooms
    ) -> DeviceListChanges:
        since = None if interval.since is None else interval.since.stream
        quiet = interval.known and not self._journal.device_lists_changed(user_id, since or 0)
        if quiet and not interval.member_changes and not interval.changed_membership:
            return DeviceListChanges()
        rooms_left = {e.room_id: e.from_position for e in memberships.entries if e.room_id in interval.left}
        return await device_list_changes(
            self._db,
            self._feeds,
            user_id,
            since,
            interval.upto.stream,
            interval.member_changes,
            interval.newly_joined,
            rooms_left,
        )


def _look_at_failure(task: asyncio.Task[KeyCounts]) -> None:
    """Whoever waits is told; nobody may wait any more."""
    if not task.cancelled():
        task.exception()
