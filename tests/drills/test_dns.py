"""D19: name servers that hang, fail, flap and dawdle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import dns.exception
import dns.resolver
import pytest
from aiohttp import web

from lmserver.federation_client import resolver as resolver_module
from lmserver.federation_client.client import FederationClient
from lmserver.federation_client.connector import Address, Target
from lmserver.federation_client.dns_lookup import AddressAnswer, Dns, SrvAnswer
from lmserver.federation_client.errors import NameNotFound, Unreachable
from lmserver.federation_client.resolver import Resolver
from lmserver.protocol.signatures import SigningKey
from tests.drills.long import rounds
from tests.federation_client.fakes import LOOPBACK, Clock, Loopback
from tests.kit.nameserver import NameServer
from tests.kit.waiting import HANGS

HANGING = 500
BATCH = 25  # a socket's buffer holds some 250 queries; what overflows is asked again seconds later
KEY = SigningKey.from_seed("us.test", "ed25519:1", b"k" * 32)


@pytest.fixture
async def names() -> AsyncIterator[NameServer]:
    server = NameServer({("good.test.", "A"): ["127.0.0.1"], ("bad.test.", "A"): ["127.0.0.1"]})
    await server.start()
    yield server
    server.stop()


def resolver(dns: Dns, loopback: Loopback, clock: Clock) -> Resolver:
    return Resolver(dns, LOOPBACK, loopback.http(), clock=clock, wall=clock, well_known_port=1)


# -- five hundred names hang ------------------------------------------------------------------------------


@dataclass
class Crowd:
    """Whether the one good name was found, and how many of the others had come to an end by then."""

    found: bool
    ended: int

    @property
    def good(self) -> bool:
        return self.found and self.ended == 0


async def crowded(names: NameServer, dns: Dns, loopback: Loopback, *, seen: int, patience: float) -> Crowd:
    """Ask for the names that are never answered and, once the name server has seen `seen`, a good one, for
    so many seconds."""
    names.silent = {"*.hang.test."}
    resolving = resolver(dns, loopback, Clock())
    hanging: list[asyncio.Task[Target]] = []
    async with asyncio.timeout(HANGS):
        for n in range(HANGING):
            name = f"server{n}.hang.test" + (":8448" if n % 2 else "")
            hanging.append(asyncio.create_task(resolving.resolve(name)))
            while n % BATCH == BATCH - 1 and len(names.asked) < min(n + 1, seen):
                await asyncio.sleep(0.01)
    found = False
    with suppress(TimeoutError):  # it waits still
        async with asyncio.timeout(patience):
            target = await resolving.resolve("good.test:8448")
        found = target.addresses == (Address("127.0.0.1", 8448),)
    ended = sum(task.done() for task in hanging)
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    await resolving.close()
    return Crowd(found, ended)


async def test_d19_five_hundred_names_that_hang_do_not_slow_a_good_one(
    names: NameServer, loopback: Loopback
) -> None:
    dns = names.client(lifetime=4 * HANGS)
    crowd = await crowded(names, dns, loopback, seen=HANGING, patience=HANGS)
    assert crowd.good, crowd


class ThreadDns:
    """What getaddrinfo in the loop's thread pool amounts to: one waiting thread for each slow name."""

    def __init__(self, names: NameServer) -> None:
        self._resolver = names.resolver(dns.resolver.Resolver)
        self._pool = ThreadPoolExecutor(8)

    async def addresses(self, host: str) -> AddressAnswer:
        answer = await asyncio.get_running_loop().run_in_executor(self._pool, self._ask, host)
        return AddressAnswer(tuple(record.address for record in answer), 60)

    async def srv(self, name: str) -> SrvAnswer:
        raise NameNotFound(name)

    def _ask(self, host: str) -> Any:
        try:
            return self._resolver.resolve(host, "A", lifetime=1.5)
        except dns.exception.DNSException as error:
            raise Unreachable(str(error)) from error

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


async def test_d19_control_threads_pile_up_and_the_good_name_waits(
    names: NameServer, loopback: Loopback
) -> None:
    threads = ThreadDns(names)
    crowd = await crowded(names, threads, loopback, seen=8, patience=2.0)
    assert not crowd.good, crowd
    await asyncio.to_thread(threads.close)


# -- name servers out of order ------------------------------------------------------------------------------


