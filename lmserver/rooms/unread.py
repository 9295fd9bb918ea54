"""Unread notifications of a user, by room and thread (CS API §Receiving notifications).

Nothing is counted when a message is sent. Whoever reads has the events since the last count compared
with their push rules; what of them is unread is kept as a tally, in memory and, when counting it was
work, in the database. Receipts, own messages and redactions take marks out of the tally again.

For who keeps up the journal of /sync has what is new: then nothing is asked of the database.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol

import orjson

from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.power_levels import PowerLevels
from lmserver.protocol.push_evaluation import Occasion, PushRuleSet, RoomFacts
from lmserver.rooms import threads
from lmserver.rooms.snapshot import Snapshot
from lmserver.rooms.sync.journal import Journal, position_of
from lmserver.rooms.threads import MAIN
from lmserver.storage import account_data, unread
from lmserver.storage.database import Executor
from lmserver.storage.stream import NewEvent
from lmserver.storage.together import Together
from lmserver.storage.unread import Basis, Heard, Question, Stretch

WINDOW: Final = 5_000
"""Events of a room that one count looks at: of those that came while nobody asked, the newest."""
CHUNK: Final = 500
WORTH_SAVING: Final = 200
"""Positions a tally goes on before it is saved anew."""
MAX_KEPT: Final = 500_000
"""Marks and tallies in memory."""
MAX_PEOPLE: Final = 10_000
"""Users whose rules are kept with what they belong to."""
ALL: Final = ""
"""The "thread" of receipts without thread: they count for all."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An unread event that notifies."""

    position: int
    thread: str
    highlight: bool


@dataclass(frozen=True, slots=True)
class Tally:
    """All unread notifications up to a position; `saved_to` is how far the database knows. What was
    committed below the stream position `at` is in it."""

    counted_to: int
    marks: tuple[Mark, ...]
    saved_to: int
    at: int = 0


@dataclass(slots=True)
class _Person:
    """A user's rules and whom they ignore, as they are known to be since a stream position."""

    at: int
    rules: PushRuleSet
    ignored: frozenset[str]


@dataclass(frozen=True, slots=True)
class Counts:
    notifications: int = 0
    highlights: int = 0

    def as_json(self) -> JsonObject:
        """UnreadNotificationCounts of the specification."""
        return {"notification_count": self.notifications, "highlight_count": self.highlights}


NO_COUNTS: Final = Counts()


@dataclass(frozen=True, slots=True)
class RoomCounts:
    """`whole` is everything, `main` what is in no thread; threads without unread events are left out."""

    whole: Counts = NO_COUNTS
    main: Counts = NO_COUNTS
    threads: Mapping[str, Counts] = field(default_factory=dict)

    def as_json(self, *, by_thread: bool) -> JsonObject:
        """Members of a room of /sync; `by_thread` says that the client counts threads by themselves."""
        if not by_thread:
            return {"unread_notifications": self.whole.as_json()}
        return {
            "unread_notifications": self.main.as_json(),
            "unread_thread_notifications": {root: c.as_json() for root, c in self.threads.items()},
        }


class Rooms(Protocol):
    """The engine, as far as counting needs it."""

    async def snapshot(self, room_id: str) -> Snapshot | None: ...


Rules = Callable[[str], Awaitable[PushRuleSet]]
"""A user's push rules."""


