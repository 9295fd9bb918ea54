"""Durable fan-out: every destination gets everything due to it, in order, whatever fails.

A wake-up is a hint that saves waiting. The work itself is found by reading, at start and every
few seconds, so a lost hint, a crash or another process's commit delays events and loses none.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final

import structlog

from lmserver.federation_client.destination_sender import Answers, DestinationSender, Requests
from lmserver.federation_client.latest_edus import LatestEdus
from lmserver.storage import destinations
from lmserver.storage.database import Database, DatabaseUnavailable
from lmserver.storage.destinations import LONGEST_PAUSE_MS

POLL_SECONDS: Final = 3.0
LINGER_SECONDS: Final = 0.5
MAX_ACTIVE: Final = 500
MAX_BACKING_OFF: Final = 100_000
STOP_SECONDS: Final = 10.0

log = structlog.get_logger(__name__)


class Sender:
    """Runs a DestinationSender for each destination with something due.

    `clock` is milliseconds since the epoch. Who waits for a place gets it after the transaction in flight,
    and destinations known to be slow never have more than half of the places: they would have all, were
    there enough of them (attack R12). One that fails keeps none until it is tried again.
    """

    def __init__(
        self,
        db: Database,
        client: Requests,
        on_lpdu_answers: Answers,
        clock: Callable[[], int],
        *,
        on_refused: Callable[[str], None] = lambda _: None,
        owner: str = "",
        max_active: int = MAX_ACTIVE,
        poll_seconds: float = POLL_SECONDS,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        self._db = db
        self._client = client
        self._answers = on_lpdu_answers
        self._on_refused = on_refused
        self._clock = clock
        self._max_active = max_active
        self._poll_seconds = poll_seconds
        self._linger_seconds = linger_seconds
        self._owner = owner or secrets.token_hex(8)
        self._latest = LatestEdus(clock)
        self._active: dict[str, DestinationSender] = {}
        self._slow: set[str] = set()
        self._waiting: dict[bool, dict[str, None]] = {False: {}, True: {}}
        self._retry_at: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._running = False

    async def start(self) -> None:
        """Raises DatabaseUnavailable. Leases that a killed run of the same owner left are void."""
        await destinations.release_leases(self._db, self._owner)
        self._retry_at = await destinations.backing_off(self._db, self._clock(), MAX_BACKING_OFF)
        self._running = True
        self._poller = asyncio.create_task(self._poll(), name="sender poll")

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Finish what is in flight within `seconds`, cancel the rest; leases are given back."""
        self._running = False
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller
        for waiting in self._waiting.values():
            waiting.clear()
        for active in self._active.values():
            active.stopping = True
            active.woken.set()
        tasks = set(self._tasks)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    # -- hints ----------------------------------------------------------------------------------

    def wake(self, names: Iterable[str]) -> None:
        """Something was committed for these destinations."""
        if not self._running:
            return
        for name in names:
            active = self._active.get(name)
            if active is not None:
                active.woken.set()
            elif self._may_try(name):
                self._admit(name)

    def peer_alive(self, origin: str) -> None:
        """A server has made an authenticated request: it is up, so do not wait any longer."""
        if self._running and self._retry_at.pop(origin, None) is not None:
            self._spawn(self._revive(origin))

    async def retry_now(self, name: str) -> None:
        """An operator wants a server to be tried, whatever came of it before."""
        self._retry_at.pop(name, None)
        await destinations.alive(self._db, name)
        self.wake([name])

    def in_reach(self, name: str) -> bool:
        """False for a server that failed and is not to be tried yet."""
        return self._retry_at.get(name, 0) <= self._clock()

    def offer(self, names: Iterable[str], key: str, edu: bytes) -> None:
        """An EDU that counts only now, for those of the destinations that are in reach; `key` tells
        what it replaces."""
        reached = [name for name in names if name in self._active or self._may_try(name)]
        self.wake([name for name in reached if self._running and self._latest.put(name, key, edu)])

    # -- running --------------------------------------------------------------------------------

    def _may_try(self, name: str) -> bool:
        retry_at = self._retry_at.get(name)
        if retry_at is None:
            return True
        if self._clock() < retry_at <= self._clock() + LONGEST_PAUSE_MS:
            return False
        del self._retry_at[name]
        return True

    def _admit(self, name: str) -> None:
        """Start sending, or wait for a place; what waits is found by reading anyway."""
        slow = name in self._slow
        if not self._has_place(slow):
            self._waiting[slow][name] = None
            return
        sender = DestinationSender(
            name,
            self._db,
            self._client,
            self._answers,
            self._clock,
            self._owner,
            self._linger_seconds,
            partial(self._latest.take, name),
            partial(self._give_way, name),
            self._on_refused,
        )
        self._active[name] = sender
        self._spawn(self._run(sender))

    async def _run(self, sender: DestinationSender) -> None:
        try:
            await sender.run()
        finally:
            del self._active[sender.destination]
            if sender.retry_at:
                self._latest.drop(sender.destination)
            if sender.retry_at and len(self._retry_at) < MAX_BACKING_OFF:
                self._retry_at[sender.destination] = sender.retry_at
            if self._running:
                self._fill()
                if sender.woken.is_set() and not sender.retry_at:
                    self.wake([sender.destination])

    def _fill(self) -> None:
        for slow, waiting in self._waiting.items():
            while waiting and self._has_place(slow):
                name = next(iter(waiting))
                del waiting[name]
                if name not in self._active and self._may_try(name):
                    self._admit(name)

    def _has_place(self, slow: bool) -> bool:
        if slow and self._slow_places_left() < 1:
            return False
        return len(self._active) < self._max_active

    def _slow_places_left(self) -> int:
        return max(1, self._max_active // 2) - sum(name in self._slow for name in self._active)

    def _give_way(self, name: str, slow: bool) -> bool:
        """Remember how `name` did; whether its place is wanted."""
        if not slow:
            self._slow.discard(name)
        elif len(self._slow) < MAX_BACKING_OFF:
            self._slow.add(name)
        return bool(self._waiting[False] or (slow and (self._waiting[True] or self._slow_places_left() < 0)))

    async def _revive(self, name: str) -> None:
        try:
            await destinations.alive(self._db, name)
        except DatabaseUnavailable:
            return  # its time comes anyway
        self.wake([name])

    async def _poll(self) -> None:
        while True:
            try:
                due = await destinations.with_work(self._db, self._clock(), 2 * self._max_active)
                for name in due:  # the database knows best: an operator may have changed it there
                    self._retry_at.pop(name, None)
                self.wake(due)
            except DatabaseUnavailable:
                log.warning("sender_poll_failed")
            except Exception as error:  # polling is what everything falls back on
                log.error("sender_poll_failed", exc_info=error)
            await asyncio.sleep(self._poll_seconds * self._jitter())

    @staticmethod
    def _jitter() -> float:
        return 0.75 + secrets.randbelow(500) / 1000

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
