"""`media` and `url_previews` of the configuration: how much is kept, and what is fetched to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmserver.config_reader import ConfigReader, Network

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Media:
    """Bytes, and days; `user_quota` and `remote_retention_days` None: no end."""

    max_upload_size: int
    max_remote_size: int
    remote_cache_size: int
    user_quota: int | None
    remote_retention_days: int | None


@dataclass(frozen=True, slots=True)
class UrlPreviews:
    """Bytes and seconds; the networks are beside those that are never connected to."""

    enabled: bool
    max_image_size: int
    cache_size: int
    timeout: int
    allowed_networks: tuple[Network, ...]
    denied_networks: tuple[Network, ...]


def read_media(reader: ConfigReader, raw: dict[str, Any]) -> Media:
    known = {"max_upload_size", "max_remote_size", "remote_cache_size", "user_quota", "remote_retention_days"}
    section = reader.section(raw, "media", known)
    remote = reader.size(section, "max_remote_size", 100 * MB, "media.")
    cache = reader.size(section, "remote_cache_size", 10_000 * MB, "media.")
    if cache < 2 * remote:
        reader.problems.append("media.remote_cache_size: less than two media of max_remote_size")
    quota = section.get("user_quota", 5_000 * MB)
    return Media(
        reader.size(section, "max_upload_size", 50 * MB, "media."),
        remote,
        cache,
        None if quota is None else reader.size(section, "user_quota", 5_000 * MB, "media."),
        reader.number(section, "remote_retention_days", None, "media.", 36_500),
    )


def read_url_previews(reader: ConfigReader, raw: dict[str, Any]) -> UrlPreviews:
    known = {"enabled", "max_image_size", "cache_size", "timeout", "allowed_networks", "denied_networks"}
    section = reader.section(raw, "url_previews", known)
    return UrlPreviews(
        reader.value(section, "enabled", bool, False, "url_previews."),
        reader.size(section, "max_image_size", 5 * MB, "url_previews."),
        reader.size(section, "cache_size", 1_000 * MB, "url_previews."),
        reader.number(section, "timeout", 10, "url_previews.", 25),
        reader.networks(section, "allowed_networks", "url_previews."),
        reader.networks(section, "denied_networks", "url_previews."),
    )