class Unread:
    """Counts for one user in many rooms at once."""

    def __init__(self, db: Executor, journal: Journal, rooms: Rooms, rules: Rules) -> None:
        self._db = db
        self._journal = journal
        self._people: OrderedDict[str, _Person] = OrderedDict()
        self._rooms = rooms
        self._rules = rules
        self._bases = Together(partial(_all_bases, db))
        self._heard = Together(partial(_all_heard, db))
        self._ignored = Together(partial(account_data.ignored_of, db))
        self._tallies: OrderedDict[tuple[str, str], Tally] = OrderedDict()
        journal.on_another_database(self._forget)
        self._kept = 0

    def _forget(self) -> None:
        self._people.clear()
        self._tallies.clear()
        self._kept = 0

    async def of(self, user_id: str, room_ids: Sequence[str]) -> dict[str, RoomCounts]:
        """Counts up to each room's head, for rooms the user is joined to; none for others."""
        return {room_id: _counts(marks) for room_id, marks in (await self.marks(user_id, room_ids)).items()}

    async def marks(self, user_id: str, room_ids: Sequence[str]) -> dict[str, tuple[Mark, ...]]:
        """The unread events themselves, in each room's order."""
        found: dict[str, Tally] = {}
        for room_id in room_ids:
            tally = await self._from_journal(user_id, room_id)
            if tally is not None:
                found[room_id] = tally
        rest = [room_id for room_id in room_ids if room_id not in found]
        if rest:
            found |= await self._tallied(user_id, rest)
        return {room_id: tally.marks for room_id, tally in found.items()}

    # -- from the journal -----------------------------------------------------------------------

    async def _from_journal(self, user_id: str, room_id: str) -> Tally | None:
        """A tally gone on with, if nothing but others' events came since; else None."""
        tally = self._tallies.get((user_id, room_id))
        if tally is None or not self._journal.covers(tally.at):
            return None
        events = self._new_to(user_id, room_id, tally)
        if events is None:
            return None
        end = self._journal.end
        marks = list(tally.marks)
        if events:
            person = await self._person(user_id)
            room = await self.facts(user_id, room_id)
            for event in events:
                if room is None or event.sender in person.ignored or event.stored.soft_failed is not None:
                    continue
                fields = orjson.loads(event.stored.pdu)
                verdict = person.rules.verdict(Occasion(fields, room))
                if verdict is not None:
                    thread = await threads.thread_of(self._db, room_id, fields["content"])
                    marks.append(Mark(position_of(event), thread, verdict.highlight))
        counted_to = position_of(events[-1]) if events else tally.counted_to
        return await self._keep(
            user_id, room_id, Tally(counted_to, tuple(marks[-WINDOW:]), tally.saved_to, end)
        )

    def _new_to(self, user_id: str, room_id: str, tally: Tally) -> list[NewEvent] | None:
        """The events a tally has to go on with; None where marks may have to go, or some are not here."""
        journal = self._journal
        if any(n.receipt.user_id == user_id for n in journal.receipts(room_id, tally.at, journal.end)):
            return None
        events = journal.events(room_id, tally.at, journal.end)
        if not events and journal.has_events(room_id, tally.at):
            return None
        new = [event for event in events if position_of(event) > tally.counted_to]
        if any(_takes_marks(event, user_id) for event in new):
            return None
        return new if not new or position_of(new[0]) == tally.counted_to + 1 else None

    async def _person(self, user_id: str) -> _Person:
        journal = self._journal
        known = self._people.pop(user_id, None)
        if (
            known is None
            or not journal.covers(known.at)
            or journal.changed("account_data", user_id, known.at)
        ):
            at = journal.end
            rules = await self._rules(user_id)
            known = _Person(at, rules, await self._ignored.answer(user_id))
        self._people[user_id] = known
        if len(self._people) > MAX_PEOPLE:
            self._people.popitem(last=False)
        return known

    # -- from the database ----------------------------------------------------------------------

    async def _tallied(self, user_id: str, room_ids: Sequence[str]) -> dict[str, Tally]:
        at = self._journal.end
        known = {r: t for r in room_ids if (t := self._tallies.get((user_id, r))) is not None}
        asked = [_question(user_id, r, known.get(r)) for r in room_ids]
        answers = await self._bases.answer(asked) if asked else []
        found = {q.room_id: basis for q, basis in zip(asked, answers, strict=True) if basis is not None}
        for room_id, basis in found.items():
            if room_id not in known and basis.counted_to is not None:
                known[room_id] = _loaded(basis.counted_to, basis.marks)
        starts = await self._starts(user_id, found, known)
        counting = _Counting(
            user_id, found, {r: known.get(r, Tally(starts[r], (), starts[r])) for r in found}
        )
        # Read even where nothing is to be counted yet: whoever is woken later finds it in memory.
        await self._count(counting, starts, await self._person(user_id))
        for room_id, basis in found.items():
            marks = _unread(counting.marks[room_id], basis.read)
            counting.tallies[room_id] = await self._keep(
                user_id,
                room_id,
                Tally(counting.reached[room_id], marks, counting.tallies[room_id].saved_to, at),
            )
        return counting.tallies

    async def _starts(
        self, user_id: str, found: Mapping[str, Basis], known: Mapping[str, Tally]
    ) -> dict[str, int]:
        """The position after which each room has to be looked at."""
        new = [r for r in found if r not in known]
        since = await unread.joined_since(self._db, user_id, new) if new else {}
        starts = {}
        for room_id, basis in found.items():
            tally = known.get(room_id)
            begin = since.get(room_id, basis.head) if tally is None else tally.counted_to
            starts[room_id] = max(begin, basis.read.get(ALL, begin), basis.head - WINDOW)
        return starts

    async def _count(self, counting: _Counting, starts: Mapping[str, int], person: _Person) -> None:
        """Look at everything new, a chunk of each room at a time."""
        left = [
            Stretch(r, starts[r], basis.head) for r, basis in counting.bases.items() if starts[r] < basis.head
        ]
        if not left:
            return
        while left:
            chunks = await self._heard.answer(left)
            for stretch, events in zip(left, chunks, strict=True):
                await self._look_at(counting, stretch.room_id, events, person.rules, person.ignored)
                await asyncio.sleep(0)
            left = [
                Stretch(stretch.room_id, events[-1].position, stretch.upto)
                for stretch, events in zip(left, chunks, strict=True)
                if len(events) == CHUNK
            ]

    async def _look_at(
        self,
        counting: _Counting,
        room_id: str,
        events: Sequence[Heard],
        rules: PushRuleSet,
        ignored: frozenset[str],
    ) -> None:
        room = await self.facts(counting.user_id, room_id) if events else None
        if room is None:
            return
        marks = counting.marks[room_id]
        redactions = []
        for event in events:
            fields = orjson.loads(event.pdu)
            if fields["type"] == "m.room.redaction" and marks:
                redactions.append(fields["content"].get("redacts"))
            if event.sender == counting.user_id:
                await self._own(marks, room_id, fields)
            elif _ends_stay(fields, counting.user_id):
                marks.clear()
            elif event.redacted or event.sender in ignored:
                continue
            elif (verdict := rules.verdict(Occasion(fields, room))) is not None:
                thread = await threads.thread_of(self._db, room_id, fields["content"])
                marks.append(Mark(event.position, thread, verdict.highlight))
        if targets := [t for t in redactions if isinstance(t, str) and "\0" not in t]:
            gone = await unread.redacted_positions(self._db, room_id, targets)
            marks[:] = [m for m in marks if m.position not in gone]

    async def _own(self, marks: list[Mark], room_id: str, fields: Mapping[str, Any]) -> None:
        """Who says something has read what was said before; who leaves, or enters anew, everything."""
        if fields["type"] == "m.room.member" and fields["content"].get("membership") != "join":
            marks.clear()
        elif "state_key" not in fields and marks:
            thread = await threads.thread_of(self._db, room_id, fields["content"])
            marks[:] = [m for m in marks if m.thread != thread]

    async def facts(self, user_id: str, room_id: str) -> RoomFacts | None:
        """What conditions may ask about a room; None for one we do not hold."""
        snapshot = await self._rooms.snapshot(room_id)
        if snapshot is None:
            return None
        member = snapshot.view.get("m.room.member", user_id)
        name = None if member is None else member.content.get("displayname")
        return RoomFacts(
            sum(snapshot.servers.values()),
            user_id,
            name if isinstance(name, str) else None,
            PowerLevels.from_view(snapshot.view),
        )

    async def _keep(self, user_id: str, room_id: str, tally: Tally) -> Tally:
        if tally.counted_to - tally.saved_to >= WORTH_SAVING:
            await unread.save(self._db, user_id, room_id, tally.counted_to, _dumped(tally.marks))
            tally = replace(tally, saved_to=tally.counted_to)
        old = self._tallies.pop((user_id, room_id), None)
        self._kept += 1 + len(tally.marks) - (0 if old is None else 1 + len(old.marks))
        self._tallies[user_id, room_id] = tally
        while self._kept > MAX_KEPT:
            _, gone = self._tallies.popitem(last=False)
            self._kept -= 1 + len(gone.marks)
        return tally


