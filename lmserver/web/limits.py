"""Rate limits: token buckets by name and key, in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
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

    def take(self, name: str, key: str) -> float:
        """Take a token: 0.0 if there was one, else the seconds until there is."""
        rate = self._rates.get(name)
        if rate is None:
            return 0.0
        now = self._clock()
        tokens, at = self._buckets.pop((name, key), (float(rate.burst), now))
        tokens = min(float(rate.burst), tokens + (now - at) * rate.per_second)
        wait = 0.0
        if tokens >= 1.0:
            tokens -= 1.0
        else:
            wait = (1.0 - tokens) / rate.per_second if rate.per_second > 0 else 3600.0
        self._buckets[name, key] = (tokens, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return wait
