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

from lmserver.federation_client import dns_lookup
from lmserver.federation_client.dns_lookup import SrvRecord, SystemDns
from lmserver.federation_client.errors import NameNotFound, Unreachable
from tests.kit.waiting import HANGS

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
    yield SystemDns(lifetime=3.0, timeout=2.0, hosts_file=hosts, resolver=resolver)
    transport.close()


async def test_addresses_of_both_families(system: SystemDns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_lookup, "SECOND_FAMILY", HANGS)
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


async def test_the_hosts_file_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_lookup, "LOOK_SECONDS", 0.0)
    hosts = tmp_path / "hosts"
    hosts.write_text("10.1.1.1 box.test\n")
    system = SystemDns(hosts_file=hosts, resolver=dns.asyncresolver.Resolver(configure=False))
    assert (await system.addresses("box.test")).addresses == ("10.1.1.1",)
    (tmp_path / "new").write_text("10.2.2.2 box.test\n")
    (tmp_path / "new").replace(hosts)
    assert (await system.addresses("box.test")).addresses == ("10.2.2.2",)


def test_name_servers_are_followed_and_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_lookup, "LOOK_SECONDS", 0.0)
    conf = tmp_path / "resolv.conf"
    system = SystemDns(resolv_conf=conf)

    def servers() -> list[str]:
        return [str(server) for server in system._resolver().nameservers]

    def write(text: bytes) -> None:
        (tmp_path / "new").write_bytes(text)
        (tmp_path / "new").replace(conf)

    assert servers() == []  # a machine that starts without network
    write(b"nameserver 10.0.0.1\n")
    assert servers() == ["10.0.0.1"]
    for nothing in (b"", b"# being written\n", b"nameserver nonsense\n", b"search a..b\n", b"\xff\xfe"):
        write(nothing)
        assert servers() == ["10.0.0.1"], nothing
    conf.unlink()
    assert servers() == ["10.0.0.1"]
    write(b"nameserver 10.0.0.2\nnameserver 10.0.0.3\n")
    assert servers() == ["10.0.0.2", "10.0.0.3"]


@pytest.mark.parametrize("name", ["localhost", "a.localhost", "LOCALHOST."])
async def test_localhost_needs_no_dns(system: SystemDns, name: str) -> None:
    assert (await system.addresses(name)).addresses == ("127.0.0.1", "::1")
