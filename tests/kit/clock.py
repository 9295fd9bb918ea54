"""The time as a server sees it, when a test decides that."""

from __future__ import annotations

from lmserver.composition import clock_ms

SECOND = 1000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
YEAR = 365 * DAY


class Clock:
    """The real time, moved by `offset` ms."""

    def __init__(self) -> None:
        self.offset = 0

    def __call__(self) -> int:
        return clock_ms() + self.offset

    def pass_(self, ms: int) -> None:
        self.offset += ms