async def _all_bases(db: Executor, asked: Sequence[Sequence[Question]]) -> list[list[Basis | None]]:
    """For many users at once: one message wakes all who wait for it."""
    answers = iter(await unread.bases(db, [question for questions in asked for question in questions]))
    return [[next(answers) for _ in questions] for questions in asked]


async def _all_heard(db: Executor, asked: Sequence[Sequence[Stretch]]) -> list[list[list[Heard]]]:
    """The same; what many want to hear is read once."""
    wanted = list(dict.fromkeys(stretch for stretches in asked for stretch in stretches))
    found = dict(zip(wanted, await unread.heard(db, wanted, CHUNK), strict=True))
    return [[found[stretch] for stretch in stretches] for stretches in asked]


class _Counting:
    """One user's count in progress."""

    def __init__(self, user_id: str, bases: Mapping[str, Basis], tallies: dict[str, Tally]) -> None:
        self.user_id = user_id
        self.bases = bases
        self.tallies = tallies
        self.marks = {r: list(_unread(t.marks, bases[r].read)) for r, t in tallies.items()}
        self.reached = {r: max(t.counted_to, bases[r].head) for r, t in tallies.items()}


def _question(user_id: str, room_id: str, tally: Tally | None) -> Question:
    if tally is None:
        return Question(user_id, room_id, 0, True)
    lowest = tally.marks[0].position if tally.marks else tally.counted_to + 1
    return Question(user_id, room_id, lowest, False)


