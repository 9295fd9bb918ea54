"""C6, C7: every way of reading a room, under every history visibility, at every point of a reader's life.

Nothing comes through that the oracle does not allow, and what it allows is there to be read.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

import pytest

from lmserver.rooms import access
from lmserver.rooms.visible_ranges import EVERYTHING, NOTHING
from lmserver.storage.database import Database
from tests.kit.client_api import NAME
from tests.visibility.plot import REGIMES, Plot
from tests.visibility.reading import everything, leaks, omissions


@pytest.mark.parametrize("regime", list(REGIMES))
async def test_c6_nothing_hidden_is_shown_and_nothing_open_is_missing(
    db: Database, tmp_path: Path, regime: str
) -> None:
    plot = await Plot.play(db, tmp_path, regime)
    try:
        answers = await asyncio.gather(*(everything(plot, life) for life in plot.readers))
        wrong = []
        for life, shown in zip(plot.readers, answers, strict=True):
            oracle = plot.oracle(life)
            wrong += [f"{life} sees {leak}" for leak in leaks(shown, oracle)]
            wrong += [f"{life} misses {gap}" for gap in omissions(shown, oracle)]
        assert not wrong, "\n".join(wrong)
    finally:
        await plot.close()


async def test_c6_a_stranger_cannot_tell_whether_there_is_such_a_room(db: Database, tmp_path: Path) -> None:
    plot = await Plot.play(db, tmp_path, "shared")
    try:
        hidden = await everything(plot, "never")
        plot.room_id = f"!none:{NAME}"
        missing = await everything(plot, "never")
        of_rooms = [name for name in hidden if not name.startswith(("sync", "sliding"))]
        assert len(of_rooms) > 30
        assert [name for name in of_rooms if hidden[name] != missing[name]] == []
    finally:
        await plot.close()


async def test_c7_redacted_content_is_gone_wherever_it_is_read(db: Database, tmp_path: Path) -> None:
    """Messages, what relates to them, topics and names, for who is there and for who has left."""
    plot = await Plot.play(db, tmp_path, "shared")
    try:
        there = await everything(plot, "there")
        assert {"said0x", "edit1x", "reply1x"} <= there["messages b"].said and there["threads"].said
        for number, entry in enumerate(plot.marked()):
            path = f"/rooms/{quote(plot.room_id)}/redact/{quote(entry.event_id)}/r{number}"
            await plot.alice.ok("PUT", path, {})
        await plot.alice.settle()
        for life in ("there", "late", "left", "banned"):
            shown = await everything(plot, life)
            found = {name: a.said | a.set_ for name, a in shown.items() if a.said | a.set_}
            assert not found, life
    finally:
        await plot.close()


async def test_the_suite_notices_a_way_of_reading_that_leaks(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: every event counts as seen, as if the ranges of what may be seen were never asked."""
    plot = await Plot.play(db, tmp_path, "joined")
    try:
        monkeypatch.setattr(access, "visible_to_user", lambda memberships, visibilities: EVERYTHING)
        late, banned = await everything(plot, "late"), await everything(plot, "banned")
        found = "\n".join(leaks(late, plot.oracle("late")) + leaks(banned, plot.oracle("banned")))
        ways = [
            "messages b",
            "messages f",
            "event",
            "context",
            "relations",
            "threads",
            "last of all time",
            "search",
        ]
        assert [way for way in ways if f"{way} " not in found and f"{way}:" not in found] == []
        monkeypatch.setattr(access, "visible_to_user", lambda memberships, visibilities: NOTHING)
        assert omissions(await everything(plot, "there"), plot.oracle("there"))
    finally:
        await plot.close()
