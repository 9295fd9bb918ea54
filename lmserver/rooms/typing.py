"""Who is typing: kept in memory only, gone after its timeout or a restart.

Every change has a serial number; a /sync token carries the last one its client has seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from lmserver.rooms.serial import Serial

MAX_SECONDS = 120.0
MAX_TYPING = 10_000
"""(room, user) pairs at one time over all rooms; further ones are ignored."""
MAX_REMOTE_TYPING = MAX_TYPING // 2
"""Once there are so many, users of other servers are ignored: theirs are no reason to ignore ours."""

Wake = Callable[[Iterable[str]], None]
Announce = Callable[[str, str, bool], None]
"""Tells other servers of our own user's change: (room ID, user ID, typing)."""


class Typing:
    """Typing notifications of local and remote users."""

    def __init__(self, wake: Wake, announce: Announce | None = None, serial: Serial | None = None) -> None:
        self._wake = wake
        self._announce = announce
        self._serial = Serial() if serial is None else serial
        self._timers: dict[str, dict[str, asyncio.TimerHandle]] = {}
        self._changed: dict[str, int] = {}
        self._count = 0

    @property
    def serial(self) -> int:
        """The number of the newest change."""
        return self._serial.value

    def start(self, room_id: str, user_id: str, seconds: float, *, local: bool = True) -> None:
        """The user types for at most `seconds`; the caller has checked that they are joined."""
        users = self._timers.setdefault(room_id, {})
        old = users.pop(user_id, None)
        if old is not None:
            old.cancel()
        elif self._count >= (MAX_TYPING if local else MAX_REMOTE_TYPING):
            if not users:
                del self._timers[room_id]
            return
        else:
            self._count += 1
        delay = max(0.0, min(seconds, MAX_SECONDS))
        loop = asyncio.get_running_loop()
        users[user_id] = loop.call_later(delay, lambda: self.stop(room_id, user_id, local=local))
        if old is None:
            self._note(room_id)
        if local and self._announce is not None:
            self._announce(room_id, user_id, True)

    def stop(self, room_id: str, user_id: str, *, local: bool = True) -> None:
        """The user stopped, sent a message, left, or the time is up."""
        users = self._timers.get(room_id)
        timer = None if users is None else users.pop(user_id, None)
        if users is None or timer is None:
            return
        timer.cancel()
        self._count -= 1
        if not users:
            del self._timers[room_id]
        self._note(room_id)
        if local and self._announce is not None:
            self._announce(room_id, user_id, False)

    def users(self, room_id: str) -> list[str]:
        return sorted(self._timers.get(room_id, ()))

    def changed(self, room_ids: Iterable[str], since: int) -> list[str]:
        """Of these rooms the ones that changed after a serial number; a number we have not
        reached is from before a restart."""
        after = since if since <= self.serial else 0
        if after == self.serial:
            return []
        return [room_id for room_id in room_ids if self._changed.get(room_id, 0) > after]

    def _note(self, room_id: str) -> None:
        self._changed[room_id] = self._serial.next()
        if len(self._changed) > 2 * MAX_TYPING:
            # Old changes are forgotten; clients that slept through them see nobody typing anyway.
            keep = sorted(self._changed, key=self._changed.__getitem__)[MAX_TYPING:]
            self._changed = {room: self._changed[room] for room in keep}
        self._wake([room_id])

    def close(self) -> None:
        for users in self._timers.values():
            for timer in users.values():
                timer.cancel()
        self._timers.clear()
        self._count = 0
