"""One TLS handshake, looked at closely: when it fails, a second one that verifies nothing says why."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from lmserver.federation_client.connector import Address, tls_context

TIMEOUT = 10.0
PROTOCOLS = ["h2", "http/1.1"]
MAX_NAMES = 10

_EXPIRED = {9, 10}  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_UNKNOWN_AUTHORITY = {18, 19, 20, 21}
_WRONG_NAME = {62}
_LOOK = "Look at it with: openssl s_client -tls1_3 -connect HOST:PORT -servername NAME"


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a server presented. `problem` is empty when others would accept it; times are in seconds since
    the epoch, `alpn` is the HTTP version it chose."""

    version: str
    alpn: str | None
    names: list[str]
    issuer: str
    not_after: float
    problem: str = ""
    advice: str = ""


async def connect(address: Address) -> float:
    """Seconds that a TCP connection takes. Raises OSError; a TimeoutError is one."""
    started = time.monotonic()
    async with asyncio.timeout(TIMEOUT):
        _, writer = await asyncio.open_connection(address.ip, address.port)
    taken = time.monotonic() - started
    writer.close()
    return taken


async def handshake(address: Address, name: str, ca_file: Path | None) -> Handshake:
    """Raises OSError when there is no TLS at all."""
    context = tls_context(ca_file)
    context.set_alpn_protocols(PROTOCOLS)
    try:
        return await _shake(address, name, context)
    except (ssl.SSLError, ConnectionError) as error:  # an alert may be lost in a reset
        return await _explain(address, name, error)


async def _explain(address: Address, name: str, error: OSError) -> Handshake:
    """What the server presents to somebody who verifies nothing and speaks older versions too."""
    lenient = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    lenient.check_hostname = False
    lenient.verify_mode = ssl.CERT_NONE
    try:
        seen = await _shake(address, name, lenient)
    except OSError:
        raise error from None
    problem, advice = _why(seen, name, error)
    return Handshake(seen.version, seen.alpn, seen.names, seen.issuer, seen.not_after, problem, advice)


def _why(seen: Handshake, name: str, error: OSError) -> tuple[str, str]:
    if seen.version != "TLSv1.3":
        return "no TLS 1.3", "Enable TLS 1.3: the draft requires it."
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"the handshake failed: {error}", _LOOK
    code, reason = error.verify_code, error.verify_message or "the certificate is not accepted"
    if code in _EXPIRED:
        return reason, "Renew the certificate, and check the clock of this machine."
    if code in _UNKNOWN_AUTHORITY:
        return reason, (
            "Serve the full chain, leaf first, of an authority that systems trust; for an authority of your"
            " own name it in federation.ca_file and give --config."
        )
    if code in _WRONG_NAME:
        return reason, f"Get a certificate for {name}: the draft asks for exactly this name, port left out."
    return reason, _LOOK


async def _shake(address: Address, name: str, context: ssl.SSLContext) -> Handshake:
    async with asyncio.timeout(TIMEOUT):
        _, writer = await asyncio.open_connection(
            address.ip, address.port, ssl=context, server_hostname=name, ssl_handshake_timeout=TIMEOUT
        )
    try:
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        der = connection.getpeercert(binary_form=True)
        if der is None:
            raise ssl.SSLError("no certificate")
        try:
            certificate = x509.load_der_x509_certificate(der)
            names, issuer = _names(certificate), certificate.issuer.rfc4514_string()
        except ValueError as error:
            raise ssl.SSLError(f"certificate cannot be read: {error}") from error
        return Handshake(
            connection.version() or "unknown",
            connection.selected_alpn_protocol(),
            names,
            issuer,
            certificate.not_valid_after_utc.timestamp(),
        )
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return extension.value.get_values_for_type(x509.DNSName)[:MAX_NAMES]
