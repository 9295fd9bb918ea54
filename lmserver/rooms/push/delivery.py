"""Takes what is queued to the push gateways, one notification of a pusher after the other.

A gateway that fails is asked again after ever longer pauses; what is older than a day is no news any more.

When a user reads, their pushers are told the new number of unread rooms, without an event, if it is another
than they were told last. Such badges wait in memory: a restart loses them, and the next notification has
the number too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, Protocol

import orjson
import structlog

from lmserver.federation_client.push_gateway import GatewayFailed
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.background import repeat
from lmserver.rooms.push.contents import Contents
from lmserver.rooms.unread import Unread
from lmserver.storage import pushers, room_state
from lmserver.storage.database import Database, DatabaseUnavailable
from lmserver.storage.pushers import Pusher, PusherKey, Queued

log = structlog.get_logger(__name__)

FIRST_PAUSE_MS: Final = 5_000
MAX_PAUSE_MS: Final = 3_600_000
MAX_AGE_MS: Final = 24 * 3_600_000
POLL_SECONDS: Final = 5.0
GATHER_SECONDS: Final = 0.05
AT_ONCE: Final = 50
BADGE_SECONDS: Final = 2.0
"""Receipts of so long a time are told as one badge."""
MAX_TOLD: Final = 100_000
"""Pushers whose last number is remembered."""


class Gateways(Protocol):
    """The way out."""

    async def notify(self, url: str, notification: JsonObject) -> list[str]:
        """Push keys that are rejected; raises GatewayFailed."""
        ...


class Delivery:
    """One task for each pusher that has something to be told."""

    def __init__(
        self,
        db: Database,
        gateways: Gateways,
        contents: Contents,
        unread: Unread,
        catch_up: Callable[[], Awaitable[object]],
        clock: Callable[[], int],
    ) -> None:
        """`catch_up`: what is unread is counted with all that was committed before."""
        self._db = db
        self._gateways = gateways
        self._contents = contents
        self._unread = unread
        self._catch_up = catch_up
        self._clock = clock
        self._tasks: dict[PusherKey, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._again: set[PusherKey] = set()
        self._users: set[str] = set()
        self._woken = asyncio.Event()
        self._readers: set[str] = set()
        self._read = asyncio.Event()
        self._badges: set[PusherKey] = set()
        self._told: dict[PusherKey, int] = {}

    def has_read(self, user_id: str) -> None:
        """A user has read something: the number their pushers show may be another."""
        self._readers.add(user_id)
        self._read.set()

    def wake(self, users: Iterable[str]) -> None:
        """Something waits for these users' pushers."""
        self._users.update(users)
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled: what waited before we came, then whatever comes or is due again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(repeat("push delivery", POLL_SECONDS, self._serve_all))
            tasks.create_task(repeat("push wake-ups", GATHER_SECONDS, self._when_woken))
            tasks.create_task(repeat("push badges", GATHER_SECONDS, self._when_read))

    async def _serve_all(self) -> None:
        self._begin({*await pushers.waiting(self._db, self._clock()), *await self._due_badges()})

    async def _due_badges(self) -> set[PusherKey]:
        """Those whose gateways may be asked now; of pushers that are gone nothing is kept."""
        waiting = set(self._badges)
        known = await pushers.of_users(self._db, sorted({key.user_id for key in waiting})) if waiting else {}
        self._badges -= waiting - known.keys()
        return {key for key in waiting if key in known and known[key] <= self._clock()}

    async def _when_woken(self) -> None:
        await self._woken.wait()
        self._woken.clear()
        users, self._users = self._users, set()
        waiting = await pushers.waiting(self._db, self._clock(), sorted(users))
        self._begin({*waiting, *(key for key in self._badges if key.user_id in users)})

    async def _when_read(self) -> None:
        await self._read.wait()
        await asyncio.sleep(BADGE_SECONDS)
        self._read.clear()
        readers, self._readers = self._readers, set()
        keys = set(await pushers.of_users(self._db, sorted(readers)))
        if keys:
            await self._catch_up()
            self._badges.update(keys)
            self._begin(keys)

    def _begin(self, keys: Iterable[PusherKey]) -> None:
        for key in keys:
            if key in self._tasks:
                self._again.add(key)  # it may have looked already
            else:
                task = asyncio.create_task(self._serve(key), name="push")
                self._tasks[key] = task
                task.add_done_callback(partial(self._ended, key))

    def _ended(self, key: PusherKey, _: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        if key in self._again:
            self._again.discard(key)
            self.wake([key.user_id])

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, key: PusherKey) -> None:
        """Until nothing waits for this pusher or its gateway wants a pause."""
        try:
            while True:
                async with self._places:
                    if not await self._one(key):
                        return
        except DatabaseUnavailable:
            return  # the next round tries again
        except Exception as error:  # one notification must not end the others for ever
            log.error("push_failed", exc_info=error)

    async def _one(self, key: PusherKey) -> bool:
        """Whether to go on."""
        pusher = next((p for p in await pushers.of_user(self._db, key.user_id) if p.key == key), None)
        if pusher is None:
            await self._db.run(lambda db: pushers.remove(db, key))  # what waited for one that is gone
            self._badges.discard(key)
            return False
        if pusher.retry_at > self._clock():
            return False
        queued = await pushers.next_for(self._db, key)
        if queued is None:
            await self._badge(pusher)
            return False
        notification = await self._notification(pusher, queued)
        if notification is not None and not await self._tell(pusher, notification):
            return False
        await pushers.done(self._db, key, queued.seq)
        return True

    async def _badge(self, pusher: Pusher) -> None:
        """The number alone, if the user has read something and it is another than the pusher shows."""
        if pusher.key not in self._badges:
            return
        self._badges.discard(pusher.key)  # what is read from now on is another badge
        counts = {"unread": await self._unread_rooms(pusher.key.user_id)}
        if self._told.get(pusher.key) != counts["unread"]:
            body: JsonObject = {"counts": counts, "prio": "low", "devices": [_device(pusher)]}
            if not await self._tell(pusher, body):
                self._badges.add(pusher.key)

    async def _tell(self, pusher: Pusher, notification: JsonObject) -> bool:
        """Whether the gateway has taken it; one that fails gets a pause, and a key it rejects is no
        pusher any more."""
        try:
            rejected = await self._gateways.notify(pusher.url, notification)
        except GatewayFailed as error:
            await self._pause(pusher, str(error))
            return False
        if pusher.key.pushkey in rejected:
            await self._db.run(lambda db: pushers.remove(db, pusher.key))
            return False
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told[pusher.key] = notification["counts"]["unread"]
        if pusher.failures:
            await pushers.settle(self._db, pusher.key, 0, 0)
        return True

    async def _pause(self, pusher: Pusher, reason: str) -> None:
        pause = min(FIRST_PAUSE_MS << min(pusher.failures, 20), MAX_PAUSE_MS)
        log.info("push_gateway_failed", app_id=pusher.key.app_id, reason=reason, pause_ms=pause)
        await pushers.settle(self._db, pusher.key, pusher.failures + 1, self._clock() + pause)

    # -- what is told ---------------------------------------------------------------------------

    async def _notification(self, pusher: Pusher, queued: Queued) -> JsonObject | None:
        """The body (Push Gateway API); None for what is old, redacted, or no longer the user's to see."""
        if self._clock() - queued.created_ts > MAX_AGE_MS:
            return None
        told = await self._contents.of(pusher.key.user_id, queued)
        if told is None:
            return None
        tweaks = orjson.loads(queued.tweaks)
        device = _device(pusher)
        only_id = device["data"].get("format") == "event_id_only"
        return {
            "event_id": told.event_id,
            "room_id": queued.room_id,
            "counts": {"unread": await self._unread_rooms(pusher.key.user_id)},
            "prio": "high" if tweaks or told.type == "m.room.encrypted" else "low",
            "devices": [device if only_id else {**device, "tweaks": tweaks}],
            **({} if only_id else told.details),
        }

    async def _unread_rooms(self, user_id: str) -> int:
        """Rooms with something unread: the number on the application's icon."""
        rooms = await room_state.joined_rooms(self._db, user_id)
        counts: Any = await self._unread.of(user_id, rooms)
        return sum(c.whole.notifications > 0 for c in counts.values())


def _device(pusher: Pusher) -> JsonObject:
    data = orjson.loads(pusher.shown)["data"]
    return {
        "app_id": pusher.key.app_id,
        "pushkey": pusher.key.pushkey,
        "pushkey_ts": pusher.set_ts // 1000,
        "data": {name: value for name, value in data.items() if name != "url"},
    }
