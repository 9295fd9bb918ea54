"""`federation` of the configuration: where servers connect, and how we deal with others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmserver.config_notaries import Notary, read_notaries
from lmserver.config_reader import ConfigReader, Network, shown
from lmserver.protocol import ids

_FEDERATION = {
    "mode", "well_known", "host", "port", "tls_certificate", "tls_private_key", "ca_file",
    "plain_http_servers", "allowed_networks", "notaries", "blocked_servers",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FederationListener:
    """Where servers connect. Without a certificate it is plain HTTP, behind a proxy that terminates TLS."""

    host: str
    port: int
    tls_certificate: Path | None
    tls_private_key: Path | None


@dataclass(frozen=True, slots=True)
class Federation:
    mode: Literal["linearized"]
    well_known: str | None
    plain_http_servers: frozenset[str]
    allowed_networks: tuple[Network, ...]
    ca_file: Path | None
    notaries: tuple[Notary, ...]
    blocked_servers: frozenset[str]


def read_federation_listener(reader: ConfigReader, raw: dict[str, Any]) -> FederationListener:
    section = reader.section(raw, "federation", _FEDERATION)
    certificate = reader.file(section, "tls_certificate", "federation.")
    key = reader.file(section, "tls_private_key", "federation.")
    if (certificate is None) != (key is None):
        reader.problems.append(
            "federation: tls_certificate and tls_private_key go together; set both or none"
        )
    return FederationListener(
        reader.host(section, "0.0.0.0", "federation."),  # noqa: S104 - peers must reach it
        reader.port(section, "port", 8448, "federation."),
        certificate,
        key,
    )


def read_federation(reader: ConfigReader, raw: dict[str, Any]) -> Federation:
    section = raw.get("federation") if isinstance(raw.get("federation"), dict) else {}
    section = section or {}
    mode = reader.choice(section, "mode", ("linearized", "dual_stack"), "linearized", "federation.")
    if mode == "dual_stack":
        reader.problems.append("federation.mode: dual_stack is not built yet; use linearized")
    well_known = reader.value(section, "well_known", str, None, "federation.")
    if well_known is not None and not ids.is_server_name(well_known):
        reader.problems.append(
            f"federation.well_known: {shown(well_known)} is not a DNS name with an optional port"
        )
    plain, blocked = (_servers(reader, section, key) for key in ("plain_http_servers", "blocked_servers"))
    return Federation(
        "linearized",
        well_known,
        plain,
        reader.networks(section, "allowed_networks", "federation."),
        reader.file(section, "ca_file", "federation."),
        read_notaries(section.get("notaries"), reader.problems),
        blocked,
    )


def _servers(reader: ConfigReader, section: dict[str, Any], key: str) -> frozenset[str]:
    names = reader.strings(section, key, "federation.")
    for name in names:
        if not ids.is_server_name(name):
            reader.problems.append(f"federation.{key}: {shown(name)} is not a server name")
    return frozenset(names)
