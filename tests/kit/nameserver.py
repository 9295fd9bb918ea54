"""A name server on loopback that answers, fails, hangs and dawdles as told."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from lmserver.federation_client.dns_lookup import SystemDns

Records = dict[tuple[str, str], list[str]]


@dataclass
class NameServer(asyncio.DatagramProtocol):
    """`records`: (name with its dot, type) to texts. The sets name what does not work: without an answer,
    with SERVFAIL. `delay`: seconds before each answer. `asked` counts queries by name."""

    records: Records = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    delay: float = 0.0
    ttl: int = 60
    asked: Counter[str] = field(default_factory=Counter)
    port: int = 0

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.port = self._transport.get_extra_info("sockname")[1]

    def stop(self) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text().lower()
        self.asked[name] += 1
        if self._listed(name, self.silent):
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if self._listed(name, self.failing):
            answer.set_rcode(dns.rcode.SERVFAIL)
        else:
            self._fill(answer, name, dns.rdatatype.to_text(question.rdtype))
        asyncio.get_running_loop().call_later(self.delay, self._send, answer.to_wire(), addr)

    def _send(self, data: bytes, addr: tuple[str, int]) -> None:
        if not self._transport.is_closing():
            self._transport.sendto(data, addr)

    def _fill(self, answer: dns.message.Message, name: str, kind: str) -> None:
        known = {owner for owner, _ in self.records}
        if name not in known:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        alias = self.records.get((name, "CNAME"))
        if alias is not None:
            answer.answer.append(dns.rrset.from_text(name, self.ttl, "IN", "CNAME", *alias))
            name = alias[0]
        texts = self.records.get((name, kind))
        if texts:
            answer.answer.append(dns.rrset.from_text(name, self.ttl, "IN", kind, *texts))

    @staticmethod
    def _listed(name: str, names: set[str]) -> bool:
        """The name itself, or `*` with all below it."""
        return name in names or any(n.startswith("*") and name.endswith(n[1:]) for n in names)

    def client(self, **options: Any) -> SystemDns:
        """Lookups that go here and nowhere else."""
        return SystemDns(
            resolver=self.resolver(dns.asyncresolver.Resolver), hosts_file=Path("/dev/null"), **options
        )

    def resolver(self, kind: Any) -> Any:
        """A dnspython resolver of this class, pointed here."""
        made = kind(configure=False)
        made.nameservers = ["127.0.0.1"]
        made.port = self.port
        return made
