"""The check against servers that are wrong in one way each, and one that is right."""

from __future__ import annotations

import email.utils
import json
import ssl
import time
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest
import trustme
from aiohttp import web

from lmserver.federation_check.check import Setting, check
from lmserver.federation_check.report import Report, Status, Step
from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.dns_lookup import SrvRecord
from lmserver.protocol import unpadded_base64
from lmserver.protocol.signatures import SigningKey, sign_json
from tests.federation_client.conftest import dns, loopback
from tests.federation_client.fakes import LOOPBACK, FakeDns, Loopback
from tests.kit.certificates import issue
from tests.kit.processes import free_port

__all__ = ["dns", "loopback"]

NAME = "hub.test"
KEY = SigningKey.from_seed("us.test", "ed25519:1", b"u" * 32)


class Peer:
    """A good server; each test spoils one thing."""

    def __init__(self) -> None:
        self.name = NAME
        self.key = SigningKey.from_seed(NAME, "ed25519:a", b"p" * 32)
        self.change: Callable[[dict[str, Any]], object] = lambda document: None
        self.change_signed: Callable[[dict[str, Any]], object] = lambda document: None
        self.date: str | None = None
        self.answers: dict[str, tuple[int, bytes]] = {
            "/_matrix/federation/v1/version": (200, b'{"server":{"name":"x","version":"1"}}'),
            "/_matrix/federation/v1/query/profile": (404, b'{"errcode":"M_NOT_FOUND"}'),
        }

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        status, body = self.answers.get(request.path, (404, b'{"errcode":"M_UNRECOGNIZED"}'))
        if request.path == "/_matrix/key/v2/server" and request.path not in self.answers:
            status, body = 200, json.dumps(self.document()).encode()
        headers = {} if self.date is None else {"Date": self.date}
        return web.Response(status=status, body=body, headers=headers)

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "server_name": self.name,
            "valid_until_ts": int(time.time() * 1000) + 12 * 3_600_000,
            "m.linearized": True,
            "verify_keys": {"ed25519:a": {"key": unpadded_base64.encode(self.key.verify_key.key_bytes)}},
            "old_verify_keys": {},
        }
        self.change(document)
        signed = sign_json(document, self.key)
        self.change_signed(signed)
        return signed


@pytest.fixture
def peer() -> Peer:
    return Peer()


class Bench:
    """Runs the check against whatever listens."""

    def __init__(self, loopback: Loopback, dns: FakeDns) -> None:
        self.loopback = loopback
        self.dns = dns
        dns.hosts = {NAME: ["127.0.0.1"]}
        self.guard = LOOPBACK
        self.key: SigningKey | None = None
        self.plain: frozenset[str] = frozenset()
        self.well_known_port = 1

    async def check(self, server: str) -> Report:
        setting = Setting(
            self.dns, self.guard, self.loopback.ca_file, self.key, self.plain,
            well_known_port=self.well_known_port,
        )  # fmt: skip
        return await check(server, setting)

    async def check_peer(self, peer: Peer, context: ssl.SSLContext) -> Report:
        return await self.check(f"{NAME}:{await self.loopback.serve_with(peer, context)}")


@pytest.fixture
def bench(loopback: Loopback, dns: FakeDns) -> Bench:
    return Bench(loopback, dns)


def step(report: Report, name: str) -> Step:
    return next(s for s in report.steps if s.name == name)


def failure(report: Report) -> Step:
    """The one step that failed."""
    assert not report.ok
    [failed] = [s for s in report.steps if s.status is Status.FAILED]
    assert failed.advice, "what is to be done?"
    return failed


async def asked_on(bench: Bench, peer: Peer) -> Report:
    """A peer whose own name has the port that it is reached under."""
    port = await bench.loopback.serve(peer, NAME)
    peer.name = f"{NAME}:{port}"
    peer.key = SigningKey.from_seed(peer.name, "ed25519:a", b"p" * 32)
    return await bench.check(peer.name)


async def test_a_good_server_passes_every_step(bench: Bench, peer: Peer) -> None:
    bench.key = KEY
    report = await asked_on(bench, peer)
    assert report.ok, report.as_text()
    assert [(s.name, s.status) for s in report.steps] == [
        ("name", "ok"), ("delegation", "skipped"), ("resolution", "ok"), ("address", "ok"),
        ("connection", "ok"), ("TLS", "ok"), ("certificate", "ok"), ("keys", "ok"), ("m.linearized", "ok"),
        ("clock", "ok"), ("version", "ok"), ("signed request", "ok"),
    ]  # fmt: skip
    assert "TLSv1.3" in step(report, "TLS").detail
    assert "step 1 of the draft: 127.0.0.1:" in step(report, "resolution").detail
    text = report.as_text()
    assert text.splitlines()[-1] == f"{peer.name} can be federated with."
    assert text.count("✓") == 11
    assert report.as_text(unicode=False).isascii()
    assert json.loads(json.dumps(report.as_json()))["ok"] is True


