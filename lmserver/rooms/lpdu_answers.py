"""Who waits for what becomes of one of our LPDUs: first the hub's answer, then its place in our list.

The answer comes by the `send` response or by the echo, whichever is first (protocol decision "A
participant's own clients"); the place only by the echo.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lmserver.rooms.outcomes import Outcome


@dataclass(eq=False, slots=True)
class Waiter:
    """`answer` is what the hub says; `placed` is set when the event stands in our list."""

    answer: asyncio.Future[Outcome]
    placed: asyncio.Event = field(default_factory=asyncio.Event)


class LpduAnswers:
    """Waiters by LPDU ID; answers nobody waits for are in the database anyway."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[Waiter]] = {}

    @contextmanager
    def waiting(self, lpdu_id: str) -> Iterator[Waiter]:
        """A waiter for as long as the block runs."""
        waiter = Waiter(asyncio.get_running_loop().create_future())
        self._waiters.setdefault(lpdu_id, set()).add(waiter)
        try:
            yield waiter
        finally:
            waiters = self._waiters[lpdu_id]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[lpdu_id]

    def settle(self, lpdu_id: str, outcome: Outcome, *, placed: bool) -> None:
        """The hub has answered; `placed` when it did so by the echo."""
        for waiter in self._waiters.get(lpdu_id, ()):
            if not waiter.answer.done():
                waiter.answer.set_result(outcome)
            if placed:
                waiter.placed.set()