def _unread(marks: Sequence[Mark], read: Mapping[str, int]) -> tuple[Mark, ...]:
    """Those that receipts leave; a receipt without thread counts for every thread."""
    everywhere = read.get(ALL, -1)
    return tuple(m for m in marks if m.position > max(everywhere, read.get(m.thread, -1)))[-WINDOW:]


def _counts(marks: Sequence[Mark]) -> RoomCounts:
    by_thread: dict[str, list[bool]] = {}
    for mark in marks:
        by_thread.setdefault(mark.thread, []).append(mark.highlight)
    counts = {thread: Counts(len(loud), sum(loud)) for thread, loud in by_thread.items()}
    whole = Counts(len(marks), sum(c.highlights for c in counts.values()))
    return RoomCounts(whole, counts.pop(MAIN, NO_COUNTS), counts)


def _takes_marks(event: NewEvent, user_id: str) -> bool:
    """Whether it may be that an event leaves less unread than there was."""
    return user_id in (event.sender, event.member) or event.type == "m.room.redaction"


def _ends_stay(fields: Mapping[str, Any], user_id: str) -> bool:
    return (
        fields["type"] == "m.room.member"
        and fields.get("state_key") == user_id
        and fields["content"].get("membership") in ("leave", "ban")
    )


def _dumped(marks: Sequence[Mark]) -> bytes:
    return orjson.dumps([[m.position, m.thread, m.highlight] for m in marks])


def _loaded(counted_to: int, marks: bytes | None) -> Tally:
    return Tally(counted_to, tuple(Mark(*m) for m in orjson.loads(marks or b"[]")), counted_to)
