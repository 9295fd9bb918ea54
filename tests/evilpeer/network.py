"""The test servers' DNS: every name has an SRV record, every record points at loopback."""

from __future__ import annotations

from lmserver.federation_client.dns_lookup import AddressAnswer, SrvAnswer, SrvRecord
from lmserver.federation_client.errors import NameNotFound
from tests.kit.processes import free_port

TTL = 60


class Network:
    """Server names to loopback ports; a name that was never started does not exist."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}

    def port(self, host: str) -> int:
        """Where the server of this name listens: the same after a restart, as a server that comes back has."""
        return self.ports.setdefault(host, free_port())

    async def addresses(self, host: str) -> AddressAnswer:
        if host not in self.ports:
            raise NameNotFound("server name not found")
        return AddressAnswer(("127.0.0.1",), TTL)

    async def srv(self, name: str) -> SrvAnswer:
        host = name.removeprefix("_matrix._tcp.")
        if host not in self.ports:
            raise NameNotFound("server name not found")
        return SrvAnswer((SrvRecord(0, 0, self.ports[host], host),), TTL)
