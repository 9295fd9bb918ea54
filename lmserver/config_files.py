"""The files and folders that a configuration names, looked at before anything is begun."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from lmserver import tls
from lmserver.config import Config


def file_problems(config: Config) -> list[str]:
    """What is wrong with them, a line each. The signing key may not be there yet: see `own_keys`."""
    return _folder(config.data_dir) + _authorities(config.federation.ca_file) + _certificate(config)


def _folder(path: Path) -> list[str]:
    """It is made where it is not there, so its nearest folder that is has to be ours too."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return [f"data_dir: {there} is not a folder"]
    if not os.access(there, os.W_OK | os.X_OK):
        return [f"data_dir: {there} cannot be written to: run lmserver as the user who owns it"]
    return []


def _authorities(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError as error:  # an SSLError is an OSError
        return [f"federation.ca_file: {path}: no PEM file of certificates: {error.strerror}"]
    return []


def _certificate(config: Config) -> list[str]:
    listener = config.federation_listener
    if listener.tls_certificate is None or listener.tls_private_key is None:
        return []
    try:
        tls.days_left(listener.tls_certificate, listener.tls_private_key)
    except tls.CertificateError as error:
        return [f"federation.tls_certificate: {listener.tls_certificate}: {error}"]
    return []
