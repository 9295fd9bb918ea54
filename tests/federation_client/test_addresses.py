"""The private-address guard (attacks F1, F2, F4)."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from lmserver.federation_client.addresses import AddressGuard, AddressRefused

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.8.8.8",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "100::1",
    "2001:db8::1",
    "2001:20::1",
    "3fff::1",
    "5f00::1",
]
WRAPPED = [
    "::ffff:10.0.0.1",
    "::ffff:7f00:1",
    "::ffff:0:127.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1.1.1.1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "2001:0:101:101::f5ff:fffe",
    "2001:0:7f00:1::1",
    "2a00::5efe:10.0.0.1",
    "2a00::200:5efe:192.168.0.1",
]
ODD = [
    "127.1",
    "0x7f.1",
    "2130706433",
    "017700000001",
    "①②⑦.⓪.⓪.①",
    "localhost",
    "",
    "fe80::1%eth0",
    "2a00::1%1",
]
PUBLIC = ["1.1.1.1", "172.32.0.1", "2a00:1450::1", "2606:4700::1111", "64:ff9b::1.1.1.1", "2002:101:101::1"]


@pytest.mark.parametrize("address", PRIVATE + WRAPPED + ODD)
def test_f1_f2_special_addresses_are_refused(address: str) -> None:
    assert not AddressGuard().is_allowed(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert AddressGuard().is_allowed(address)


def test_allowed_networks_reach_exactly_themselves() -> None:
    guard = AddressGuard([ip_network("10.1.0.0/16"), ip_network("::1/128")])
    assert guard.is_allowed("10.1.2.3")
    assert guard.is_allowed("::ffff:10.1.2.3")
    assert guard.is_allowed("::1")
    assert not guard.is_allowed("10.2.0.1")
    assert not guard.is_allowed("::ffff:127.0.0.1")
    assert not guard.is_allowed("127.0.0.1")


def test_f2_an_allowed_wrapper_does_not_allow_what_it_carries() -> None:
    guard = AddressGuard([ip_network("2002::/16"), ip_network("::/0")])
    assert not guard.is_allowed("2002:7f00:1::")
    assert not guard.is_allowed("64:ff9b::7f00:1")


@pytest.mark.parametrize("port", [22, 25, 6379, 0, -1, 65536])
def test_ports_of_other_protocols(port: int) -> None:
    with pytest.raises(AddressRefused):
        AddressGuard().check("1.1.1.1", port)


def test_check_passes_public_addresses() -> None:
    AddressGuard().check("1.1.1.1", 8448)