async def test_it_needs_no_key(bench: Bench, peer: Peer) -> None:
    report = await asked_on(bench, peer)
    assert report.ok
    assert step(report, "signed request").status is Status.SKIPPED


async def test_delegation_and_srv_are_told(bench: Bench, peer: Peer) -> None:
    port = await bench.loopback.serve(peer, "real.test")

    async def document(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b'{"m.server": "real.test"}', headers={"Cache-Control": "max-age=7200"})

    bench.well_known_port = await bench.loopback.serve(document, NAME)
    bench.dns.hosts["box.test"] = ["127.0.0.1"]
    bench.dns.services["_matrix._tcp.real.test"] = [SrvRecord(0, 0, port, "box.test")]
    report = await bench.check(NAME)
    assert report.ok, report.as_text()
    assert "leads to real.test for 2.0 h" in step(report, "delegation").detail
    assert "step 2.3" in step(report, "resolution").detail


@pytest.mark.parametrize("name", ["https://hub.test", "10.0.0.1", "hub.test/", "a b", "2130706433", ""])
async def test_what_is_no_name(bench: Bench, name: str) -> None:
    assert failure(await bench.check(name)).name == "name"


async def test_a_name_that_is_not_in_dns(bench: Bench) -> None:
    assert failure(await bench.check("none.test:8448")).name == "resolution"


async def test_dns_that_does_not_answer(bench: Bench) -> None:
    bench.dns.broken = True
    failed = failure(await bench.check("hub.test:8448"))
    assert failed.name == "resolution" and "name servers" in failed.advice


async def test_a_private_address(bench: Bench) -> None:
    bench.guard = AddressGuard()
    failed = failure(await bench.check("hub.test:8448"))
    assert failed.name == "address" and "allowed_networks" in failed.advice


async def test_a_private_address_beside_a_good_one_is_noted(bench: Bench, peer: Peer) -> None:
    bench.guard = AddressGuard([ip_network("127.0.0.1/32")])
    bench.dns.hosts[NAME] = ["10.0.0.1", "127.0.0.1"]
    report = await asked_on(bench, peer)
    assert report.ok
    assert step(report, "address").status is Status.NOTE


async def test_a_port_of_another_protocol(bench: Bench) -> None:
    assert "another protocol" in failure(await bench.check("hub.test:22")).detail


async def test_nothing_listens(bench: Bench) -> None:
    failed = failure(await bench.check(f"hub.test:{free_port()}"))
    assert failed.name == "connection" and "refused" in failed.detail.lower()


async def test_no_address_of_several_listens(bench: Bench) -> None:
    bench.dns.hosts[NAME] = ["127.0.0.1", "127.0.0.2"]
    assert failure(await bench.check(f"hub.test:{free_port()}")).name == "connection"


async def test_plain_http_where_tls_belongs(bench: Bench, peer: Peer) -> None:
    port = await bench.loopback.serve(peer)
    assert failure(await bench.check(f"hub.test:{port}")).name == "TLS"


async def test_plain_http_by_configuration(bench: Bench, peer: Peer) -> None:
    port = await bench.loopback.serve(peer)
    peer.name = f"{NAME}:{port}"
    peer.key = SigningKey.from_seed(peer.name, "ed25519:a", b"p" * 32)
    bench.plain = frozenset({peer.name})
    assert (await bench.check(peer.name)).ok


