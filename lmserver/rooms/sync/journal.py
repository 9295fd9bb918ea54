"""What was committed lately, read once for everybody who waits for it.

The journal is read from the stream itself, below the settled position (storage/stream.py), and from
nothing that a writer would have to remember to tell: what it does not show did not happen between
its two ends. So a client whose token lies between them is answered from memory, and from the
database only where something did happen.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, TypeVar

import orjson

from lmserver.rooms.threads import BUNDLED, relation
from lmserver.storage import stream
from lmserver.storage.database import Executor
from lmserver.storage.stream import Change, NewEvent, NewReceipt, Reading, UserChange

MAX_CHANGES: Final = 20_000
MAX_BYTES: Final = 16 * 1024 * 1024
"""Changes kept, and the bytes of their events together."""
_OVERHEAD: Final = 256
_RELATES: Final = b"m.relates_to"

K = TypeVar("K")
C = TypeVar("C", NewEvent, NewReceipt)


class Journal:
    """Changes in the stream interval [start, end); `end` moves with each reading."""

    def __init__(self, db: Executor) -> None:
        self._db = db
        self.start = 0
        self.end = 0
        self.epoch: int | None = None
        self._on_another_database: list[Callable[[], None]] = []
        self._bytes = 0
        self._all: deque[Change] = deque()
        self._events: dict[str, deque[NewEvent]] = {}
        self._receipts: dict[str, deque[NewReceipt]] = {}
        self._members: dict[str, deque[NewEvent]] = {}
        self._users: dict[tuple[str, str, str], int] = {}
        self._devices: deque[UserChange] = deque()
        self._parents: dict[str, tuple[str, str]] = {}
        self._related: Counter[tuple[str, str]] = Counter()
        self._windows: dict[tuple[str, int, int], list[NewEvent]] = {}
        self._running: asyncio.Task[Reading] | None = None
        self._next: asyncio.Task[Reading] | None = None

    # -- reading the stream ---------------------------------------------------------------------

    async def advance(self) -> Reading:
        """Read on; what had been settled when this was called is in the journal afterwards. Those who
        call while a reading is in progress share the next one. Raises DatabaseUnavailable."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running), name="journal")
            self._next.add_done_callback(_look_at_failure)
        return await asyncio.shield(self._next)

    async def positions(self) -> tuple[int, int]:
        """(settled, next) after reading on: what the notifier asks."""
        reading = await self.advance()
        return reading.settled, reading.upcoming

    async def _after(self, running: asyncio.Task[Reading] | None) -> Reading:
        if running is not None:
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        reading = await stream.changes(self._db, self.end if self.epoch is not None else stream.NOTHING_YET)
        self._take(reading)
        return reading

    def _take(self, reading: Reading) -> None:
        self._windows.clear()
        another = reading.epoch != self.epoch or reading.settled < self.end
        if another:
            for forget in self._on_another_database:
                forget()
        if another or not reading.complete:
            self._begin_at(reading)
            return
        self.end = reading.settled
        for change in sorted(reading.changes, key=_order):
            self._add(change)
        while len(self._all) > MAX_CHANGES or self._bytes > MAX_BYTES:
            self._drop_oldest()

    def _begin_at(self, reading: Reading) -> None:
        """Know nothing of before: too much happened since, or the database is another."""
        self.start = self.end = reading.settled
        self.epoch = reading.epoch
        self._bytes = 0
        for kept in (self._all, self._devices, self._events, self._receipts, self._members, self._users):
            kept.clear()
        self._parents.clear()
        self._related.clear()

    def _add(self, change: Change) -> None:
        self._all.append(change)
        self._bytes += _size(change)
        match change:
            case NewEvent():
                self._events.setdefault(change.stored.room_id, deque()).append(change)
                if change.member is not None:
                    self._members.setdefault(change.member, deque()).append(change)
                if (parent := _parent(change)) is not None:
                    self._parents[change.stored.event_id] = parent
                    self._related[parent] += 1
            case NewReceipt(receipt=receipt):
                self._receipts.setdefault(receipt.room_id, deque()).append(change)
            case UserChange(kind="devices"):
                self._devices.append(change)
            case UserChange():
                self._users[change.kind, change.user_id, change.device_id] = change.stream_xid

    def _drop_oldest(self) -> None:
        change = self._all.popleft()
        self._bytes -= _size(change)
        self.start = change.stream_xid + 1
        match change:
            case NewEvent():
                _pop(self._events, change.stored.room_id)
                if change.member is not None:
                    _pop(self._members, change.member)
                if (parent := self._parents.pop(change.stored.event_id, None)) is not None:
                    self._related[parent] -= 1
                    if not self._related[parent]:
                        del self._related[parent]
            case NewReceipt(receipt=receipt):
                _pop(self._receipts, receipt.room_id)
            case UserChange(kind="devices"):
                self._devices.popleft()
            case UserChange():
                key = (change.kind, change.user_id, change.device_id)
                if self._users.get(key) == change.stream_xid:
                    del self._users[key]

    # -- asking ---------------------------------------------------------------------------------

    def on_another_database(self, forget: Callable[[], None]) -> None:
        """What is remembered with stream positions is to be forgotten when they begin anew, because the
        database was restored under us."""
        self._on_another_database.append(forget)

    def covers(self, since: int) -> bool:
        """Whether all that was committed in [since, end) is here."""
        return self.epoch is not None and self.start <= since <= self.end

    def has_events(self, room_id: str, since: int) -> bool:
        """Whether a room's list was extended since a position."""
        found = self._events.get(room_id)
        return found is not None and found[-1].stream_xid >= since

    def events(self, room_id: str, since: int, upto: int) -> list[NewEvent]:
        """What a room's list was extended by in [since, upto), in its order; empty when that is not one
        piece of the list after what was there before, because transactions overtook each other or the
        room was joined anew. Many ask the same between two readings."""
        window = self._windows.get((room_id, since, upto))
        if window is None:
            window = self._windows[room_id, since, upto] = self._one_piece(room_id, since, upto)
        return window

    def _one_piece(self, room_id: str, since: int, upto: int) -> list[NewEvent]:
        events, before = _between(self._events.get(room_id), since, upto)
        positions = [position_of(event) for event in events]
        if not positions or positions != list(range(positions[0], positions[0] + len(positions))):
            return []
        return events if before is None or position_of(before) == positions[0] - 1 else []

    def redacted(self, room_id: str, since: int) -> bool:
        """Whether something of a room may have been redacted since a position."""
        events, _ = _between(self._events.get(room_id), since, self.end)
        return any(event.type == "m.room.redaction" for event in events)

    def is_related(self, room_id: str, event_id: str) -> bool:
        """Whether events that came later relate to one of these in a way that is told with it. Whatever
        relates to an event came after it, so this is so of every event in the journal."""
        return (room_id, event_id) in self._related

    def receipts(self, room_id: str, since: int, upto: int) -> list[NewReceipt]:
        return _between(self._receipts.get(room_id), since, upto)[0]

    def changed(self, kind: str, user_id: str, since: int, device_id: str = "") -> bool:
        """Whether something of one user changed: account_data, outside, inbox or signatures."""
        return self._users.get((kind, user_id, device_id), -1) >= since

    def membership_changed(self, user_id: str, since: int) -> bool:
        """Whether a member event of the user was added to any room, or one told from outside."""
        found = self._members.get(user_id)
        own = found is not None and found[-1].stream_xid >= since
        return own or self.changed("outside", user_id, since)

    def device_lists_changed(self, user_id: str, since: int) -> bool:
        """Whether anybody's device list changed, or the user signed somebody's keys."""
        lists = bool(self._devices) and self._devices[-1].stream_xid >= since
        return lists or self.changed("signatures", user_id, since)


