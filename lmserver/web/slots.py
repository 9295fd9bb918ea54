"""How much one key may do at once, and how many of its requests may wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


class Busy(Exception):
    """Too many wait already, or the turn did not come in time."""


@dataclass(slots=True)
class _Line:
    turns: asyncio.Semaphore
    users: int = field(default=0)


class Slots:
    """Lines by key. A line exists while somebody stands in it, so memory follows use."""

    def __init__(self) -> None:
        self._lines: dict[object, _Line] = {}

    async def take(self, key: object, at_once: int, waiting: int, seconds: float) -> Held:
        """One of `at_once` places, until it is released. Raises Busy at once when `waiting` others wait
        for one, and after `seconds` of waiting."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(asyncio.Semaphore(at_once))
        if line.users >= at_once + waiting:
            raise Busy
        line.users += 1
        try:
            if line.turns.locked():
                async with asyncio.timeout(seconds):
                    await line.turns.acquire()
            else:
                await line.turns.acquire()  # does not wait
        except BaseException as error:
            self._leave(key, line)
            if isinstance(error, TimeoutError):
                raise Busy from None
            raise
        return Held(self, key, line)

    @asynccontextmanager
    async def hold(self, key: object, at_once: int, waiting: int, seconds: float) -> AsyncIterator[None]:
        """A place for as long as the block runs."""
        held = await self.take(key, at_once, waiting, seconds)
        try:
            yield
        finally:
            held.release()

    def _leave(self, key: object, line: _Line) -> None:
        line.users -= 1
        if not line.users:
            del self._lines[key]


@dataclass(frozen=True, slots=True)
class Held:
    """A place in a line; to be released once."""

    _slots: Slots
    _key: object
    _line: _Line

    def release(self) -> None:
        self._line.turns.release()
        self._slots._leave(self._key, self._line)
