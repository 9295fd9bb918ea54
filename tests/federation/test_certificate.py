"""The listener's certificate: renewed without restart, never made worse, TLS 1.3 only (D04 §TLS Certificates)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs

from lmserver.metrics import Metrics
from lmserver.tls import CertificateError, ServerCertificate
from tests.federation_client.fakes import Clock
from tests.kit.certificates import Pair, issue, serial_of
from tests.kit.waiting import HANGS

DAY = 86400.0


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path / "tls.crt", tmp_path / "tls.key")


def trusting(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


@asynccontextmanager
async def listening(certificate: ServerCertificate) -> AsyncIterator[int]:
    """A server that answers each line with itself."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=certificate.context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def presented(port: int, context: ssl.SSLContext, name: str | None = "us.test") -> int:
    """The serial number that a new connection is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name or "")
    try:
        return serial_of(writer.get_extra_info("ssl_object"))
    finally:
        writer.close()


async def test_a_renewed_pair_is_served_and_open_connections_live_on(ca: trustme.CA, pair: Pair) -> None:
    old = pair.write(ca, "us.test")
    certificate = ServerCertificate(pair.certificate, pair.private_key, Metrics())
    async with listening(certificate) as port:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting(ca), server_hostname="us.test"
        )
        assert serial_of(writer.get_extra_info("ssl_object")) == old
        new = pair.write(ca, "us.test")
        certificate.check()
        assert await presented(port, trusting(ca)) == new
        writer.write(b"still here\n")
        assert await reader.readline() == b"still here\n"
        writer.close()


async def test_a_renewal_by_swapped_links_is_noticed(ca: trustme.CA, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = (Pair(tmp_path / n / "crt", tmp_path / n / "key") for n in ("one", "two"))
    first.write(ca, "us.test")
    new = second.write(ca, "us.test")
    live = tmp_path / "live"
    live.symlink_to("one")
    certificate = ServerCertificate(live / "crt", live / "key", Metrics())
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(live)
    async with listening(certificate) as port:
        certificate.check()
        assert await presented(port, trusting(ca)) == new


def only_the_certificate(ca: trustme.CA, pair: Pair) -> None:
    key = pair.private_key.read_bytes()
    pair.write(ca, "us.test")
    pair.private_key.write_bytes(key)


def expired(ca: trustme.CA, pair: Pair) -> None:
    pair.write(ca, "us.test", valid_for=-60.0)


def of_tomorrow(ca: trustme.CA, pair: Pair) -> None:
    pair.write(ca, "us.test", valid_since=DAY, valid_for=2 * DAY)


def no_pem(_: trustme.CA, pair: Pair) -> None:
    pair.certificate.write_bytes(b"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n")


def empty(_: trustme.CA, pair: Pair) -> None:
    pair.private_key.write_bytes(b"")


def encrypted(ca: trustme.CA, pair: Pair) -> None:
    pair.write(ca, "us.test")
    key = serialization.load_pem_private_key(pair.private_key.read_bytes(), None)
    pair.private_key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


def missing(_: trustme.CA, pair: Pair) -> None:
    pair.certificate.unlink()


@pytest.mark.parametrize(
    "spoil", [only_the_certificate, expired, of_tomorrow, no_pem, empty, encrypted, missing]
)
async def test_a_bad_pair_leaves_the_old_one_and_is_told_once(
    ca: trustme.CA, pair: Pair, spoil: Callable[[trustme.CA, Pair], None]
) -> None:
    old = pair.write(ca, "us.test")
    metrics = Metrics()
    certificate = ServerCertificate(pair.certificate, pair.private_key, metrics)
    async with listening(certificate) as port:
        with capture_logs() as logs:
            spoil(ca, pair)
            certificate.check()
            certificate.check()
        errors = [entry for entry in logs if entry["log_level"] == "error"]
        assert [entry["event"] for entry in errors] == ["certificate_not_loaded"]
        assert b"lmserver_certificate_failures_total 1.0" in metrics.text()
        assert await presented(port, trusting(ca)) == old
        new = pair.write(ca, "us.test")
        certificate.check()
        assert await presented(port, trusting(ca)) == new


def test_a_first_pair_that_cannot_be_loaded_is_an_error(ca: trustme.CA, pair: Pair) -> None:
    pair.write(ca, "us.test")
    only_the_certificate(ca, pair)
    with pytest.raises(CertificateError, match="KEY_VALUES_MISMATCH"):
        ServerCertificate(pair.certificate, pair.private_key, Metrics())


def test_d17_expiry_is_told_fourteen_days_before_and_once_a_day(ca: trustme.CA, pair: Pair) -> None:
    pair.write(ca, "us.test", valid_for=20 * DAY)
    clock, metrics = Clock(), Metrics()
    certificate = ServerCertificate(pair.certificate, pair.private_key, metrics, clock)
    not_after = metrics.registry.get_sample_value("lmserver_certificate_expires_timestamp_seconds")
    assert not_after is not None

    def told(days_before: float) -> list[tuple[str, float]]:
        clock.now = not_after - days_before * DAY
        with capture_logs() as logs:
            certificate.check()
        return [(e["log_level"], e["days_left"]) for e in logs if e["event"] == "certificate_expires"]

    assert told(14.1) == []
    assert told(13.9) == [("warning", 13.9)]
    assert told(13.8) == []
    assert told(12.9) == [("warning", 12.9)]
    assert told(-1.0) == [("error", -1.0)]
    pair.write(ca, "us.test", valid_for=90 * DAY)
    clock.now = not_after - 13 * DAY
    certificate.check()
    assert told(12.0) == []


async def test_tls_1_3_only(ca: trustme.CA, pair: Pair) -> None:
    pair.write(ca, "us.test")
    certificate = ServerCertificate(pair.certificate, pair.private_key, Metrics())
    async with listening(certificate) as port:
        old = trusting(ca)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):  # the alert may be lost
            await presented(port, old)
        new = trusting(ca)
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=new, server_hostname="us.test")
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        writer.close()


async def test_a_peer_that_names_no_server_is_served(ca: trustme.CA, pair: Pair) -> None:
    serial = pair.write(ca, "us.test")
    certificate = ServerCertificate(pair.certificate, pair.private_key, Metrics())
    nameless = trusting(ca)
    nameless.check_hostname = False
    async with listening(certificate) as port:
        assert await presented(port, nameless, None) == serial


async def test_the_watch_notices_by_itself(ca: trustme.CA, pair: Pair) -> None:
    pair.write(ca, "us.test")
    certificate = ServerCertificate(pair.certificate, pair.private_key, Metrics())
    watch = asyncio.create_task(certificate.watch(every=0.01))
    try:
        new = pair.write(ca, "us.test")
        async with listening(certificate) as port, asyncio.timeout(HANGS):
            while await presented(port, trusting(ca)) != new:
                pass
    finally:
        watch.cancel()


def test_an_expired_first_pair_is_served_until_a_better_one_comes(ca: trustme.CA, pair: Pair) -> None:
    pair.write(ca, "us.test", valid_for=-60.0)
    certificate = ServerCertificate(pair.certificate, pair.private_key, Metrics())
    with capture_logs() as logs:
        certificate.check()
    assert [(e["event"], e["log_level"]) for e in logs] == [("certificate_expires", "error")]
    leaf = issue(ca, "us.test")
    pair.certificate.write_bytes(leaf.cert_chain_pems[0].bytes())
    pair.private_key.write_bytes(leaf.private_key_pem.bytes())
    assert certificate.reload()
