"""Who is on the other end: the connection's address, or what a proxy we trust says it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network


class TrustedProxies:
    """Networks of reverse proxies whose X-Forwarded-For is believed."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks = tuple(networks)

    def trusts(self, address: str) -> bool:
        parsed = _parsed(address)
        return parsed is not None and any(
            parsed.version == network.version and parsed in network for network in self._networks
        )

    def client_of(self, peer: str, forwarded: Sequence[str]) -> str:
        """The address that a request came from.

        Each proxy appends whom it heard, so the list is read from its end for as long as those who
        wrote are trusted; what stands before that anybody may have made up.
        """
        if not forwarded:
            return peer
        address = peer
        for entry in reversed(",".join(forwarded).split(",")):
            if not self.trusts(address):
                return address
            parsed = _parsed(entry.strip())
            if parsed is None:
                return address
            address = str(parsed)
        return address


def rate_key(address: str) -> str:
    """What an address is counted under: itself, or the /64 network that one IPv6 host may roam in."""
    parsed = _parsed(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((int(parsed) >> 64 << 64, 64)))
    return address if parsed is None else str(parsed)


def is_private(address: str) -> bool:
    """Whether it is no address of the public internet, or none at all."""
    parsed = _parsed(address)
    return parsed is None or not parsed.is_global


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """An address; one that IPv6 only carries is the IPv4 address inside."""
    try:
        parsed = ip_address(text)
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed
