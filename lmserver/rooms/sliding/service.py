"""POST sync of simplified sliding sync: an answer, or a wait until there is something to say.

The answer is the difference between what the connection was sent and what is there at a settled
stream position. While it waits each look starts from the same `pos`: nothing is noted before the
answer that leaves. One request per connection: a newer one ends the older.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.access import Reader
from lmserver.rooms.notifier import Notifier
from lmserver.rooms.reading import Reading
from lmserver.rooms.sliding.connection import (
    LIVE,
    Connections,
    ConnectionState,
    Pos,
    Sent,
    UnknownPos,
    parse_pos,
)
from lmserver.rooms.sliding.extensions import ExtensionData, Extensions, Occasion
from lmserver.rooms.sliding.frames import RoomPlan
from lmserver.rooms.sliding.pending import PendingRooms
from lmserver.rooms.sliding.request import MEMBER, SlidingRequest
from lmserver.rooms.sliding.room_data import RoomData, RoomResult
from lmserver.rooms.sliding.room_list import OwnData, Personal, RoomList, UserRoom, Windows
from lmserver.rooms.sync.feeds import Feeds
from lmserver.rooms.sync.intervals import Intervals
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.sync.memberships import Memberships
from lmserver.rooms.sync.other_rooms import RefusesInvites
from lmserver.rooms.sync.polls import Poll, Polls
from lmserver.rooms.sync.waiting import Waiting
from lmserver.rooms.typing import Typing
from lmserver.rooms.unread import Unread
from lmserver.storage import receipts
from lmserver.storage.database import Database

MAX_POLLS: Final = 16
"""Of one user, at a time."""
WHOLE_AT_ONCE: Final = 4
"""Connections being begun at a time: each first answer may be megabytes (attack R5)."""
MAX_ROOMS: Final = 250
MAX_EVENTS: Final = 5_000
MAX_MEMBER_LISTS: Final = 10
"""Rooms with news in one answer, events they may have together, and those of them with all their members.
What does not fit follows with the next, which does not wait."""


@dataclass(frozen=True, slots=True)
class SlidingPoll:
    """A parsed request with who sends it; `pos` as the client gave it, None for a new connection;
    `timeout` in seconds."""

    user_id: str
    device_id: str
    request: SlidingRequest
    pos: str | None
    timeout: float

    @property
    def reader(self) -> Reader:
        return Reader(self.user_id, self.device_id)


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer that has not been noted yet. `rooms` is what the client has after it."""

    upto: Pos
    joined_rooms: frozenset[str]
    counts: Mapping[str, int]
    results: Mapping[str, RoomResult]
    extensions: Extensions
    rooms: Mapping[str, Sent]
    complete: bool

    @property
    def has_news(self) -> bool:
        return bool(self.results) or self.extensions.has_news or not self.complete

    @property
    def settled(self) -> int:
        return self.upto.stream

    def document(self, pos: Pos) -> JsonObject:
        return {
            "pos": str(pos),
            "lists": {name: {"count": count} for name, count in self.counts.items()},
            "rooms": {room_id: result.body for room_id, result in self.results.items()},
            "extensions": self.extensions.body,
        }


