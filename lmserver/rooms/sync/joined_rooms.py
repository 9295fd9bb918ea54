"""The `join` part of a /sync answer: every joined room that has news, with all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.access import Access
from lmserver.rooms.reading import Reading
from lmserver.rooms.sync.feeds import Feeds, receipt_contents
from lmserver.rooms.sync.interval import Interval, SyncRequest
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.sync.recent import RecentRooms
from lmserver.rooms.sync.timeline import Form, RoomPlan, RoomSections, Window
from lmserver.rooms.sync.tokens import SyncToken
from lmserver.rooms.typing import Typing
from lmserver.rooms.unread import RoomCounts, Unread
from lmserver.storage import room_batches
from lmserver.storage.database import Executor

PARTS = ("timeline", "ephemeral", "account_data")


class JoinedRooms:
    """Puts together what is told of the rooms a user is joined to."""

    def __init__(
        self,
        db: Executor,
        journal: Journal,
        reading: Reading,
        sections: RoomSections,
        typing: Typing,
        feeds: Feeds,
        unread: Unread,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._journal = journal
        self._reading = reading
        self._sections = sections
        self._recent = RecentRooms(db, journal, reading, clock)
        self._unread = unread
        self._typing = typing
        self._feeds = feeds

    async def sections(
        self,
        request: SyncRequest,
        interval: Interval,
        form: Form,
        account_data: Mapping[str, list[JsonObject]],
    ) -> dict[str, JsonObject]:
        """By room ID; `account_data` of rooms is what changed of it."""
        ephemeral = await self._ephemeral(request, interval)
        if interval.newly_joined and not interval.initial:
            anew = await self._feeds.room_account_data(request.user_id, interval.newly_joined)
            account_data = {**account_data, **anew}
        touched = self._touched(request, interval, account_data, ephemeral)
        if not touched:
            return {}
        found = await self._from_memory(request, interval, form, touched)
        rest = [room_id for room_id in touched if room_id not in found]
        if rest:
            uptos = {room_id: span.upto for room_id, span in interval.spans.items()}
            read, counts = await asyncio.gather(
                self._from_database(request, interval, form, rest, uptos),
                self._unread.of(request.user_id, touched),
            )
            found |= read
        else:
            counts = await self._unread.of(request.user_id, touched)
        wanted = request.filter.room_account_data
        answer: dict[str, JsonObject] = {}
        for room_id in touched:
            section = found.get(room_id)
            if section is None:
                continue
            section["ephemeral"] = {"events": ephemeral.get(room_id, [])}
            told = account_data.get(room_id, []) if wanted.room_passes(room_id) else []
            section["account_data"] = {"events": [e for e in told if wanted.type_passes(e["type"])]}
            parts = (*PARTS, *(form.state_after or ("state",)))
            if interval.is_new(room_id) or request.full_state or any(section[p]["events"] for p in parts):
                answer[room_id] = section
        by_thread = request.filter.timeline.unread_thread_notifications
        for room_id, section in answer.items():
            section.update(counts.get(room_id, RoomCounts()).as_json(by_thread=by_thread))
        return answer

    def _touched(
        self,
        request: SyncRequest,
        interval: Interval,
        account_data: Mapping[str, Any],
        ephemeral: Mapping[str, Any],
    ) -> list[str]:
        passes = request.filter.room_passes
        if interval.initial or request.full_state:
            return [room_id for room_id in interval.joined if passes(room_id)]
        news = dict.fromkeys([*interval.spans, *interval.newly_joined, *account_data, *ephemeral])
        return [room_id for room_id in news if room_id in interval.joined and passes(room_id)]

    # -- timelines and state --------------------------------------------------------------------

    async def _from_memory(
        self, request: SyncRequest, interval: Interval, form: Form, touched: Sequence[str]
    ) -> dict[str, JsonObject]:
        """Rooms in which nothing happened but messages, while the user was in them."""
        if not interval.known or interval.since is None or request.full_state:
            return {}
        windows = {}
        for room_id in touched:
            if room_id in interval.spans and room_id not in interval.changed_membership:
                window = self._recent.window(room_id, interval.since.stream, interval.upto.stream)
                if window:
                    windows[room_id] = window
        found: dict[str, JsonObject] = {}
        if windows:
            found |= await self._recent.sections(request.reader, windows, form, interval.ignored)
        for room_id in touched:
            if room_id not in interval.spans and room_id not in interval.newly_joined:
                found[room_id] = _no_events(interval.since, form)
        return found

    async def _from_database(
        self,
        request: SyncRequest,
        interval: Interval,
        form: Form,
        room_ids: Sequence[str],
        uptos: dict[str, int],
    ) -> dict[str, JsonObject]:
        """Any rooms; fills in the last positions of those that have no new event."""
        unknown = [room_id for room_id in room_ids if room_id not in uptos]
        last, accesses = await asyncio.gather(
            self._last_positions(unknown, interval.upto.stream), self._accesses(request, interval, room_ids)
        )
        uptos |= last
        members = {c.room_id for c in interval.member_changes if c.before != c.after}
        plans = []
        for room_id, access in accesses.items():
            upto = uptos.setdefault(room_id, access.room.min_position - 1)
            new = interval.is_new(room_id)
            span = interval.spans.get(room_id)
            after = None if new else span.since if span is not None else upto
            plans.append(
                RoomPlan(
                    access,
                    Window(after, upto),
                    full_state=request.full_state,
                    anew=new and not interval.initial,
                    summary=new or request.full_state or room_id in members,
                )
            )
        return await self._sections.sections(request.reader, plans, form)

    async def _last_positions(self, room_ids: Sequence[str], upto: int) -> dict[str, int]:
        return await room_batches.last_positions(self._db, room_ids, upto) if room_ids else {}

    async def _accesses(
        self, request: SyncRequest, interval: Interval, room_ids: Sequence[str]
    ) -> dict[str, Access]:
        steady = [r for r in room_ids if not interval.is_new(r) and r not in interval.changed_membership]
        others = [r for r in room_ids if r not in set(steady)]
        found = await self._reading.accesses_of_member(request.user_id, steady) if steady else {}
        return found | (await self._reading.accesses(request.user_id, others) if others else {})

    # -- typing and receipts --------------------------------------------------------------------

    async def _ephemeral(self, request: SyncRequest, interval: Interval) -> dict[str, list[JsonObject]]:
        """Typing and receipts by room; a room new to the client gets all there is."""
        wanted = request.filter.ephemeral
        rooms = [r for r in interval.joined if request.filter.room_passes(r) and wanted.room_passes(r)]
        found: dict[str, list[JsonObject]] = {}
        if rooms and wanted.type_passes("m.receipt"):
            for room_id, content in (await self._receipts(request.user_id, interval, rooms)).items():
                found.setdefault(room_id, []).append({"type": "m.receipt", "content": content})
        if rooms and wanted.type_passes("m.typing"):
            for room_id in self._rooms_with_typing(interval, rooms):
                content = {"user_ids": self._typing.users(room_id)}
                found.setdefault(room_id, []).append({"type": "m.typing", "content": content})
        return found

    async def _receipts(
        self, user_id: str, interval: Interval, rooms: Sequence[str]
    ) -> dict[str, JsonObject]:
        upto = interval.upto.stream
        if interval.since is None:
            return await self._feeds.receipts(user_id, rooms, None, upto)
        if interval.known:
            found = self._receipts_from_memory(user_id, interval.since.stream, upto, rooms)
        else:
            found = await self._feeds.receipts(user_id, rooms, interval.since.stream, upto)
        newly = [r for r in rooms if r in interval.newly_joined]
        return found | (await self._feeds.receipts(user_id, newly, None, upto) if newly else {})

    def _receipts_from_memory(
        self, user_id: str, since: int, upto: int, rooms: Iterable[str]
    ) -> dict[str, JsonObject]:
        seen = [
            new.receipt
            for room_id in rooms
            for new in self._journal.receipts(room_id, since, upto)
            if new.receipt.receipt_type == "m.read" or new.receipt.user_id == user_id
        ]
        newest = {(r.room_id, r.user_id, r.receipt_type, r.thread_id): r for r in seen}
        return receipt_contents(newest.values())

    def _rooms_with_typing(self, interval: Interval, rooms: Sequence[str]) -> list[str]:
        if interval.since is None:
            return [room_id for room_id in rooms if self._typing.users(room_id)]
        return self._typing.changed(rooms, interval.since.typing)


def _no_events(since: SyncToken, form: Form) -> JsonObject:
    """A room of which something else is told: its list ends where it did."""
    empty: list[JsonObject] = []
    return {
        "timeline": {"events": empty, "limited": False, "prev_batch": str(since)},
        **{name: {"events": empty} for name in form.state_after or ("state",)},
    }
