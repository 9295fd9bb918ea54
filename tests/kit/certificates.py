"""Certificates that a test writes, renews and lets expire."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography import x509


@dataclass(frozen=True, slots=True)
class Pair:
    """Two PEM files, and how to fill them."""

    certificate: Path
    private_key: Path

    def write(
        self, ca: trustme.CA, *names: str, valid_for: float = 3600.0, valid_since: float = -3600.0
    ) -> int:
        """Issue and write a certificate that ends `valid_for` seconds from now; its serial number."""
        leaf = issue(ca, *names, valid_for=valid_for, valid_since=valid_since)
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        self.certificate.write_bytes(chain)
        self.private_key.write_bytes(leaf.private_key_pem.bytes())
        return x509.load_pem_x509_certificate(chain).serial_number


def issue(
    ca: trustme.CA, *names: str, valid_for: float = 3600.0, valid_since: float = -3600.0
) -> trustme.LeafCert:
    """A certificate valid between two times, in seconds from now."""
    now = datetime.datetime.now(datetime.UTC)
    return ca.issue_cert(
        *names,
        not_before=now + datetime.timedelta(seconds=valid_since),
        not_after=now + datetime.timedelta(seconds=valid_for),
    )


def serial_of(connection: ssl.SSLObject | ssl.SSLSocket) -> int:
    """The serial number of the certificate that the other side presented."""
    der = connection.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number