async def outage(names: NameServer, loopback: Loopback, fault: str) -> list[bool]:
    """Whether a server that was known is found: within its time to live, after it, and hours later."""
    clock = Clock()
    dns = names.client()
    resolving = resolver(dns, loopback, clock)
    known = await resolving.resolve("good.test:8448")
    dns._lifetime, dns._timeout = 0.6, 0.3  # from now on answers are missing
    match fault:
        case "servfail":
            names.failing = {"good.test."}
        case "silence":
            names.silent = {"good.test."}
        case "gone":
            names.stop()
    found = []
    for later in (20, 100, 4 * 3600):
        clock.now += later
        try:
            found.append(await resolving.resolve("good.test:8448") == known)
        except Unreachable:
            found.append(False)
    await resolving.close()
    return found


@pytest.mark.parametrize("fault", ["servfail", "silence", "gone"])
async def test_d19_a_known_server_is_found_while_dns_is_out_of_order(
    names: NameServer, loopback: Loopback, fault: str
) -> None:
    assert await outage(names, loopback, fault) == [True, True, True]


async def test_d19_control_without_the_last_answer_it_is_lost_with_its_time_to_live(
    names: NameServer, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "STALE", 0.0)
    assert await outage(names, loopback, "servfail") == [True, False, False]


async def test_d19_the_last_answer_is_not_used_for_ever(names: NameServer, loopback: Loopback) -> None:
    clock = Clock()
    resolving = resolver(names.client(), loopback, clock)
    await resolving.resolve("good.test:8448")
    names.failing = {"good.test."}
    clock.now += 24 * 3600 + 1
    with pytest.raises(Unreachable):
        await resolving.resolve("good.test:8448")


async def queries_while_failing(names: NameServer, loopback: Loopback) -> int:
    """How often the name server was asked for a failing name by a minute of eager requests."""
    clock = Clock()
    resolving = resolver(names.client(), loopback, clock)
    names.failing = {"bad.test."}
    for _ in range(120):
        clock.now += 0.5
        with pytest.raises(Unreachable):
            await resolving.resolve("bad.test:8448")
        assert (await resolving.resolve("good.test:8448")).addresses
    await resolving.close()
    return names.asked["bad.test."]


async def test_d19_a_failing_name_is_backed_off_alone(names: NameServer, loopback: Loopback) -> None:
    assert await queries_while_failing(names, loopback) <= 4 * 2  # at 0, 5, 15, 35 s: A and AAAA
    assert names.asked["good.test."] <= 2 * 2


async def test_d19_control_without_backoff_each_request_asks(
    names: NameServer, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "FIRST_FAILURE", 0.0)
    assert await queries_while_failing(names, loopback) > 100


async def test_d19_flapping_dns_loses_no_request(names: NameServer, loopback: Loopback) -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"{}")

    port = await loopback.serve(answer, "good.test")
    clock, http = Clock(), loopback.http()
    dns = names.client()
    resolving = Resolver(dns, LOOPBACK, http, clock=clock, wall=clock)
    client = FederationClient("us.test", KEY, resolving, http)
    for turn in range(rounds(12, 60)):
        names.failing = {"good.test."} if turn % 3 == 1 else set()
        names.silent = {"good.test."} if turn % 3 == 2 else set()
        clock.now += 61
        assert (await client.request("GET", f"good.test:{port}", "/x")).status == 200
        dns._lifetime, dns._timeout = 0.4, 0.2  # an answer that is late is as good as none: it is known
    assert names.asked["good.test."] > rounds(12, 60)


async def test_d19_slow_answers_are_waited_for(names: NameServer, loopback: Loopback) -> None:
    names.delay = 0.5
    resolving = resolver(names.client(), loopback, Clock())
    started = time.monotonic()
    targets = await asyncio.gather(*(resolving.resolve(f"good.test:{port}") for port in range(8000, 8050)))
    assert all(target.addresses for target in targets)
    assert time.monotonic() - started < 50 * names.delay / 2  # not one after the other


async def test_f8_an_alias_of_an_srv_target_is_judged_by_its_address(
    names: NameServer, loopback: Loopback
) -> None:
    names.records |= {
        ("_matrix._tcp.evil.test.", "SRV"): ["0 0 8448 alias.test."],
        ("alias.test.", "CNAME"): ["inside.test."],
        ("inside.test.", "A"): ["10.0.0.1"],
    }
    with pytest.raises(Unreachable) as caught:
        await resolver(names.client(), loopback, Clock()).resolve("evil.test")
    assert "refused" in caught.value.detail
