"""One long poll per device, and only so many per user (attack R6).

A client that asks again has given up the answer it waited for; a user with more devices waiting than
anybody has lets the one go that waits longest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from lmserver.rooms.notifier import Listener

MAX_POLLS: Final = 32
"""Of one user: half of what one user may ask at a time, so that other requests are never kept waiting."""


@dataclass(eq=False, slots=True)
class Poll:
    """A request in progress; `ended` when it has to answer with what there is."""

    listener: Listener | None = None
    ended: bool = False

    def end(self) -> None:
        self.ended = True
        if self.listener is not None:
            self.listener.wake()


class Polls:
    """The requests that wait, by user and device; those of one user oldest first."""

    def __init__(self, most: int = MAX_POLLS) -> None:
        self._most = most
        self._users: dict[str, dict[str, Poll]] = {}

    @contextmanager
    def enter(self, user_id: str, device_id: str) -> Iterator[Poll]:
        """A poll for as long as the block runs."""
        polls = self._users.setdefault(user_id, {})
        older = polls.pop(device_id, None)
        if older is None and len(polls) >= self._most:
            older = polls.pop(next(iter(polls)))
        if older is not None:
            older.end()
        poll = polls[device_id] = Poll()
        try:
            yield poll
        finally:
            if polls.get(device_id) is poll:
                del polls[device_id]
            if not polls and self._users.get(user_id) is polls:
                del self._users[user_id]

    def __len__(self) -> int:
        return sum(len(polls) for polls in self._users.values())
