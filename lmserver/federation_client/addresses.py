"""Which addresses we may connect to on behalf of a name that a stranger chose.

The standard library's `is_global` is true for NAT64 and 6to4 forms of private addresses, so the ranges are
our own list and every form that carries an IPv4 address is unwrapped and judged by what it carries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network

_DENIED_V4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud provider's metadata service on a public address
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
_DENIED_V6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",
        "3fff::/20",
    )
)
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_ISATAP_INTERFACES = (0x00005EFE, 0x02005EFE)
_LOW_32 = 0xFFFFFFFF

# Ports of protocols that a request must never be smuggled into (mail, shells, databases, caches).
FORBIDDEN_PORTS = frozenset(
    (0, 7, 9, 19, 21, 22, 23, 25, 53, 69, 110, 111, 119, 135, 137, 139, 143, 161, 389, 445, 465, 514, 587)
    + (636, 873, 993, 995, 1433, 2049, 2375, 2379, 3306, 5432, 6379, 11211, 27017)
)


class AddressRefused(OSError):
    """The address is not one that we connect to."""


class AddressGuard:
    """The one place that decides about addresses; `allowed_networks` overrides the deny list, and
    `denied_networks` overrides both."""

    def __init__(
        self, allowed_networks: Iterable[Network] = (), denied_networks: Iterable[Network] = ()
    ) -> None:
        self._allowed = tuple(allowed_networks)
        self._denied = tuple(denied_networks)

    def is_allowed(self, address: str) -> bool:
        """True for a public address in plain notation, or one that the configuration allows."""
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        if isinstance(parsed, IPv6Address) and parsed.scope_id is not None:
            return False
        return all(self._form_allowed(form) for form in _forms(parsed))

    def check(self, address: str, port: int) -> None:
        """Raises AddressRefused."""
        if port in FORBIDDEN_PORTS or not 0 < port < 65536 or not self.is_allowed(address):
            raise AddressRefused("address refused")

    def _form_allowed(self, address: IPv4Address | IPv6Address) -> bool:
        if any(address.version == net.version and address in net for net in self._denied):
            return False
        if any(address.version == net.version and address in net for net in self._allowed):
            return True
        if isinstance(address, IPv4Address):
            return not any(address in net for net in _DENIED_V4)
        if address in _NAT64:
            return True  # judged by the address that it carries
        return address in _GLOBAL_V6 and not any(address in net for net in _DENIED_V6)


def _forms(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """Every address that a packet to this one may end at."""
    if isinstance(address, IPv4Address):
        yield address
        return
    low = int(address) & _LOW_32
    if address in _MAPPED:
        yield IPv4Address(low)
        return
    yield address
    if address in _NAT64:
        yield IPv4Address(low)
    if address in _SIX_TO_FOUR:
        yield IPv4Address((int(address) >> 80) & _LOW_32)
    if address in _TEREDO:
        yield IPv4Address((int(address) >> 64) & _LOW_32)
        yield IPv4Address(low ^ _LOW_32)
    if (int(address) >> 32) & _LOW_32 in _ISATAP_INTERFACES:
        yield IPv4Address(low)