def server_context(leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    return context


async def test_an_expired_certificate(bench: Bench, peer: Peer) -> None:
    context = server_context(issue(bench.loopback.ca, NAME, valid_for=-60))
    failed = failure(await bench.check_peer(peer, context))
    assert failed.name == "TLS" and "expired" in failed.detail and "Renew" in failed.advice


async def test_a_certificate_about_to_expire_is_noted(bench: Bench, peer: Peer) -> None:
    port = await bench.loopback.serve_with(
        peer, server_context(issue(bench.loopback.ca, NAME, valid_for=3 * 86400))
    )
    report = await bench.check(f"{NAME}:{port}")
    assert step(report, "certificate").status is Status.NOTE
    assert "3 days left" in step(report, "certificate").detail


async def test_an_unknown_authority(bench: Bench, peer: Peer) -> None:
    failed = failure(await bench.check_peer(peer, server_context(trustme.CA().issue_cert(NAME))))
    assert failed.name == "TLS" and "ca_file" in failed.advice and "full chain" in failed.advice


async def test_a_certificate_for_another_name(bench: Bench, peer: Peer) -> None:
    failed = failure(await bench.check_peer(peer, server_context(bench.loopback.ca.issue_cert("other.test"))))
    assert failed.name == "TLS" and "other.test" in failed.detail and NAME in failed.advice


async def test_old_tls(bench: Bench, peer: Peer) -> None:
    context = server_context(bench.loopback.ca.issue_cert(NAME))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    failed = failure(await bench.check_peer(peer, context))
    assert failed.name == "TLS" and "TLSv1.2" in failed.detail and "TLS 1.3" in failed.advice


@pytest.mark.parametrize(
    "answer", [(404, b"{}"), (502, b"<html>"), (200, b"<html>"), (200, b"[]"), (200, b'{"a":1,"a":2}')]
)
async def test_no_keys(bench: Bench, peer: Peer, answer: tuple[int, bytes]) -> None:
    peer.answers["/_matrix/key/v2/server"] = answer
    assert failure(await asked_on(bench, peer)).name == "keys"


async def test_keys_of_another_server(bench: Bench, peer: Peer) -> None:
    peer.change = lambda document: document.update(server_name="other.test")
    failed = failure(await asked_on(bench, peer))
    assert failed.name == "keys" and "'other.test'" in failed.advice


def forged(document: dict[str, Any]) -> None:
    document["valid_until_ts"] += 1


def unsigned(document: dict[str, Any]) -> None:
    del document["signatures"]


@pytest.mark.parametrize("spoil", [forged, unsigned])
async def test_keys_that_are_not_signed_by_themselves(
    bench: Bench, peer: Peer, spoil: Callable[[dict[str, Any]], None]
) -> None:
    peer.change_signed = spoil
    assert failure(await asked_on(bench, peer)).name == "keys"


async def test_expired_keys(bench: Bench, peer: Peer) -> None:
    peer.change = lambda document: document.update(valid_until_ts=int(time.time() * 1000) - 1)
    failed = failure(await asked_on(bench, peer))
    assert failed.name == "keys" and "expired" in failed.advice


async def test_keys_valid_for_minutes_are_noted(bench: Bench, peer: Peer) -> None:
    peer.change = lambda document: document.update(valid_until_ts=int(time.time() * 1000) + 60_000)
    report = await asked_on(bench, peer)
    assert report.ok and step(report, "keys").status is Status.NOTE


async def test_a_server_that_is_not_linearized_is_noted(bench: Bench, peer: Peer) -> None:
    peer.change = lambda document: document.pop("m.linearized")
    report = await asked_on(bench, peer)
    assert report.ok and step(report, "m.linearized").status is Status.NOTE


@pytest.mark.parametrize(
    ("ahead", "status"),
    [(10, Status.OK), (-300, Status.NOTE), (86400, Status.FAILED), (-7200, Status.FAILED)],
)
async def test_the_clock(bench: Bench, peer: Peer, ahead: int, status: Status) -> None:
    peer.date = email.utils.formatdate(time.time() + ahead, usegmt=True)
    report = await asked_on(bench, peer)
    assert step(report, "clock").status is status
    assert ("ahead" if ahead > 0 else "behind") in step(report, "clock").detail


async def test_a_date_that_is_none(bench: Bench, peer: Peer) -> None:
    peer.date = "yesterday"
    assert step(await asked_on(bench, peer), "clock").status is Status.SKIPPED


async def test_no_version_is_noted(bench: Bench, peer: Peer) -> None:
    peer.answers["/_matrix/federation/v1/version"] = (404, b"{}")
    report = await asked_on(bench, peer)
    assert report.ok and step(report, "version").status is Status.NOTE


async def test_a_server_that_does_not_believe_us(bench: Bench, peer: Peer) -> None:
    bench.key = KEY
    peer.answers["/_matrix/federation/v1/query/profile"] = (401, b'{"errcode":"M_FORBIDDEN"}')
    failed = failure(await asked_on(bench, peer))
    assert failed.name == "signed request" and "us.test" in failed.advice and "ed25519:1" in failed.advice


async def test_what_a_server_says_steers_no_terminal(bench: Bench, peer: Peer) -> None:
    evil = json.dumps({"server": {"name": "\x1b[2J\u202e", "version": "\n✓ all good"}}).encode()
    peer.answers["/_matrix/federation/v1/version"] = (200, evil)
    text = (await asked_on(bench, peer)).as_text()
    assert "\x1b" not in text and "\u202e" not in text
    assert not any(line.startswith("✓ all good") for line in text.splitlines())
