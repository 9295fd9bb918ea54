"""The notifier: nothing is lost between reading and waiting, nothing is told too early."""

from __future__ import annotations

import asyncio

from lmserver.rooms.notifier import Notifier
from lmserver.storage.database import DatabaseUnavailable
from tests.kit.waiting import HANGS


class Stream:
    """A stream position the test moves."""

    def __init__(self, settled: int = 100) -> None:
        self.settled = settled
        self.next = settled
        self.reads = 0
        self.down = False

    async def __call__(self) -> tuple[int, int]:
        self.reads += 1
        if self.down:
            raise DatabaseUnavailable("away")
        return self.settled, self.next


async def test_a_publish_between_listening_and_waiting_is_not_lost() -> None:
    notifier = Notifier(Stream())
    with notifier.listen(["!a"]) as listener:
        notifier.publish(["!a"], 99)
        await asyncio.sleep(0.01)
        assert await listener.wait(HANGS)
        assert not await listener.wait(0.01)


async def test_only_listeners_of_the_key_are_woken() -> None:
    notifier = Notifier(Stream())
    with notifier.listen(["!a", "@u"]) as one, notifier.listen(["!b"]) as other:
        notifier.publish(["!a"], 1)
        assert await one.wait(HANGS)
        assert not await other.wait(0.02)


async def test_a_commit_is_told_only_when_it_can_be_read() -> None:
    stream = Stream(settled=100)
    notifier = Notifier(stream)
    with notifier.listen(["!a"]) as listener:
        notifier.publish(["!a"], 105)
        assert not await listener.wait(0.03)
        stream.settled = 106
        assert await listener.wait(HANGS)


async def test_a_commit_of_unknown_number_waits_for_all_before_it() -> None:
    stream = Stream(settled=100)
    stream.next = 110
    notifier = Notifier(stream)
    with notifier.listen(["!a"]) as listener:
        notifier.publish(["!a"])
        assert not await listener.wait(0.03)
        stream.settled = 110
        assert await listener.wait(HANGS)


async def test_one_reader_of_positions_for_many_publishes() -> None:
    stream = Stream(settled=100)
    notifier = Notifier(stream)
    with notifier.listen(["!a"]) as listener:
        for _ in range(200):
            notifier.publish(["!a"], 50)
        assert await listener.wait(HANGS)
    assert stream.reads <= 3


async def test_nobody_listening_costs_nothing() -> None:
    stream = Stream()
    notifier = Notifier(stream)
    notifier.publish(["!a"], 1)
    await asyncio.sleep(0.01)
    assert stream.reads == 0
    with notifier.listen(["!a"]):
        pass
    assert not notifier._listeners


async def test_a_database_that_is_away_delays_and_loses_nothing() -> None:
    stream = Stream()
    stream.down = True
    notifier = Notifier(stream)
    with notifier.listen(["!a"]) as listener:
        notifier.publish(["!a"], 1)
        assert not await listener.wait(0.02)
        stream.down = False
        assert await listener.wait(HANGS)


async def test_memory_only_changes_wake_at_once() -> None:
    stream = Stream()
    notifier = Notifier(stream)
    with notifier.listen(["!a"]) as listener:
        notifier.nudge(["!a"])
        assert await listener.wait(0)
    assert stream.reads == 0


async def test_close_wakes_everybody() -> None:
    notifier = Notifier(Stream(settled=1))
    with notifier.listen(["!a"]) as listener:
        notifier.publish(["!a"], 50)
        await notifier.close()
        assert await listener.wait(0.1)
