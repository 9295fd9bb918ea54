"""`limits` of the configuration: how often what may be asked."""

from __future__ import annotations

from math import inf
from typing import Any

from lmserver.config_reader import ConfigReader, shown
from lmserver.web.limits import Rate

MAX_BURST = 1_000_000_000
DEFAULT_LIMITS = {
    "login": Rate(0.2, 10),
    "registration": Rate(0.2, 5),
    "send": Rate(20.0, 100),
    "create_room": Rate(0.2, 20),
    "media_upload": Rate(1.0, 50),
    "media_download": Rate(20.0, 200),
    "url_preview": Rate(0.5, 50),
    "join": Rate(0.5, 30),
    "invite": Rate(0.5, 50),
    "knock": Rate(0.1, 10),
    "search": Rate(1.0, 30),
    "report": Rate(0.05, 20),
    "invites_from_user": Rate(0.2, 50),
    "invites_from_server": Rate(2.0, 200),
    "invites_to_user": Rate(0.02, 50),
    "requests": Rate(50.0, 1000),
    "anonymous": Rate(20.0, 200),
    "unauthorized": Rate(20.0, 500),
    "room_joins": Rate(10.0, 300),
    "federation_membership": Rate(5.0, 100),
    "federation_knock": Rate(1.0, 50),
    "federation_events": Rate(20.0, 500),
    "federation_devices": Rate(20.0, 200),
    "federation_claims": Rate(0.1, 20),
    "claim": Rate(2.0, 100),
    "federation_media": Rate(10.0, 100),
    "federation_requests": Rate(200.0, 2000),
    "federation_room_events": Rate(200.0, 5000),
    "federation_room_joins": Rate(1.0, 50),
    "federation_edus": Rate(200.0, 5000),
    "key_query": Rate(2.0, 50),
    "new_servers": Rate(1.0, 50),
}
"""What each rate protects is said in docs/configuration.md; every endpoint's `rate` is one of these."""


def read_limits(reader: ConfigReader, raw: dict[str, Any]) -> dict[str, Rate]:
    section = reader.section(raw, "limits", set(DEFAULT_LIMITS))
    return {name: _rate(reader, section, name, default) for name, default in DEFAULT_LIMITS.items()}


def _rate(reader: ConfigReader, section: dict[str, Any], name: str, default: Rate) -> Rate:
    entry = reader.section(section, name, {"per_second", "burst"}, "limits.")
    rate = entry.get("per_second", default.per_second)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < inf:
        reader.problems.append(f"limits.{name}.per_second: expected a number above 0, found {shown(rate)}")
        rate = default.per_second
    return Rate(float(rate), reader.number(entry, "burst", default.burst, f"limits.{name}.", MAX_BURST))
