"""EDUs that count only now, such as typing: the newest of each key, in memory, for servers in reach.

Nothing here is worth a row: what cannot be sent within moments is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MAX_AGE_MS: Final = 30_000
MAX_PER_DESTINATION: Final = 200
MAX_TOTAL: Final = 20_000


class LatestEdus:
    """By destination, in the order in which they were first put; `clock` is milliseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._waiting: dict[str, dict[str, tuple[int, bytes]]] = {}
        self._total = 0

    def put(self, destination: str, key: str, edu: bytes) -> bool:
        """False when there is no place for one more."""
        waiting = self._waiting.get(destination, {})
        if key not in waiting:
            if self._total >= MAX_TOTAL or len(waiting) >= MAX_PER_DESTINATION:
                return False
            self._total += 1
        self._waiting.setdefault(destination, waiting)[key] = (self._clock(), edu)
        return True

    def take(self, destination: str, count: int, size: int) -> list[bytes]:
        """Remove and return at most `count` of them with at most `size` bytes together."""
        waiting = self._waiting.get(destination, {})
        fresh = self._clock() - MAX_AGE_MS
        taken: list[bytes] = []
        for key, (at, edu) in list(waiting.items()):
            if at > fresh:
                size -= len(edu) + 1
                if size < 0 or len(taken) >= count:
                    break
                taken.append(edu)
            del waiting[key]
            self._total -= 1
        if not waiting:
            self._waiting.pop(destination, None)
        return taken

    def drop(self, destination: str) -> None:
        """The destination cannot be reached."""
        self._total -= len(self._waiting.pop(destination, {}))
