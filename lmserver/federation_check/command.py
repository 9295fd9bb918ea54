"""The command: a setting from a configuration, or from nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from lmserver import logs, own_keys
from lmserver.config import ConfigError, load_config
from lmserver.federation_check.check import Setting, check
from lmserver.federation_client.addresses import AddressGuard
from lmserver.federation_client.dns_lookup import SystemDns


def run(server: str, config_path: Path | None, *, as_json: bool) -> int:
    """0 when the server can be federated with, 1 when not. Raises ConfigError."""
    logs.configure("error", "console")
    setting = _setting(config_path)
    report = asyncio.run(check(server, setting))
    if as_json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        print(report.as_text(unicode=(sys.stdout.encoding or "").lower().startswith("utf")))
    return 0 if report.ok else 1


def _setting(config_path: Path | None) -> Setting:
    if config_path is None:
        return Setting(SystemDns(), AddressGuard())
    config = load_config(config_path)
    federation = config.federation
    if federation.ca_file is not None and not federation.ca_file.exists():
        raise ConfigError([f"federation.ca_file: {federation.ca_file} does not exist"])
    return Setting(
        SystemDns(),
        AddressGuard(federation.allowed_networks),
        federation.ca_file,
        own_keys.load(config.signing_key_path, config.server_name).signing,
        federation.plain_http_servers,
    )
