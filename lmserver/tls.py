"""The federation listener's certificate, served anew when its files change (D04 §TLS Certificates).

The listening context has no certificate of its own: each handshake takes the one that was last loaded
whole, so a pair that is half written, mismatched or expired is never served, and connections that are
open keep theirs.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from cryptography import x509

from lmserver.metrics import Metrics

WATCH_SECONDS = 5.0
WARN_SECONDS = 14 * 24 * 3600.0
WARN_EVERY_SECONDS = 24 * 3600.0

log = structlog.get_logger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


class CertificateError(Exception):
    """The files hold no certificate and key that can be served; the text says why."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A pair that was read whole. `not_after` is in seconds since the epoch."""

    context: ssl.SSLContext
    not_before: float
    not_after: float


class ServerCertificate:
    """A certificate and key in two PEM files; `clock` is seconds since the epoch.

    Raises CertificateError when the first pair cannot be loaded. An expired first pair is served, with
    an error in the log: a server that others refuse is still better than none for its own users.
    """

    def __init__(
        self,
        certificate: Path,
        private_key: Path,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._files = (certificate, private_key)
        self._metrics = metrics
        self._clock = clock
        self._warn_after = 0.0
        self._seen = self._stamp()
        self._take(_load(certificate, private_key))
        self.context = _context()
        self.context.sni_callback = self._choose

    def reload(self) -> bool:
        """Load the files now; False, and an error in the log, when what they hold cannot be served."""
        self._seen = self._stamp()
        try:
            loaded = _load(*self._files)
            now = self._clock()
            if not loaded.not_before <= now < loaded.not_after and now < self._loaded.not_after:
                raise CertificateError("the certificate is not valid at this time")
        except CertificateError as error:
            self._metrics.certificate_failures.inc()
            log.error("certificate_not_loaded", certificate=str(self._files[0]), reason=str(error))
            return False
        self._take(loaded)
        log.info("certificate_loaded", certificate=str(self._files[0]), days_left=self._days_left())
        return True

    def check(self) -> None:
        """Reload when the files have changed; warn, once a day, when the certificate is about to expire."""
        if self._stamp() != self._seen:
            self.reload()
        now = self._clock()
        if self._loaded.not_after - now < WARN_SECONDS and now >= self._warn_after:
            self._warn_after = now + WARN_EVERY_SECONDS
            tell = log.warning if now < self._loaded.not_after else log.error
            tell("certificate_expires", certificate=str(self._files[0]), days_left=self._days_left())

    async def watch(self, every: float = WATCH_SECONDS) -> None:
        """Check until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(every)

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called in each handshake, whether the peer names a server or not."""
        connection.context = self._loaded.context

    def _take(self, loaded: _Loaded) -> None:
        self._loaded = loaded
        self._warn_after = 0.0
        self._metrics.certificate_expires.set(loaded.not_after)

    def _days_left(self) -> float:
        return round((self._loaded.not_after - self._clock()) / 86400, 1)

    def _stamp(self) -> _Stamp | None:
        """What changes with the files; None when one of them is missing."""
        try:
            states = [os.stat(path) for path in self._files]  # follows links, which is how renewals swap them
        except OSError:
            return None
        return tuple((state.st_ino, state.st_ctime_ns, state.st_size) for state in states)


def days_left(certificate: Path, private_key: Path) -> float:
    """How long a pair can be served. Raises CertificateError when it cannot be loaded."""
    return (_load(certificate, private_key).not_after - time.time()) / 86400


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _load(certificate: Path, private_key: Path) -> _Loaded:
    """Raises CertificateError."""
    context = _context()
    try:
        leaf = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
        private_key.read_bytes()  # OpenSSL does not say which file it lacks
        context.load_cert_chain(certificate, private_key, password="")  # never asks a terminal for one
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        if isinstance(error, OSError) and error.filename:
            raise CertificateError(f"{error.filename}: {error.strerror}") from error
        raise CertificateError(str(error)) from error
    return _Loaded(context, leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp())
