"""Waking whoever waits for news: one event per waiter, found by key.

Keys are room IDs, user IDs, "user:device" and, beside its room, a new alias. A wake-up is a hint,
never data: the waiter reads the database again. Reading stops below the oldest open transaction
(storage/stream.py), so a commit can be unreadable for a moment after it was published; one task holds
such wake-ups back until the settled position has passed them, instead of every waiter polling for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from lmserver.storage.database import DatabaseUnavailable

log = structlog.get_logger(__name__)

Positions = Callable[[], Awaitable[tuple[int, int]]]
"""Reads (settled, next): everything below `settled` is readable, every past commit is below `next`."""

Follower = Callable[[list[str]], None]

FIRST_RETRY_SECONDS = 0.001
LAST_RETRY_SECONDS = 0.05
MAX_HELD_SECONDS = 30.0


@dataclass(eq=False, slots=True)
class Listener:
    """One waiter. Registered before it reads, so nothing published since can be missed."""

    keys: frozenset[str]
    expecting: Callable[[], None] | None = None
    """Told that there is something that cannot be read yet: a wake-up follows."""
    _woken: bool = False
    _waiter: asyncio.Future[None] | None = None  # an Event takes twice the memory of all else here

    def wake(self) -> None:
        self._woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, seconds: float) -> bool:
        """Until woken or the time is up; says which. The next wait starts afresh."""
        if not self._woken:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self._waiter
            except TimeoutError:
                return False
            finally:
                self._waiter = None
        self._woken = False
        return True


@dataclass(slots=True)
class _Held:
    """A published commit that readers may not see yet; `xid` None until it is known."""

    keys: set[str]
    xid: int | None
    until: float
    listener: Listener | None = None


class Notifier:
    """Publishes changes to listeners once they can be read."""

    def __init__(self, positions: Positions) -> None:
        self._positions = positions
        self._listeners: dict[str, set[Listener]] = {}
        self._followers: list[Follower] = []
        self._held: list[_Held] = []
        self._settling: asyncio.Task[None] | None = None
        self.closed = False  # whoever waits answers what it has: the process ends

    @contextmanager
    def listen(self, keys: Iterable[str]) -> Iterator[Listener]:
        """A listener for as long as the block runs. Read inside the block, then wait."""
        listener = Listener(frozenset(keys))
        for key in listener.keys:
            self._listeners.setdefault(key, set()).add(listener)
        try:
            yield listener
        finally:
            self._forget(listener)

    def _forget(self, listener: Listener) -> None:
        for key in listener.keys:
            waiting = self._listeners[key]
            waiting.discard(listener)
            if not waiting:
                del self._listeners[key]

    def publish(self, keys: Iterable[str], xid: int | None = None) -> None:
        """Something for these keys has been committed, by transaction `xid` if known.

        Call it after COMMIT. Costs nothing when nobody listens to any of the keys.
        """
        keys = list(keys)
        for follow in self._followers:
            follow(keys)
        wanted = {key for key in keys if key in self._listeners}
        if not wanted:
            return
        for key in wanted:
            for listener in self._listeners[key]:
                if listener.expecting is not None:
                    listener.expecting()
        self._hold(wanted, xid, None)

    def recheck(self, listener: Listener, upcoming: int) -> None:
        """Wake one listener when everything below `upcoming` can be read.

        What was committed and published before it listened may not have been readable yet when
        it read; asked once after the first read, this closes that gap.
        """
        self._hold(set(), upcoming - 1, listener)

    def _hold(self, keys: set[str], xid: int | None, listener: Listener | None) -> None:
        until = asyncio.get_running_loop().time() + MAX_HELD_SECONDS
        self._held.append(_Held(keys, xid, until, listener))
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle(), name="notifier settle")

    def nudge(self, keys: Iterable[str]) -> None:
        """Wake at once: for what lives in memory only, such as typing."""
        keys = list(keys)
        for follow in self._followers:
            follow(keys)
        self._wake(keys)

    def follow(self, follower: Follower) -> None:
        """Tell somebody of all keys, as soon as they are published; what is then read has been committed,
        but a stream may not have come to it yet."""
        self._followers.append(follower)

    def _wake(self, keys: Iterable[str]) -> None:
        for key in keys:
            for listener in self._listeners.get(key, ()):
                listener.wake()

    async def _settle(self) -> None:
        """Release what is held as the settled position passes it."""
        retry = FIRST_RETRY_SECONDS
        try:
            while self._held:
                if await self._release():
                    retry = FIRST_RETRY_SECONDS
                if self._held:
                    await asyncio.sleep(retry)
                    retry = min(2 * retry, LAST_RETRY_SECONDS)
        finally:
            self._settling = None

    async def _release(self) -> bool:
        """One look at the positions; whether anything could be released."""
        held, self._held = self._held, []
        try:
            settled, upcoming = await self._positions()
        except DatabaseUnavailable as error:  # must not lose wake-ups
            log.warning("notifier_positions_unavailable", error=type(error).__name__)
            settled = upcoming = 0
        now = asyncio.get_running_loop().time()
        kept: list[_Held] = []
        for item in held:
            if item.xid is None and upcoming:
                item.xid = upcoming - 1
            if now >= item.until or (item.xid is not None and item.xid < settled):
                self._wake(item.keys)
                if item.listener is not None:
                    item.listener.wake()
            else:
                kept.append(item)
        self._held = kept + self._held
        return len(kept) < len(held)

    async def close(self) -> None:
        """Wake everybody, for the last time, and stop holding anything back."""
        self.closed = True
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)
        self._held.clear()
        self._wake(list(self._listeners))
