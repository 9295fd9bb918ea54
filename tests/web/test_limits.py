"""Token buckets, and whose address a request counts under."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from lmserver.web import limits
from lmserver.web.addresses import TrustedProxies, rate_key
from lmserver.web.limits import Rate, RateLimiter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> RateLimiter:
    return RateLimiter({"a": Rate(2.0, 4), "b": Rate(1.0, 10)}, clock)


def test_a_burst_then_a_rate(limiter: RateLimiter, clock: Clock) -> None:
    assert [limiter.take("a", "x") for _ in range(5)] == [0.0, 0.0, 0.0, 0.0, 0.5]
    assert limiter.take("a", "y") == 0.0
    clock.now += 0.5
    assert limiter.take("a", "x") == 0.0
    assert limiter.take("a", "x") == 0.5
    clock.now += 3600
    assert [limiter.take("a", "x") for _ in range(5)].count(0.0) == 4


def test_refusals_cost_nothing(limiter: RateLimiter, clock: Clock) -> None:
    for _ in range(4):
        limiter.take("a", "x")
    for _ in range(100):
        assert limiter.take("a", "x") == 0.5
    clock.now += 0.5
    assert limiter.take("a", "x") == 0.0


def test_several_buckets_or_none(limiter: RateLimiter, clock: Clock) -> None:
    assert limiter.take_all([("a", "x", 3), ("b", "x", 3)]) == 0.0
    assert limiter.take_all([("a", "x", 3), ("b", "x", 3)]) == 1.0
    assert limiter.take("b", "x", 7) == 0.0
    assert limiter.take_all([]) == 0.0
    assert limiter.take_all([("unknown", "x", 10**9)]) == 0.0


def test_what_costs_more_than_a_bucket_holds_leaves_it_in_debt(limiter: RateLimiter, clock: Clock) -> None:
    """A transaction larger than the burst passes when nothing was spent, and is paid for afterwards."""
    assert limiter.take("a", "x", 10) == 0.0
    assert limiter.take("a", "x", 1) == 3.5
    clock.now += 3.5
    assert limiter.take("a", "x", 1) == 0.0


def test_memory_has_an_end(monkeypatch: pytest.MonkeyPatch, limiter: RateLimiter) -> None:
    monkeypatch.setattr(limits, "MAX_BUCKETS", 100)
    for number in range(1000):
        limiter.take("a", str(number))
    assert len(limiter._buckets) == 100


PROXIES = TrustedProxies([ip_network("10.0.0.0/8"), ip_network("::1/128")])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["203.0.113.9"], "192.0.2.1"),  # said by somebody we do not trust
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),  # the first was made up by the client
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9, 10.9.9.9"], "203.0.113.9"),  # through two proxies
        ("10.0.0.1", ["10.1.1.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, nonsense"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("::1", ["2001:db8::5"], "2001:db8::5"),
        ("::ffff:10.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("", ["203.0.113.9"], ""),
    ],
)
def test_the_last_untrusted_address_is_the_client(peer: str, forwarded: list[str], client: str) -> None:
    assert PROXIES.client_of(peer, forwarded) == client


def test_one_ipv6_host_is_one_network() -> None:
    assert rate_key("2001:db8:1:2:3::9") == rate_key("2001:db8:1:2:ffff::") == "2001:db8:1:2::/64"
    assert rate_key("2001:db8:1:3::") != rate_key("2001:db8:1:2::")
    assert rate_key("192.0.2.1") == rate_key("::ffff:192.0.2.1") == "192.0.2.1"
    assert rate_key("") == ""