class SlidingSync:
    """Answers sliding sync."""

    def __init__(
        self,
        db: Database,
        journal: Journal,
        notifier: Notifier,
        reading: Reading,
        typing: Typing,
        feeds: Feeds,
        own_data: OwnData,
        refuses_invites: RefusesInvites,
        unread: Unread,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._journal = journal
        self._waiting = Waiting(journal, notifier)
        self._typing = typing
        self._memberships = Memberships(db, journal)
        self._connections = Connections(db, clock)
        self._room_list = RoomList(db, own_data, refuses_invites)
        self._room_data = RoomData(db, reading, unread, PendingRooms(db), clock)
        self._extensions = ExtensionData(db, journal, feeds, typing, Intervals(db, journal))
        self._polls = Polls(MAX_POLLS)
        self._whole = asyncio.Semaphore(WHOLE_AT_ONCE)

    async def sync(self, poll: SlidingPoll) -> JsonObject:
        """The answer, at once when there is news, else after at most the timeout. Raises UnknownPos
        and BadRequest."""
        with self._polls.enter(poll.user_id, f"{poll.device_id}\0{poll.request.conn_id}") as waiting:
            if poll.pos is None:
                async with self._whole:
                    return await self._sync(poll, waiting)
            return await self._sync(poll, waiting)

    async def _sync(self, poll: SlidingPoll, waiting: Poll) -> JsonObject:
        pos, state = None, ConnectionState()
        if poll.pos is not None:
            pos = parse_pos(poll.pos)
            state = await self._connections.load(poll.user_id, poll.device_id, poll.request.conn_id, pos)
        answer = await self._wait_for_news(poll, pos, state, waiting)
        if waiting.ended:
            # Its client has gone and asked again: what it would not get must not be noted as sent.
            if pos is None:
                raise UnknownPos
            return {"pos": str(pos), "lists": {}, "rooms": {}, "extensions": {}}
        await self._extensions.add_key_counts(answer.extensions, poll.user_id, poll.device_id)
        number = await self._connections.store(
            poll.user_id, poll.device_id, poll.request, state, pos, answer.rooms
        )
        return answer.document(replace(answer.upto, position=number))

    async def _wait_for_news(
        self, poll: SlidingPoll, pos: Pos | None, state: ConnectionState, waiting: Poll
    ) -> _Answer:
        at_once = pos is None or state.request != poll.request.digest
        return await self._waiting.for_news(
            waiting,
            poll.user_id,
            poll.device_id,
            0 if at_once else poll.timeout,
            lambda upcoming: self._answer(poll, pos, state, upcoming),
        )

    # -- one answer -----------------------------------------------------------------------------

    async def _answer(
        self, poll: SlidingPoll, pos: Pos | None, state: ConnectionState, upcoming: int
    ) -> _Answer:
        settled, epoch = self._journal.end, self._journal.epoch or 0
        if pos is not None and (pos.epoch != epoch or pos.stream > upcoming):
            raise UnknownPos  # from before the database was restored
        upto = Pos(0, settled if pos is None else max(settled, pos.stream), self._typing.serial, epoch)
        since = None if pos is None else pos.stream
        rooms, windows, personal = await self._wanted(poll, state, upto.stream)
        read = await self._read_moved(poll.user_id, windows.wanted, state, since, upto.stream)
        wanted = _plans(windows, rooms, personal, state, upto.stream if since is None else since, read)
        plans = _fitting(wanted)
        results = await self._room_data.results(poll.reader, [p for p in plans if p.may_have_news], since)
        memberships = await self._memberships.at(poll.user_id, upto.stream)
        occasion = Occasion(
            poll.user_id, poll.device_id, poll.request, state, pos, upto, memberships, rooms, windows,
            {room_id: result.event_ids for room_id, result in results.items()},
        )  # fmt: skip
        extensions = await self._extensions.read(occasion)
        return _Answer(
            upto,
            memberships.joined_ids,
            windows.counts,
            results,
            extensions,
            _after(state, plans, results, extensions, since),
            complete=len(plans) == len(wanted),
        )

    async def _wanted(
        self, poll: SlidingPoll, state: ConnectionState, upto: int
    ) -> tuple[Mapping[str, UserRoom], Windows, Personal]:
        """The user's rooms, and what the request asks for of them; nothing is read for one that asks for
        no rooms, as connections for encryption do."""
        if not poll.request.lists and not poll.request.subscriptions:
            return {}, Windows(), Personal(frozenset(), {})
        sent = {room_id: one.membership for room_id, one in state.rooms.items()}
        rooms = await self._room_list.read(poll.user_id, upto, sent)
        personal = await self._room_list.personal(poll.user_id, poll.request)
        return rooms, await self._room_list.windows(poll.request, rooms, personal), personal

    async def _read_moved(
        self, user_id: str, rooms: Iterable[str], state: ConnectionState, since: int | None, upto: int
    ) -> set[str]:
        """Rooms in which the user's own receipts moved: their unread counts are others now."""
        if since is None:
            return set()
        back = {r: state.rooms[r].seen for r in rooms if r in state.rooms and state.rooms[r].seen != LIVE}
        moved = await self._moved_since(user_id, rooms, since, upto)
        if back:
            earlier = await receipts.moved(self._db, user_id, min(back.values()), upto)
            moved |= earlier.intersection(back)
        return moved

    async def _moved_since(self, user_id: str, rooms: Iterable[str], since: int, upto: int) -> set[str]:
        if not self._journal.covers(since) or upto > self._journal.end:
            return await receipts.moved(self._db, user_id, since, upto)
        return {
            room_id
            for room_id in rooms
            if any(new.receipt.user_id == user_id for new in self._journal.receipts(room_id, since, upto))
        }


def _plans(
    windows: Windows,
    rooms: Mapping[str, UserRoom],
    personal: Personal,
    state: ConnectionState,
    since: int,
    read: set[str],
) -> list[RoomPlan]:
    """The rooms in the windows, newest first."""
    plans: list[RoomPlan] = []
    for room_id, room in rooms.items():
        config = windows.wanted.get(room_id)
        if config is None:
            continue
        sent = state.rooms.get(room_id)
        if sent is not None and _begins_anew(sent.membership, room.membership):
            sent = None
        reached = since if sent is None or sent.seen == LIVE else sent.seen
        plans.append(
            RoomPlan(
                room, config, windows.in_lists.get(room_id, ()), room_id in personal.direct, sent, reached,
                room_id in read and room.membership == "join",
            )
        )  # fmt: skip
    return plans


def _fitting(plans: Sequence[RoomPlan]) -> list[RoomPlan]:
    """Those that one answer has room for, at least one with news. What the client has of the others is
    noted as for rooms that left the windows, so that they are taken up from there."""
    fitting: list[RoomPlan] = []
    rooms = events = member_lists = 0
    for plan in plans:
        if plan.may_have_news:
            rooms += 1
            events += plan.config.timeline_limit
            member_lists += any(p.type == MEMBER and p.state_key is None for p in plan.new_patterns)
            over = rooms > MAX_ROOMS or events > MAX_EVENTS or member_lists > MAX_MEMBER_LISTS
            if over and rooms > 1:
                continue
        fitting.append(plan)
    return fitting


def _begins_anew(before: str, now: str) -> bool:
    """Whether a change of membership makes another room of it for the client."""
    return before != now and now in ("join", "invite", "knock")


def _after(
    state: ConnectionState,
    plans: list[RoomPlan],
    results: Mapping[str, RoomResult],
    extensions: Extensions,
    since: int | None,
) -> dict[str, Sent]:
    """What the client has of each room once it has the answer."""
    after = dict(state.rooms)
    for plan in plans:
        after[plan.room_id] = _sent(plan, results.get(plan.room_id), extensions, since)
    planned = {plan.room_id for plan in plans}
    if since is not None:
        after |= {r: sent.left_behind(since) for r, sent in state.rooms.items() if r not in planned}
    return after


def _sent(plan: RoomPlan, result: RoomResult | None, extensions: Extensions, since: int | None) -> Sent:
    old, config = plan.sent, plan.config
    limit = config.timeline_limit
    if old is not None and limit < old.timeline_limit and not (result is not None and result.limited):
        limit = old.timeline_limit  # the client still has as many of the newest events
    behind = None if old is None or since is None else old.left_behind(since)
    return Sent(
        LIVE,
        plan.room.membership,
        plan.is_dm,
        limit,
        config.required,
        (() if old is None else old.members) if result is None else result.members,
        _reached("receipts", plan.room_id, extensions, None if behind is None else behind.receipts),
        _reached("account_data", plan.room_id, extensions, None if behind is None else behind.account_data),
    )


def _reached(extension: str, room_id: str, extensions: Extensions, before: int | None) -> int | None:
    return LIVE if room_id in extensions.covered.get(extension, ()) else before
