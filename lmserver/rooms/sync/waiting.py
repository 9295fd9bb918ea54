"""The wait of a long poll: looks at what is there until there is something to say.

A waiter is registered before it looks, so it cannot sleep through a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from lmserver.rooms.notifier import Notifier
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.sync.polls import Poll

MAX_WAIT_SECONDS: Final = 60.0


class Answer(Protocol):
    """What a look found, up to a settled stream position."""

    @property
    def has_news(self) -> bool: ...
    @property
    def settled(self) -> int: ...
    @property
    def joined_rooms(self) -> frozenset[str]: ...


A = TypeVar("A", bound=Answer)


class Waiting:
    """Waits for those who poll."""

    def __init__(self, journal: Journal, notifier: Notifier) -> None:
        self._journal = journal
        self._notifier = notifier

    async def for_news(
        self,
        poll: Poll,
        user_id: str,
        device_id: str,
        seconds: float,
        look: Callable[[int], Awaitable[A]],
        expecting: Callable[[], None] | None = None,
    ) -> A:
        """The first answer with news, else the last before `seconds` are over or the poll was ended.
        `look` is told the position below which everything is that has been committed; `expecting` is called
        when something has been that cannot be read yet."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(seconds, MAX_WAIT_SECONDS)
        rooms: frozenset[str] = frozenset()
        while True:
            with self._notifier.listen([user_id, f"{user_id}:{device_id}", *rooms]) as listener:
                poll.listener, listener.expecting = listener, expecting
                woken = rechecked = False
                while True:
                    # Whoever wakes us has read the journal on; a wait that ended by itself has not.
                    upcoming = self._journal.end if woken else (await self._journal.advance()).upcoming
                    answer = await look(upcoming)
                    left = deadline - loop.time()
                    if answer.has_news or left <= 0 or poll.ended or self._notifier.closed:
                        return answer
                    if rooms != answer.joined_rooms:
                        rooms = answer.joined_rooms
                        break
                    if not rechecked and answer.settled < upcoming:
                        self._notifier.recheck(listener, upcoming)
                    rechecked = True
                    woken = await listener.wait(left)
                    if poll.ended:
                        return answer
