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

    @asynccontextmanager
    async def hold(self, key: object, at_once: int, waiting: int, seconds: float) -> AsyncIterator[None]:
        """One of `at_once` places, for as long as the block runs. Raises Busy at once when `waiting`
        others wait for one, and after `seconds` of waiting."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(asyncio.Semaphore(at_once))
        if line.users >= at_once + waiting:
            raise Busy
        line.users += 1
        try:
            try:
                async with asyncio.timeout(seconds):
                    await line.turns.acquire()
            except TimeoutError:
                raise Busy from None
            try:
                yield
            finally:
                line.turns.release()
        finally:
            line.users -= 1
            if not line.users:
                del self._lines[key]
