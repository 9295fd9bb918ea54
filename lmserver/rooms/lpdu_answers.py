"""Who waits for the hub's answer to one of our LPDUs: the `send` response or the echo, whichever
comes first (protocol decision "A participant's own clients")."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from lmserver.rooms.outcomes import Outcome


class LpduAnswers:
    """Futures by LPDU ID; answers nobody waits for are in the database anyway."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Future[Outcome]]] = {}

    @contextmanager
    def waiting(self, lpdu_id: str) -> Iterator[asyncio.Future[Outcome]]:
        """A future for the answer, for as long as the block runs."""
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(lpdu_id, set()).add(waiter)
        try:
            yield waiter
        finally:
            waiters = self._waiters[lpdu_id]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[lpdu_id]

    def settle(self, lpdu_id: str, outcome: Outcome) -> None:
        """The hub has answered."""
        for waiter in self._waiters.get(lpdu_id, ()):
            if not waiter.done():
                waiter.set_result(outcome)
