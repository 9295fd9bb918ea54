"""The journal: what it covers, what it lets go of, and when it does not know."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest

from lmserver.rooms.sync import journal as journals
from lmserver.rooms.sync.journal import Journal
from lmserver.storage import stream
from lmserver.storage.room_log import StoredEvent
from lmserver.storage.stream import Change, NewEvent, Reading, UserChange


class Stream:
    """Readings the test sets; counts how often it is asked."""

    def __init__(self) -> None:
        self.settled, self.epoch, self.complete = 100, 0, True
        self.rows: list[Change] = []
        self.reads = 0

    async def changes(self, db: Any, since: int) -> Reading:
        self.reads += 1
        found: Sequence[Change] = [c for c in self.rows if since <= c.stream_xid < self.settled]
        reading = Reading(self.settled, self.settled, self.epoch, found, self.complete)
        await asyncio.sleep(0)
        return reading

    def add(self, *rows: Change) -> None:
        self.rows += rows
        self.settled = max(self.settled, *(row.stream_xid + 1 for row in rows))


def event(position: int, xid: int, *, room: str = "!r", type_: str = "t", key: str | None = None) -> NewEvent:
    stored = StoredEvent(room, f"${room}{position}", position, b"{}", None, None, 0, xid)
    return NewEvent(stored, type_, key, "@a:x")


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Stream:
    made = Stream()
    monkeypatch.setattr(stream, "changes", made.changes)
    return made


@pytest.fixture
async def journal(source: Stream) -> Journal:
    made: Any = Journal(None)  # type: ignore[arg-type]
    assert not made.covers(100)
    await made.advance()
    return made  # type: ignore[no-any-return]


def positions(journal: Journal, since: int, upto: int) -> list[int | None]:
    return [e.stored.position for e in journal.events("!r", since, upto)]


async def test_it_covers_what_it_has_read(journal: Journal, source: Stream) -> None:
    source.add(event(5, 100), event(6, 103), UserChange("account_data", "@a:x", "", 104))
    await journal.advance()
    assert [journal.covers(at) for at in (99, 100, 105, 106)] == [False, True, True, False]
    assert positions(journal, 100, 105) == [5, 6]
    assert positions(journal, 101, 105) == [6]
    assert positions(journal, 100, 103) == [5]
    assert journal.changed("account_data", "@a:x", 104) and not journal.changed("account_data", "@a:x", 105)
    assert not journal.changed("account_data", "@b:x", 0)


async def test_membership_changes_are_found_by_user(journal: Journal, source: Stream) -> None:
    source.add(event(5, 101, type_="m.room.member", key="@b:x"), UserChange("outside", "@c:x", "", 102))
    await journal.advance()
    assert journal.membership_changed("@b:x", 101) and not journal.membership_changed("@b:x", 102)
    assert journal.membership_changed("@c:x", 102) and not journal.membership_changed("@a:x", 0)


async def test_transactions_that_overtook_each_other_are_not_told_from_memory(
    journal: Journal, source: Stream
) -> None:
    """The later position was committed with the lower number: the database tells the window."""
    source.add(event(6, 101), event(5, 103))
    await journal.advance()
    assert positions(journal, 100, 104) == []
    assert positions(journal, 102, 104) == []
    assert journal.has_events("!r", 102)


async def test_what_is_let_go_of_is_not_covered(
    journal: Journal, source: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "MAX_CHANGES", 3)
    source.add(*(event(n, 100 + n) for n in range(5)), UserChange("devices", "@a:x", "", 105))
    await journal.advance()
    assert [journal.covers(at) for at in (102, 103)] == [False, True]
    assert positions(journal, 103, 106) == [3, 4]
    source.add(*(UserChange("inbox", "@a:x", "D", 106 + n) for n in range(3)))
    await journal.advance()
    assert not journal._events and not journal._devices


async def test_what_relates_to_an_event_is_known_as_long_as_it_is_here(
    journal: Journal, source: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "MAX_CHANGES", 3)
    for number, kind in enumerate(("m.replace", "m.thread", "m.annotation", "m.replace")):
        parent = "$b" if kind == "m.thread" else "$a"
        content = {"m.relates_to": {"rel_type": kind, "event_id": parent}}
        made = event(number, 100 + number)
        source.add(replace(made, stored=made.stored._replace(pdu=orjson.dumps({"content": content}))))
    source.add(event(9, 110, key=""))
    await journal.advance()
    assert [journal.is_related("!r", parent) for parent in ("$a", "$b", "$c")] == [True, False, False]
    assert not journal.is_related("!s", "$a")
    source.add(*(event(n, 100 + n) for n in range(20, 23)))
    await journal.advance()
    assert not journal.is_related("!r", "$a") and not journal._related


async def test_too_much_at_once_and_another_database_begin_anew(journal: Journal, source: Stream) -> None:
    forgotten = []
    journal.on_another_database(lambda: forgotten.append(1))
    source.add(event(5, 120))
    source.complete = False
    await journal.advance()
    assert journal.covers(121) and not journal.covers(120) and not forgotten
    source.complete, source.settled, source.rows = True, 90, []
    await journal.advance()
    assert journal.covers(90) and not journal.covers(121) and forgotten == [1]
    source.epoch = 7
    await journal.advance()
    assert journal.epoch == 7 and forgotten == [1, 1]


async def test_those_who_ask_together_read_together(journal: Journal, source: Stream) -> None:
    before = source.reads
    await asyncio.gather(*(journal.advance() for _ in range(50)))
    assert source.reads == before + 1
    first = asyncio.create_task(journal.advance())
    while source.reads == before + 1:
        await asyncio.sleep(0)
    source.add(event(5, 100))  # after the first reading began: whoever asks now needs another
    await asyncio.gather(first, journal.advance())
    assert positions(journal, 100, 101) == [5]
    assert source.reads == before + 3
