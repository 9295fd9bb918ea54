"""Numbers for changes of what lives in memory only, such as typing and presence."""

from __future__ import annotations


class Serial:
    """One sequence for all of it: a /sync token carries the last number its client has seen."""

    def __init__(self) -> None:
        self.value = 0

    def next(self) -> int:
        self.value += 1
        return self.value
