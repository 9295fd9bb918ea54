"""GET /sync: what happened since a token, or a wait until something does (CS API §Syncing).

The answer is read for an interval of the stream, [since, upto), whose end is settled before
anything else is read; whatever commits meanwhile belongs to the next interval. A waiter is
registered before it reads, so it cannot sleep through a change. One long-poll per device: a newer
request ends the older one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.notifier import Listener, Notifier
from lmserver.rooms.reading import Access, Reading
from lmserver.rooms.sync.device_lists import DeviceListChanges, device_list_changes
from lmserver.rooms.sync.feeds import Feeds
from lmserver.rooms.sync.interval import Interval, SyncRequest
from lmserver.rooms.sync.other_rooms import OtherRooms, RefusesInvites
from lmserver.rooms.sync.timeline import RoomSections, Window
from lmserver.rooms.sync.tokens import SyncToken
from lmserver.rooms.typing import Typing
from lmserver.rooms.unread import RoomCounts, Unread
from lmserver.storage import room_reads
from lmserver.storage.database import Executor
from lmserver.storage.room_reads import MemberEntry

MAX_WAIT_SECONDS: Final = 60.0


@dataclass(slots=True)
class _Poll:
    """A request in progress; `ended` when the device has asked again."""

    listener: Listener | None = None
    ended: bool = False

    def end(self) -> None:
        self.ended = True
        if self.listener is not None:
            self.listener.woken.set()


@dataclass(slots=True)
class _Answer:
    """An answer being put together, with what the wait needs to know of it."""

    next_batch: SyncToken
    upcoming: int
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

    def document(self) -> JsonObject:
        lists = self.device_lists
        return {
            "next_batch": str(self.next_batch),
            "rooms": {name: section for name, section in self.rooms.items() if section},
            "account_data": {"events": self.body.get("account_data", [])},
            "presence": {"events": self.body.get("presence", [])},
            "to_device": {"events": self.body.get("to_device", [])},
            "device_lists": {"changed": sorted(lists.changed), "left": sorted(lists.left)},
            "device_one_time_keys_count": self.body.get("one_time_keys", {}),
            "device_unused_fallback_key_types": self.body.get("fallback_types", []),
        }


class SyncService:
    """Answers /sync."""

    def __init__(
        self,
        db: Executor,
        notifier: Notifier,
        reading: Reading,
        typing: Typing,
        feeds: Feeds,
        refuses_invites: RefusesInvites,
        unread: Unread,
    ) -> None:
        self._db = db
        self._unread = unread
        self._notifier = notifier
        self._reading = reading
        self._typing = typing
        self._feeds = feeds
        self._sections = RoomSections(db, reading)
        self._other_rooms = OtherRooms(db, reading, self._sections, refuses_invites)
        self._polls: dict[tuple[str, str], _Poll] = {}

    async def sync(self, request: SyncRequest) -> JsonObject:
        """The answer, at once when there is news, else after at most the request's timeout."""
        device = (request.user_id, request.device_id)
        older = self._polls.get(device)
        if older is not None:
            older.end()
        poll = self._polls[device] = _Poll()
        try:
            answer = await self._wait_for_news(request, poll)
        finally:
            if self._polls.get(device) is poll:
                del self._polls[device]
        if "one_time_keys" not in answer.body:
            keys = await self._feeds.key_counts(request.user_id, request.device_id)
            answer.body["one_time_keys"], answer.body["fallback_types"] = keys
        return answer.document()

    async def _wait_for_news(self, request: SyncRequest, poll: _Poll) -> _Answer:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(request.timeout, MAX_WAIT_SECONDS)
        rooms: frozenset[str] | None = None
        while True:
            keys = [request.user_id, f"{request.user_id}:{request.device_id}", *(rooms or ())]
            with self._notifier.listen(keys) as listener:
                poll.listener = listener
                rechecked = False
                while True:
                    answer = await self._answer(request)
                    left = deadline - loop.time()
                    if (
                        answer.has_news
                        or request.since is None
                        or request.full_state
                        or left <= 0
                        or poll.ended
                        or self._notifier.closed
                    ):
                        return answer
                    # Nothing below its end was for this user: later looks begin there.
                    request = replace(request, since=answer.next_batch)
                    if rooms != answer.joined_rooms:
                        rooms = answer.joined_rooms
                        break
                    if not rechecked and answer.next_batch.stream < answer.upcoming:
                        self._notifier.recheck(listener, answer.upcoming)
                    rechecked = True
                    await listener.wait(left)
                    if poll.ended:
                        return answer

    # -- one answer -----------------------------------------------------------------------------

    async def _answer(self, request: SyncRequest) -> _Answer:
        settled, upcoming, epoch = await room_reads.sync_positions(self._db)
        since = request.since
        if since is not None and (since.epoch != epoch or since.stream > upcoming):
            since = None  # from before the database was restored: begin anew
        typing_serial = self._typing.serial
        upto = settled if since is None else max(settled, since.stream)
        messages, upto = await self._feeds.to_device(
            request.user_id, request.device_id, 0 if since is None else since.stream, upto
        )
        entries = await room_reads.memberships_at(self._db, request.user_id, upto)
        interval = await self._interval(request, entries, since, SyncToken(upto, typing_serial, epoch))
        answer = _Answer(interval.upto, upcoming, frozenset(interval.joined))
        if messages:
            answer.body["to_device"] = messages
        online = await self._feeds.presence(request.user_id, None if since is None else since.typing)
        wanted = request.filter.presence
        answer.body["presence"] = [
            e for e in online if wanted.type_passes(e["type"]) and wanted.sender_passes(e["sender"])
        ]
        by_room = await self._account_data(request, interval, answer)
        await self._joined_rooms(request, interval, by_room, answer)
        await self._other_rooms.add(request, interval, entries, answer.rooms)
        answer.device_lists = await device_list_changes(
            self._db,
            self._feeds,
            request.user_id,
            None if since is None else since.stream,
            upto,
            interval.member_changes,
            interval.newly_joined,
            self._rooms_left(interval, entries),
        )
        return answer

    async def _interval(
        self, request: SyncRequest, entries: Sequence[MemberEntry], since: SyncToken | None, upto: SyncToken
    ) -> Interval:
        joined = {e.room_id: e for e in entries if e.membership == "join"}
        newly: set[str] = set()
        changed: set[str] = set()
        for entry in entries:
            if since is None or entry.stream_xid < since.stream:
                continue
            changed.add(entry.room_id)
            before = await room_reads.membership_before(
                self._db, entry.room_id, request.user_id, since.stream
            )
            if entry.membership == "join" and (before is None or before.membership != "join"):
                newly.add(entry.room_id)
        start = 0 if since is None else since.stream
        spans = []
        if joined and start < upto.stream:
            spans = await room_reads.spans(self._db, list(joined), start, upto.stream)
        steady = [s for s in spans if since is not None and s.room_id not in newly]
        member_changes = await room_reads.member_changes(self._db, steady) if steady else []
        return Interval(
            since,
            upto,
            joined,
            frozenset(newly),
            frozenset(changed),
            {s.room_id: s for s in spans},
            member_changes,
        )

    async def _account_data(
        self, request: SyncRequest, interval: Interval, answer: _Answer
    ) -> dict[str, list[JsonObject]]:
        """Global account data into the answer; that of rooms by room."""
        since = None if interval.since is None else interval.since.stream
        changed = await self._feeds.account_data(request.user_id, since, interval.upto.stream)
        wanted = request.filter.account_data
        everywhere = [e for e in changed.pop("", []) if wanted.type_passes(e["type"])]
        if everywhere:
            answer.body["account_data"] = everywhere
        return changed

    # -- joined rooms ---------------------------------------------------------------------------

    async def _joined_rooms(
        self,
        request: SyncRequest,
        interval: Interval,
        account_data: Mapping[str, list[JsonObject]],
        answer: _Answer,
    ) -> None:
        rooms = [room_id for room_id in interval.joined if request.filter.room_passes(room_id)]
        ephemeral = await self._ephemeral(request, interval, rooms)
        if interval.newly_joined and not interval.initial:
            account_data = {
                **account_data,
                **await self._feeds.room_account_data(request.user_id, interval.newly_joined),
            }
        touched = [
            room_id
            for room_id in rooms
            if interval.initial or request.full_state or room_id in interval.spans
            or room_id in account_data or room_id in ephemeral
        ]  # fmt: skip
        if not touched:
            return
        counts = await self._unread.of(request.user_id, touched)
        by_thread = request.filter.timeline.unread_thread_notifications
        for room_id in touched:
            section = await self._joined_room(request, interval, room_id)
            if section is None:
                continue
            section |= counts.get(room_id, RoomCounts()).as_json(by_thread=by_thread)
            section["ephemeral"] = {"events": ephemeral.get(room_id, [])}
            wanted = request.filter.room_account_data
            section["account_data"] = {
                "events": [e for e in account_data.get(room_id, []) if wanted.type_passes(e["type"])]
            }
            if interval.is_new(room_id) or request.full_state or _has_news(section):
                answer.rooms["join"][room_id] = section

    async def _joined_room(self, request: SyncRequest, interval: Interval, room_id: str) -> JsonObject | None:
        new = interval.is_new(room_id)
        access = await self._access(
            request, room_id, steady=not new and room_id not in interval.changed_membership
        )
        if access is None:
            return None
        upto = await self._last_position(interval, access)
        span = interval.spans.get(room_id)
        after = None if new else span.since if span is not None else upto
        section = await self._sections.section(
            access, request.reader, Window(after, upto), request.filter, full_state=request.full_state
        )
        members_changed = any(c.room_id == room_id for c in interval.member_changes)
        if new or request.full_state or members_changed:
            section["summary"] = await self._sections.summary(access, request.reader, upto + 1)
        return section

    async def _access(self, request: SyncRequest, room_id: str, *, steady: bool) -> Access | None:
        if steady:
            return await self._reading.access_of_member(request.user_id, room_id)
        return await self._reading.access(request.user_id, room_id)

    async def _last_position(self, interval: Interval, access: Access) -> int:
        span = interval.spans.get(access.room_id)
        if span is not None:
            return span.upto
        found = await room_reads.position_before(self._db, access.room_id, interval.upto.stream)
        return access.room.min_position - 1 if found is None else found

    async def _ephemeral(
        self, request: SyncRequest, interval: Interval, rooms: Sequence[str]
    ) -> dict[str, list[JsonObject]]:
        """Typing and receipts by room; a room new to the client gets all there is."""
        wanted = request.filter.ephemeral
        found: dict[str, list[JsonObject]] = {}
        if wanted.type_passes("m.receipt") and rooms:
            since = None if interval.since is None else interval.since.stream
            receipts = await self._feeds.receipts(request.user_id, rooms, since, interval.upto.stream)
            if interval.newly_joined and not interval.initial:
                newly = [r for r in rooms if r in interval.newly_joined]
                receipts |= await self._feeds.receipts(request.user_id, newly, None, interval.upto.stream)
            for room_id, content in receipts.items():
                found.setdefault(room_id, []).append({"type": "m.receipt", "content": content})
        if wanted.type_passes("m.typing"):
            for room_id in self._rooms_with_typing(interval, rooms):
                content = {"user_ids": self._typing.users(room_id)}
                found.setdefault(room_id, []).append({"type": "m.typing", "content": content})
        return {room_id: events for room_id, events in found.items() if wanted.room_passes(room_id)}

    def _rooms_with_typing(self, interval: Interval, rooms: Sequence[str]) -> list[str]:
        if interval.since is None:
            return [room_id for room_id in rooms if self._typing.users(room_id)]
        return self._typing.changed(rooms, interval.since.typing)

    @staticmethod
    def _rooms_left(interval: Interval, entries: Iterable[MemberEntry]) -> dict[str, int]:
        """Rooms the user was taken out of in the interval, with the position of that."""
        return {
            e.room_id: e.from_position
            for e in entries
            if e.membership in ("leave", "ban") and interval.is_recent(e)
        }


def _has_news(section: Mapping[str, Any]) -> bool:
    return any(section[part]["events"] for part in ("timeline", "state", "ephemeral", "account_data"))
