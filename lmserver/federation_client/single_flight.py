"""One running task per key, shared by everybody who asks meanwhile.

A hundred events with unknown keys of one server must cause one fetch, and a waiter that gives up must not
take the others' answer with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs `work` once per key at a time."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[T]] = {}

    async def run(self, key: str, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the task already running for `key`, or of a new one; raises what it raises."""
        return await asyncio.shield(self.begin(key, work))

    def begin(self, key: str, work: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """The same without waiting: the task belongs to everybody who asks, and is not to be cancelled."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(self._run(work))
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        return task

    def __len__(self) -> int:
        """Tasks that run or wait for their turn."""
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel what is still running."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def _run(work: Callable[[], Awaitable[T]]) -> T:
        return await work()

    def _finished(self, key: str, task: asyncio.Task[T]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled():
            task.exception()  # mark as seen: every waiter may have been cancelled
