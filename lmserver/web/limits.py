"""Rate limits: token buckets by name and key, in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MAX_BUCKETS = 100_000


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_second` tokens come back, up to `burst`."""

    per_second: float
    burst: int


class RateLimiter:
    """Buckets by (limit name, key); names without a rate are not limited."""

    def __init__(self, rates: Mapping[str, Rate], clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def take(self, name: str, key: str, cost: int = 1) -> float:
        """Take `cost` tokens: 0.0 if they were there, else the seconds until they are."""
        return self.take_all([(name, key, cost)])

    def take_all(self, wanted: Sequence[tuple[str, str, int]]) -> float:
        """Take tokens of several buckets, or of none: 0.0, else the seconds until all could be.

        What costs more than a bucket holds waits for a full one and leaves it in debt.
        """
        wait = max((self.wait(name, key, cost) for name, key, cost in wanted), default=0.0)
        if wait <= 0.0:
            for name, key, cost in wanted:
                self.spend(name, key, cost)
        return wait

    def wait(self, name: str, key: str, cost: int = 1) -> float:
        """The seconds until `cost` tokens are there; takes none."""
        rate = self._rates.get(name)
        if rate is None:
            return 0.0
        missing = min(cost, rate.burst) - self._tokens(rate, name, key)
        return max(0.0, missing / rate.per_second)

    def spend(self, name: str, key: str, cost: int) -> None:
        """Take `cost` tokens whether they are there or not: what is owed is waited for."""
        rate = self._rates.get(name)
        if rate is None:
            return
        self._buckets[name, key] = (self._tokens(rate, name, key) - cost, self._clock())
        self._buckets.move_to_end((name, key))
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)

    def _tokens(self, rate: Rate, name: str, key: str) -> float:
        now = self._clock()
        tokens, at = self._buckets.get((name, key), (float(rate.burst), now))
        return min(float(rate.burst), tokens + (now - at) * rate.per_second)
