"""Who is online (CS API §Presence): in memory only, for those who share a room, where it is switched on.

It costs more than anything else here for the least: every change concerns everybody in every room of a
user. So it is off unless the operator wants it, and then nobody is ever anything but offline.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from lmserver.protocol import edus
from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.serial import Serial
from lmserver.storage import room_reads, room_state, server_keys
from lmserver.storage.database import Database, DatabaseUnavailable

STATES: Final = ("online", "unavailable", "offline")
MAX_STATUS: Final = 1_000
MAX_USERS: Final = 20_000
MAX_CHANGES: Final = 1_000
"""Changes one /sync looks through; older ones are not news."""
GONE_SECONDS: Final = 90.0
"""After its last /sync a user is offline: longer than the longest poll."""
ACTIVE_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Status:
    """`active_ts` is when the user was last active, milliseconds, 0 if never."""

    presence: str = "offline"
    status_msg: str | None = None
    active_ts: int = 0

    def content(self, now: int) -> JsonObject:
        content: JsonObject = {"presence": self.presence}
        if self.active_ts:
            content["last_active_ago"] = max(0, now - self.active_ts)
        if self.presence == "online":
            content["currently_active"] = now - self.active_ts < ACTIVE_MS
        return content | ({} if self.status_msg is None else {"status_msg": self.status_msg})


class Presence:
    """The statuses of local and remote users; `offer` sends an EDU to servers in reach."""

    def __init__(
        self,
        db: Database,
        our_name: str,
        nudge: Callable[[Iterable[str]], None],
        offer: Callable[[Iterable[str], str, bytes], None],
        serial: Serial,
        clock: Callable[[], int],
        *,
        enabled: bool,
    ) -> None:
        self.enabled = enabled
        self._db = db
        self._our_name = our_name
        self._nudge = nudge
        self._offer = offer
        self._serial = serial
        self._clock = clock
        self._users: OrderedDict[str, tuple[int, Status]] = OrderedDict()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- asking ---------------------------------------------------------------------------------

    async def of(self, asking: str, user_id: str) -> JsonObject | None:
        """What one user may know of another; None when they share no room."""
        if asking != user_id and not await room_reads.sharing_a_room(self._db, asking, [user_id]):
            return None
        return self._status(user_id).content(self._clock())

    async def changed(self, user_id: str, since: int | None) -> list[JsonObject]:
        """m.presence events for /sync: those that changed after a serial number."""
        after = 0 if since is None or since > self._serial.value else since
        recent: list[str] = []
        for other in reversed(self._users):
            if self._users[other][0] <= after or len(recent) >= MAX_CHANGES:
                break
            recent.append(other)
        if not recent:
            return []
        shown = await room_reads.sharing_a_room(self._db, user_id, recent) | {user_id}
        now = self._clock()
        return [
            {"type": "m.presence", "sender": other, "content": self._status(other).content(now)}
            for other in recent
            if other in shown and other in self._users
        ]

    def _status(self, user_id: str) -> Status:
        found = self._users.get(user_id)
        return Status() if found is None else found[1]

    # -- telling --------------------------------------------------------------------------------

    async def set(self, user_id: str, presence: str, status_msg: str | None) -> None:
        """A local user says so."""
        if self.enabled:
            await self._change(user_id, Status(presence, status_msg, self._clock()))

    async def syncing(self, user_id: str, presence: str) -> None:
        """A local user's client asks for news, as `presence`."""
        if not self.enabled or presence == "offline":
            return
        timer = self._timers.pop(user_id, None)
        if timer is not None:
            timer.cancel()
        if len(self._timers) < MAX_USERS:
            loop = asyncio.get_running_loop()
            self._timers[user_id] = loop.call_later(GONE_SECONDS, self._gone, user_id)
        old = self._status(user_id)
        if old.presence != presence:
            await self._change(user_id, replace(old, presence=presence, active_ts=self._clock()))

    def _gone(self, user_id: str) -> None:
        del self._timers[user_id]
        task = asyncio.create_task(self._change(user_id, replace(self._status(user_id), presence="offline")))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def changed_elsewhere(self, statuses: Sequence[tuple[str, Status]]) -> None:
        """Other servers' users; those in no room of ours are nobody's business here."""
        for user_id, status in statuses:
            rooms = await room_state.joined_rooms(self._db, user_id)
            if rooms:
                self._note(user_id, status, rooms)

    async def _change(self, user_id: str, status: Status) -> None:
        try:
            rooms = await room_state.joined_rooms(self._db, user_id)
            self._note(user_id, status, rooms)
            servers = await room_state.servers_of_rooms(self._db, rooms) - {self._our_name}
            targets = await server_keys.linearized(self._db, servers) if servers else []
        except DatabaseUnavailable:
            return  # nobody waits for this
        edu = edus.presence(user_id, status.content(self._clock()))
        self._offer(targets, f"presence {user_id}", edu)

    def _note(self, user_id: str, status: Status, rooms: Iterable[str]) -> None:
        self._users[user_id] = (self._serial.next(), status)
        self._users.move_to_end(user_id)
        if len(self._users) > MAX_USERS:
            self._users.popitem(last=False)
        self._nudge([user_id, *rooms])

    async def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
