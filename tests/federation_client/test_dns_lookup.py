"""DNS answers, absences and failures told apart, against a name server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from lmserver.federation_client.dns_lookup import SrvRecord, SystemDns
from lmserver.federation_client.errors import NameNotFound, Unreachable

RECORDS = {
    ("both.test.", "A"): ["93.184.215.14", "93.184.215.15"],
    ("both.test.", "AAAA"): ["2606:4700::1111"],
    ("four.test.", "A"): ["93.184.215.14"],
    ("half.test.", "AAAA"): ["2606:4700::1111"],
    ("_matrix._tcp.srv.test.", "SRV"): ["10 5 8448 box.test."],
}


class NameServer(asyncio.DatagramProtocol):
    """Answers RECORDS; `dead.test` and the A record of `half.test` are never answered."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        if name == "dead.test." or (name, kind) == ("half.test.", "A"):
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        records = RECORDS.get((name, kind))
        if records:
            answer.answer.append(dns.rrset.from_text(question.name, 77, "IN", kind, *records))
        elif not any(known == name for known, _ in RECORDS):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), addr)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[SystemDns]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = transport.get_extra_info("sockname")[1]
    hosts = tmp_path / "hosts"
    hosts.write_text("10.1.1.1  box Box.Test # a comment\nnonsense\nfd00::1 box.test\n# 1.1.1.1 no.test\n")
    yield SystemDns(lifetime=0.5, timeout=0.4, hosts_file=hosts, resolver=resolver)
    transport.close()


async def test_addresses_of_both_families(system: SystemDns) -> None:
    answer = await system.addresses("both.test")
    assert sorted(answer.addresses) == ["2606:4700::1111", "93.184.215.14", "93.184.215.15"]
    assert answer.ttl == 77


@pytest.mark.parametrize(
    ("name", "addresses"), [("four.test", ("93.184.215.14",)), ("half.test", ("2606:4700::1111",))]
)
async def test_one_family_is_enough(system: SystemDns, name: str, addresses: tuple[str, ...]) -> None:
    assert (await system.addresses(name)).addresses == addresses


async def test_absence_and_silence_differ(system: SystemDns) -> None:
    with pytest.raises(NameNotFound):
        await system.addresses("none.test")
    with pytest.raises(NameNotFound):
        await system.srv("both.test")
    with pytest.raises(Unreachable) as caught:
        await system.addresses("dead.test")
    assert not isinstance(caught.value, NameNotFound)


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".test", ".".join(["abc"] * 90)])
async def test_impossible_names_fail_quietly(system: SystemDns, name: str) -> None:
    with pytest.raises(Unreachable):
        await system.addresses(name)


async def test_srv(system: SystemDns) -> None:
    answer = await system.srv("_matrix._tcp.srv.test")
    assert answer.records == (SrvRecord(10, 5, 8448, "box.test"),)
    assert answer.ttl == 77


async def test_hosts_file_comes_first(system: SystemDns) -> None:
    assert (await system.addresses("BOX.test")).addresses == ("10.1.1.1", "fd00::1")
    with pytest.raises(NameNotFound):
        await system.addresses("no.test")


@pytest.mark.parametrize("name", ["localhost", "a.localhost", "LOCALHOST."])
async def test_localhost_needs_no_dns(system: SystemDns, name: str) -> None:
    assert (await system.addresses(name)).addresses == ("127.0.0.1", "::1")
