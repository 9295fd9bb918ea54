"""Resolving server names (D04 §Resolving Server Names; attacks F1 to F5, F7, F8)."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

import pytest
from aiohttp import web

from lmserver.federation_client import resolver as resolver_module
from lmserver.federation_client import well_known
from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.connector import Address, PinnedHttp, Target
from lmserver.federation_client.dns_lookup import SrvRecord
from lmserver.federation_client.errors import AddressesRefused, NameNotFound, Unreachable
from lmserver.federation_client.resolver import Resolver
from tests.federation_client.fakes import LOOPBACK, Clock, FakeDns, Loopback
from tests.kit.waiting import HANGS

PUBLIC = "93.184.215.14"
OTHER = "2606:4700::1111"


class WellKnownHost:
    """One /.well-known server; `answer` is a body, a status or a response made by the test."""

    def __init__(self) -> None:
        self.hits: list[tuple[str, str]] = []
        self.status = 200
        self.body = b'{"m.server": "real.test"}'
        self.headers: dict[str, str] = {}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.hits.append((request.headers["Host"], request.path_qs))
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@pytest.fixture
def host() -> WellKnownHost:
    return WellKnownHost()


@pytest.fixture
async def port(loopback: Loopback, host: WellKnownHost) -> int:
    return await loopback.serve(host, "a.test", "b.test")


def resolver(
    dns: FakeDns, http: PinnedHttp, clock: Clock, port: int = 1, guard: AddressGuard = LOOPBACK
) -> Resolver:
    return Resolver(dns, guard, http, clock=clock, wall=clock, well_known_port=port)


@pytest.fixture
def found(dns: FakeDns, loopback: Loopback, clock: Clock, port: int) -> Resolver:
    dns.hosts["a.test"] = ["127.0.0.1"]
    dns.hosts["real.test"] = [PUBLIC]
    return resolver(dns, loopback.http(), clock, port)


async def test_explicit_port_asks_no_well_known(found: Resolver, dns: FakeDns, host: WellKnownHost) -> None:
    target = await found.resolve("real.test:1234")
    assert target == Target("real.test:1234", "real.test", (Address(PUBLIC, 1234),))
    assert dns.asked == ["real.test"]
    assert not host.hits


async def test_delegation_with_port(found: Resolver, host: WellKnownHost) -> None:
    host.body = b'{"m.server": "real.test:4433"}'
    assert await found.resolve("a.test") == Target("real.test:4433", "real.test", (Address(PUBLIC, 4433),))


async def test_delegation_with_srv(found: Resolver, dns: FakeDns) -> None:
    dns.services["_matrix._tcp.real.test"] = [SrvRecord(1, 1, 999, "box.test")]
    dns.hosts["box.test"] = [OTHER]
    assert await found.resolve("a.test") == Target("real.test", "real.test", (Address(OTHER, 999),))


async def test_delegation_without_srv(found: Resolver, host: WellKnownHost, port: int) -> None:
    assert await found.resolve("a.test") == Target("real.test", "real.test", (Address(PUBLIC, 8448),))
    assert host.hits == [(f"a.test:{port}", "/.well-known/matrix/server")]


async def test_no_delegation_but_srv(found: Resolver, host: WellKnownHost, dns: FakeDns) -> None:
    host.status = 404
    dns.services["_matrix._tcp.a.test"] = [SrvRecord(20, 0, 1, "far.test"), SrvRecord(10, 0, 2, "near.test")]
    dns.hosts |= {"far.test": [PUBLIC], "near.test": [OTHER]}
    target = await found.resolve("a.test")
    assert target == Target("a.test", "a.test", (Address(OTHER, 2),), ((Address(PUBLIC, 1),),))


async def test_srv_targets_of_one_priority_are_tried_together(
    found: Resolver, host: WellKnownHost, dns: FakeDns
) -> None:
    host.status = 404
    dns.services["_matrix._tcp.a.test"] = [SrvRecord(1, 5, 1, "far.test"), SrvRecord(1, 5, 2, "near.test")]
    dns.hosts |= {"far.test": [PUBLIC], "near.test": [OTHER]}
    target = await found.resolve("a.test")
    assert sorted(target.addresses) == [Address(OTHER, 2), Address(PUBLIC, 1)]
    assert target.backups == ()


async def test_srv_weights_share_the_load(found: Resolver, host: WellKnownHost, dns: FakeDns) -> None:
    host.status = 404
    dns.services["_matrix._tcp.a.test"] = [SrvRecord(1, 90, 1, "big.test"), SrvRecord(1, 10, 1, "small.test")]
    dns.hosts |= {"big.test": [PUBLIC], "small.test": [OTHER]}
    first = []
    for _ in range(300):
        found.forget("a.test")
        first.append((await found.resolve("a.test")).addresses[0].ip)
    assert 220 < first.count(PUBLIC) < 300


@pytest.mark.parametrize(
    "record",
    [
        SrvRecord(0, 0, 25, "real.test"),
        SrvRecord(0, 0, 0, "real.test"),
        SrvRecord(0, 0, 8448, "inside.test"),
        SrvRecord(0, 0, 8448, "127.0.0.1"),
        SrvRecord(0, 0, 8448, "2130706433"),
        SrvRecord(0, 0, 8448, "localhost"),
    ],
)
async def test_f8_srv_leads_to_no_private_address_and_no_port_of_another_protocol(
    loopback: Loopback, dns: FakeDns, clock: Clock, record: SrvRecord
) -> None:
    dns.services["_matrix._tcp.a.test"] = [record]
    dns.hosts |= {"real.test": [PUBLIC], "inside.test": ["10.0.0.1"], "localhost": ["127.0.0.1", "::1"]}
    guarded = resolver(dns, loopback.http(AddressGuard()), clock, guard=AddressGuard())
    with pytest.raises(Unreachable):
        await guarded.resolve("a.test")
    dns.services["_matrix._tcp.a.test"].append(SrvRecord(1, 0, 8448, "real.test"))
    clock.now += 61
    target = await guarded.resolve("a.test")
    assert (target.addresses, target.backups) == ((Address(PUBLIC, 8448),), ())


async def test_nothing_but_addresses(dns: FakeDns, loopback: Loopback, clock: Clock) -> None:
    dns.hosts["b.test"] = [PUBLIC]
    offline = resolver(dns, loopback.http(AddressGuard()), clock, 0)  # the guard refuses port 0
    assert await offline.resolve("b.test") == Target("b.test", "b.test", (Address(PUBLIC, 8448),))


async def test_srv_that_refuses_service(found: Resolver, host: WellKnownHost, dns: FakeDns) -> None:
    host.status = 404
    dns.services["_matrix._tcp.a.test"] = [SrvRecord(0, 0, 0, "")]
    with pytest.raises(NameNotFound):
        await found.resolve("a.test")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"not json",
        b'{"m.server": 5}',
        b'{"m.server": ""}',
        b'{"m.server": "a b"}',
        b'{"m.server": "h/../x"}',
        b'{"m.server": "user@h"}',
        b'{"m.server": "127.0.0.1:8448"}',
        b'{"m.server": "[::1]:8448"}',
        b'{"m.server": "2130706433"}',
        b'{"m.server": "x\\r\\nHost: y"}',
        b'{"m.server": "https://real.test"}',
        b'{"m.server": "real.test", "m.server": "real.test"}',
        b"[" * 5000,
        b'{"m.server": "real.test", "x": "' + b"x" * 50 * 1024 + b'"}',
    ],
)
async def test_f7_bad_delegation_is_no_delegation(found: Resolver, host: WellKnownHost, body: bytes) -> None:
    host.body = body
    assert await found.resolve("a.test") == Target("a.test", "a.test", (Address("127.0.0.1", 8448),))


async def test_f8_delegation_to_a_port_of_another_protocol(found: Resolver, host: WellKnownHost) -> None:
    host.body = b'{"m.server": "real.test:22"}'
    with pytest.raises(Unreachable):
        await found.resolve("a.test")


async def test_redirects_are_followed_hop_by_hop(
    loopback: Loopback, found: Resolver, host: WellKnownHost, dns: FakeDns
) -> None:
    async def moved(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b'{"m.server": "real.test:5"}')

    other = await loopback.serve(moved, "b.test")
    dns.hosts["b.test"] = ["127.0.0.1"]
    host.status, host.headers = 302, {"Location": f"https://b.test:{other}/elsewhere?x=1"}
    assert (await found.resolve("a.test")).host_header == "real.test:5"


async def test_f5_redirect_loop_ends(found: Resolver, host: WellKnownHost) -> None:
    host.status, host.headers = 307, {"Location": "?again"}
    assert (await found.resolve("a.test")).host_header == "a.test"
    assert len(host.hits) == 6


@pytest.mark.parametrize(
    "location",
    [
        "http://b.test/",
        "file:///etc/passwd",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://2130706433/",
        "https://user:pw@b.test/",
        "https://b.test:22/",
        "https://b.test:99999/",
        "https://b.test/\u00e9",
        "//",
        "https://" + "b" * 3000 + ".test/",
    ],
)
async def test_f5_redirects_that_are_not_followed(
    found: Resolver, host: WellKnownHost, dns: FakeDns, location: str
) -> None:
    dns.hosts["b.test"] = ["127.0.0.1"]
    host.status, host.headers = 302, {"Location": location}
    assert (await found.resolve("a.test")).host_header == "a.test"
    assert "b.test" not in dns.asked


async def test_f5_redirect_to_a_private_address_does_not_connect(
    loopback: Loopback, dns: FakeDns, clock: Clock
) -> None:
    hits: list[str] = []

    async def inside(request: web.BaseRequest) -> web.StreamResponse:
        hits.append(request.path_qs)
        return web.Response(body=b'{"m.server": "real.test"}')

    port = await loopback.serve(inside, "a.test")
    dns.hosts["a.test"] = ["127.0.0.1"]
    guarded = resolver(dns, loopback.http(AddressGuard()), clock, port)
    assert (await guarded.resolve("a.test")).host_header == "a.test"  # refused, so no delegation
    assert not hits


@pytest.mark.parametrize(
    "name",
    ["127.1", "0x7f.1", "2130706433", "①②⑦.⓪.⓪.①", "[::1]:80", "127.0.0.1:80", "localhost.", "a b", ""],
)
async def test_f4_odd_names_are_not_looked_up(found: Resolver, dns: FakeDns, name: str) -> None:
    with pytest.raises(Unreachable):
        await found.resolve(name)
    assert not dns.asked


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "2002:7f00:1::"]
)
async def test_f1_private_addresses_are_refused(
    loopback: Loopback, dns: FakeDns, clock: Clock, address: str
) -> None:
    dns.hosts["evil.test"] = [address]
    dns.services["_matrix._tcp.srv.test"] = [SrvRecord(0, 0, 8448, "evil.test")]
    guarded = resolver(dns, loopback.http(AddressGuard()), clock, guard=AddressGuard())
    for name in ("evil.test:8448", "evil.test", "srv.test"):
        with pytest.raises(AddressesRefused):
            await guarded.resolve(name)


async def test_f3_a_name_that_turns_private_is_refused(
    loopback: Loopback, dns: FakeDns, clock: Clock
) -> None:
    guarded = resolver(dns, loopback.http(AddressGuard()), clock, guard=AddressGuard())
    dns.hosts["evil.test"] = [PUBLIC]
    await guarded.resolve("evil.test:8448")
    dns.hosts["evil.test"] = ["169.254.169.254"]
    clock.now += 61
    with pytest.raises(AddressesRefused):
        await guarded.resolve("evil.test:8448")


async def test_f5_each_hop_is_guarded(loopback: Loopback, dns: FakeDns, clock: Clock) -> None:
    """The first host may be asked, the one it redirects to may not."""
    inside = WellKnownHost()
    hidden = await loopback.serve(inside, "b.test")

    async def moved(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": f"https://b.test:{hidden}/"})

    port = await loopback.serve(moved, "a.test")
    dns.hosts |= {"a.test": ["127.0.0.1"], "b.test": ["127.0.0.2"]}
    guard = AddressGuard([ip_network("127.0.0.1/32")])
    guarded = resolver(dns, loopback.http(guard), clock, port, guard)
    assert (await guarded.resolve("a.test")).host_header == "a.test"
    assert "b.test" in dns.asked and not inside.hits
    open_guard = resolver(dns, loopback.http(), clock, port)
    dns.hosts |= {"b.test": ["127.0.0.1"], "real.test": [PUBLIC]}
    assert (await open_guard.resolve("a.test")).host_header == "real.test"  # the redirect itself is good


async def test_f9_delegation_needs_a_valid_certificate(
    loopback: Loopback, dns: FakeDns, clock: Clock, host: WellKnownHost
) -> None:
    port = await loopback.serve(host, "other.test")
    dns.hosts["a.test"] = ["127.0.0.1"]
    assert (await resolver(dns, loopback.http(), clock, port).resolve("a.test")).host_header == "a.test"
    assert not host.hits


async def test_f10_a_document_of_fifty_kilobytes_is_read_and_no_more(
    found: Resolver, host: WellKnownHost, clock: Clock
) -> None:
    start, end = b'{"m.server": "real.test:99", "x": "', b'"}'
    host.body = start + b"x" * (50 * 1024 - len(start) - len(end)) + end
    assert (await found.resolve("a.test")).host_header == "real.test:99"
    host.body = start + b"x" * (50 * 1024 - len(start) - len(end) + 1) + end
    clock.now += 48 * 3600 + 1
    assert (await found.resolve("a.test")).host_header == "a.test"


async def test_f10_a_silent_host_delegates_nothing(
    loopback: Loopback, dns: FakeDns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drip(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    monkeypatch.setattr(well_known, "DEADLINE", 0.3)
    port = await loopback.serve(drip, "a.test")
    dns.hosts["a.test"] = ["127.0.0.1"]
    async with asyncio.timeout(HANGS):
        assert (await resolver(dns, loopback.http(), clock, port).resolve("a.test")).host_header == "a.test"


async def test_f1_private_addresses_are_dropped_from_a_mixed_answer(
    loopback: Loopback, dns: FakeDns, clock: Clock
) -> None:
    dns.hosts["mixed.test"] = ["10.0.0.1", PUBLIC]
    guarded = resolver(dns, loopback.http(AddressGuard()), clock, guard=AddressGuard())
    assert (await guarded.resolve("mixed.test:1000")).addresses == (Address(PUBLIC, 1000),)


async def test_addresses_are_kept_for_their_time(found: Resolver, dns: FakeDns, clock: Clock) -> None:
    first = await found.resolve("real.test:1234")
    dns.hosts["real.test"] = [OTHER]
    assert await found.resolve("real.test:1234") == first
    clock.now += 61
    assert (await found.resolve("real.test:1234")).addresses == (Address(OTHER, 1234),)


async def test_forget_asks_again(found: Resolver, dns: FakeDns) -> None:
    await found.resolve("real.test:1234")
    dns.hosts["real.test"] = [OTHER]
    found.forget("real.test:1234")
    assert (await found.resolve("real.test:1234")).addresses == (Address(OTHER, 1234),)


async def test_failing_names_are_left_alone_ever_longer_up_to_a_minute(
    found: Resolver, dns: FakeDns, clock: Clock
) -> None:
    for pause in (5, 10, 20, 40, 60, 60):
        with pytest.raises(Unreachable):
            await found.resolve("none.test:1")
        asked = len(dns.asked)
        clock.now += pause - 1
        with pytest.raises(Unreachable):
            await found.resolve("none.test:1")
        assert len(dns.asked) == asked
        clock.now += 1
    dns.hosts["none.test"] = [PUBLIC]
    assert (await found.resolve("none.test:1")).addresses == (Address(PUBLIC, 1),)


async def test_a_known_server_waits_for_no_slow_name_server(
    found: Resolver, dns: FakeDns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "PATIENCE", 0.05)
    first = await found.resolve("real.test:1234")
    dns.hosts["real.test"] = [OTHER]
    dns.slow = asyncio.Event()
    clock.now += 61
    assert await found.resolve("real.test:1234") == first
    dns.slow.set()
    async with asyncio.timeout(HANGS):
        while await found.resolve("real.test:1234") == first:
            await asyncio.sleep(0)
    with pytest.raises(Unreachable):
        await found.resolve("unknown.test:1")


async def test_broken_dns_leaves_the_last_answer(found: Resolver, dns: FakeDns, clock: Clock) -> None:
    first = await found.resolve("real.test:1234")
    dns.broken = True
    clock.now += 3600
    assert await found.resolve("real.test:1234") == first
    asked = len(dns.asked)
    found.forget("real.test:1234")
    assert await found.resolve("real.test:1234") == first
    assert len(dns.asked) == asked
    clock.now += 25 * 3600
    with pytest.raises(Unreachable):
        await found.resolve("real.test:1234")


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ({}, 24 * 3600),
        ({"Cache-Control": "public, max-age=7200"}, 7200),
        ({"Cache-Control": "max-age=99999999"}, 48 * 3600),
        ({"Cache-Control": "s-max-age=1, no-store"}, 300),
        ({"Cache-Control": "max-age=0"}, 300),
        ({"Expires": "Wed, 15 Nov 2023 00:13:20 GMT"}, 7200),
        ({"Expires": "never"}, 300),
    ],
)
async def test_delegation_is_kept_as_told(
    found: Resolver, host: WellKnownHost, clock: Clock, headers: dict[str, str], kept: int
) -> None:
    host.headers = headers
    await found.resolve("a.test")
    clock.now += kept - 1
    await found.resolve("a.test")
    assert len(host.hits) == 1
    clock.now += 3601
    await found.resolve("a.test")
    assert len(host.hits) == 2


async def test_failures_are_kept_ever_longer_up_to_an_hour(
    found: Resolver, host: WellKnownHost, clock: Clock
) -> None:
    host.status = 500
    for pause in (60, 120, 240, 480, 960, 1920, 3600, 3600):
        found.forget("a.test")
        await found.resolve("a.test")
        before = len(host.hits)
        clock.now += pause - 1
        found.forget("a.test")
        await found.resolve("a.test")
        assert len(host.hits) == before
        clock.now += 1
    found.forget("a.test")
    await found.resolve("a.test")
    assert len(host.hits) == before + 1


async def test_a_passing_failure_keeps_the_delegation(
    found: Resolver, host: WellKnownHost, clock: Clock
) -> None:
    await found.resolve("a.test")
    host.status = 503
    clock.now += 24 * 3600 + 1
    assert (await found.resolve("a.test")).host_header == "real.test"
    clock.now += 24 * 3600
    assert (await found.resolve("a.test")).host_header == "a.test"


async def test_an_ended_delegation_is_ended(found: Resolver, host: WellKnownHost, clock: Clock) -> None:
    await found.resolve("a.test")
    host.status = 404
    clock.now += 24 * 3600 + 1
    assert (await found.resolve("a.test")).host_header == "a.test"


async def test_plain_servers_have_no_well_known(found: Resolver, host: WellKnownHost) -> None:
    target = await found.resolve("a.test", plain=True)
    assert target == Target("a.test", None, (Address("127.0.0.1", 8448),))
    assert not host.hits