def _between(found: deque[C] | None, since: int, upto: int) -> tuple[list[C], C | None]:
    """The changes in [since, upto), and the one before them; most are asked for their newest few."""
    recent: list[C] = []
    for change in reversed(found or ()):
        if change.stream_xid < since:
            return recent[::-1], change
        if change.stream_xid < upto:
            recent.append(change)
    return recent[::-1], None


def _pop(by_key: dict[K, deque[C]], key: K) -> None:
    found = by_key[key]
    found.popleft()
    if not found:
        del by_key[key]


def _parent(event: NewEvent) -> tuple[str, str] | None:
    """What an event relates to; few do, and only those are parsed."""
    if _RELATES not in event.stored.pdu or event.state_key is not None:
        return None
    found = relation(orjson.loads(event.stored.pdu)["content"])
    return None if found is None or found[0] not in BUNDLED else (event.stored.room_id, found[1])


def position_of(event: NewEvent) -> int:
    if event.stored.position is None:
        raise ValueError("an outlier has no place in the list")
    return event.stored.position


def _order(change: Change) -> tuple[int, int]:
    return change.stream_xid, position_of(change) if isinstance(change, NewEvent) else 0


def _size(change: Change) -> int:
    return _OVERHEAD + (len(change.stored.pdu) if isinstance(change, NewEvent) else 0)


def _look_at_failure(task: asyncio.Task[Reading]) -> None:
    """Whoever waits is told; nobody may wait any more."""
    if not task.cancelled():
        task.exception()
