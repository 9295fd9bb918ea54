"""The configuration: YAML in, frozen dataclasses out, every problem told at once.

Unknown keys are errors: a misspelt key that is silently ignored is how servers end up open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from lmserver.config_admin import AdminListener, read_admin
from lmserver.config_appservices import AppService, read_appservices
from lmserver.config_notaries import Notary, read_notaries
from lmserver.config_oidc import OidcProvider, read_providers, read_trusted_clients
from lmserver.config_reader import ConfigReader, Network, shown
from lmserver.config_turn import Turn, read_turn
from lmserver.protocol import ids
from lmserver.protocol.room_versions import LM_02_ID, SUPPORTED
from lmserver.web.limits import Rate


class ConfigError(Exception):
    """What is wrong with the configuration, a line for each problem, with what to do."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class ClientListener:
    """Where clients connect, plain HTTP; a proxy in front terminates TLS."""

    host: str
    port: int
    public_url: str | None


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


@dataclass(frozen=True, slots=True)
class Registration:
    mode: Literal["closed", "token", "open"]
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rooms:
    """`map_numeric_versions`: Matrix's own versions mean the default one; `list_for_servers`: the public
    list is for other servers too; `purge_empty_after_days` None: rooms that nobody here is in are kept."""

    default_version: str
    map_numeric_versions: bool
    list_for_servers: bool
    purge_empty_after_days: int | None


@dataclass(frozen=True, slots=True)
class ServerNotices:
    """Who tells users what the operator has to say; `can_be_declined`: they may leave the room for it."""

    localpart: str
    name: str
    can_be_declined: bool


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


@dataclass(frozen=True, slots=True)
class Logging:
    level: str
    format: Literal["console", "json"]


@dataclass(frozen=True, slots=True)
class MetricsListener:
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the server is told from outside."""

    server_name: str
    data_dir: Path
    signing_key_path: Path
    database_url: str | None
    database_pool: int
    client: ClientListener
    federation_listener: FederationListener
    federation: Federation
    registration: Registration
    oidc_providers: tuple[OidcProvider, ...]
    appservices: tuple[AppService, ...]
    trusted_clients: tuple[str, ...]
    presence: bool
    search_all_users: bool
    turn: Turn | None
    server_notices: ServerNotices
    rooms: Rooms
    media: Media
    url_previews: UrlPreviews
    logging: Logging
    metrics: MetricsListener | None
    admin: AdminListener | None
    limits: Mapping[str, Rate]
    trusted_proxies: tuple[Network, ...]

    def warnings(self) -> list[str]:
        """What an operator should know before anything goes wrong."""
        found = []
        listener = self.federation_listener
        if listener.tls_certificate is None and not _is_loopback(listener.host):
            found.append(
                "the federation listener speaks plain HTTP to the world: give it a certificate, or let it"
                " listen on 127.0.0.1 behind a proxy that terminates TLS"
            )
        plain = sorted(self.federation.plain_http_servers)
        found += [f"{name} is contacted over plain HTTP: for tests only" for name in plain]
        if self.federation.well_known is not None and ":" in self.server_name:
            found.append("federation.well_known is never asked for: server_name says the port")
        if self.admin is not None and not _is_loopback(self.admin.host):
            found.append(
                "the admin listener speaks plain HTTP beyond this machine: let it listen on 127.0.0.1, behind"
                " a proxy that terminates TLS"
            )
        if self.registration.mode == "open":
            found.append("registration is open: anybody who reaches the client API can make accounts")
        return found


MB = 1_000_000

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


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_TOP = {
    "server_name", "data_dir", "signing_key_path", "database", "client", "federation", "registration",
    "rooms", "presence", "user_directory", "turn", "server_notices", "media", "url_previews", "logging",
    "metrics", "admin", "limits", "trusted_proxies", "oidc_providers", "sso", "appservices",
}  # fmt: skip


def load_config(path: Path) -> Config:
    """Read a configuration file; raises ConfigError with every problem found."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: not YAML: {error}"]) from error
    return parse_config(raw, path.resolve().parent)


def parse_config(raw: object, base: Path) -> Config:
    """Check a parsed configuration; relative paths are relative to `base`."""
    if not isinstance(raw, dict):
        raise ConfigError(["the configuration is not a mapping: begin with `lmserver generate-config`"])
    reader = ConfigReader(base)
    reader.unknown(raw, _TOP)
    config = _config(reader, raw)
    if reader.problems:
        raise ConfigError(reader.problems)
    return config


def _config(reader: ConfigReader, raw: dict[str, Any]) -> Config:
    name = reader.value(raw, "server_name", str, "", "")
    if not ids.is_server_name(name):
        reader.problems.append(
            f"server_name: {shown(name)} is not a DNS name with an optional port, such as example.org"
        )
    data_dir = reader.file(raw, "data_dir", "") or reader.base / "lmserver-data"
    database = reader.section(raw, "database", {"url", "pool_size"})
    rooms = reader.section(raw, "rooms", _ROOMS)
    presence = reader.section(raw, "presence", {"enabled"})
    directory = reader.section(raw, "user_directory", {"search_all_users"})
    logging = reader.section(raw, "logging", {"level", "format"})
    return Config(
        server_name=name,
        data_dir=data_dir,
        signing_key_path=reader.file(raw, "signing_key_path", "") or data_dir / "signing.key",
        database_url=_database_url(reader, database),
        database_pool=max(2, reader.value(database, "pool_size", int, 10, "database.")),
        client=_client(reader, raw),
        federation_listener=_federation_listener(reader, raw),
        federation=_federation(reader, raw),
        registration=_registration(reader, raw),
        oidc_providers=_oidc_providers(reader, raw),
        appservices=read_appservices(raw.get("appservices"), reader.base, name, reader.problems),
        trusted_clients=read_trusted_clients(
            reader.section(raw, "sso", {"trusted_clients"}).get("trusted_clients"), reader.problems
        ),
        presence=reader.value(presence, "enabled", bool, False, "presence."),
        search_all_users=reader.value(directory, "search_all_users", bool, False, "user_directory."),
        server_notices=_server_notices(reader, raw, name),
        turn=read_turn(raw.get("turn"), reader.problems),
        rooms=Rooms(
            reader.choice(rooms, "default_version", tuple(SUPPORTED), LM_02_ID, "rooms."),
            reader.value(rooms, "map_numeric_versions", bool, True, "rooms."),
            reader.value(rooms, "list_for_servers", bool, True, "rooms."),
            _purge_days(reader, rooms),
        ),
        media=_media(reader, raw),
        url_previews=_url_previews(reader, raw),
        logging=Logging(
            reader.choice(logging, "level", ("debug", "info", "warning", "error"), "info", "logging."),
            reader.choice(logging, "format", ("console", "json"), "json", "logging."),
        ),
        metrics=_metrics(reader, raw),
        admin=read_admin(raw.get("admin"), reader.problems),
        limits=_limits(reader, raw),
        trusted_proxies=reader.networks(raw, "trusted_proxies", ""),
    )


def _database_url(reader: ConfigReader, section: dict[str, Any]) -> str | None:
    url: str | None = reader.value(section, "url", str, None, "database.")
    if url is not None and not url.startswith(("postgresql://", "postgres://")):
        reader.problems.append("database.url: must begin with postgresql://")
    return url


def _client(reader: ConfigReader, raw: dict[str, Any]) -> ClientListener:
    section = reader.section(raw, "client", {"host", "port", "public_url"})
    url = reader.value(section, "public_url", str, None, "client.")
    if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc):
        reader.problems.append(f"client.public_url: {shown(url)} is not an http or https URL")
    return ClientListener(
        reader.value(section, "host", str, "127.0.0.1", "client."),
        reader.port(section, "port", 8008, "client."),
        None if url is None else url.rstrip("/"),
    )


_FEDERATION = {
    "mode", "well_known", "host", "port", "tls_certificate", "tls_private_key", "ca_file",
    "plain_http_servers", "allowed_networks", "notaries", "blocked_servers",
}  # fmt: skip


def _federation_listener(reader: ConfigReader, raw: dict[str, Any]) -> FederationListener:
    section = reader.section(raw, "federation", _FEDERATION)
    certificate = reader.file(section, "tls_certificate", "federation.")
    key = reader.file(section, "tls_private_key", "federation.")
    if (certificate is None) != (key is None):
        reader.problems.append(
            "federation: tls_certificate and tls_private_key go together; set both or none"
        )
    return FederationListener(
        reader.value(section, "host", str, "0.0.0.0", "federation."),  # noqa: S104 - peers must reach it
        reader.port(section, "port", 8448, "federation."),
        certificate,
        key,
    )


def _federation(reader: ConfigReader, raw: dict[str, Any]) -> Federation:
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


def _registration(reader: ConfigReader, raw: dict[str, Any]) -> Registration:
    section = reader.section(raw, "registration", {"mode", "tokens"})
    mode = reader.choice(section, "mode", ("closed", "token", "open"), "closed", "registration.")
    tokens = reader.strings(section, "tokens", "registration.")
    if any(len(token) < 8 for token in tokens):
        reader.problems.append("registration.tokens: a token has at least 8 characters")
    return Registration(mode, tuple(tokens))


def _oidc_providers(reader: ConfigReader, raw: dict[str, Any]) -> tuple[OidcProvider, ...]:
    found = read_providers(raw.get("oidc_providers"), reader.base, reader.problems)
    client = raw.get("client")
    if found and not (isinstance(client, dict) and client.get("public_url")):
        reader.problems.append("oidc_providers: client.public_url is needed, where browsers come back to")
    return found


def _server_notices(reader: ConfigReader, raw: dict[str, Any], server: str) -> ServerNotices:
    section = reader.section(raw, "server_notices", {"localpart", "name", "can_be_declined"})
    localpart = reader.value(section, "localpart", str, "notices", "server_notices.")
    if not ids.is_user_id(f"@{localpart}:{server if ids.is_server_name(server) else 'example.org'}"):
        reader.problems.append(f"server_notices.localpart: {shown(localpart)} can be no user's name")
    return ServerNotices(
        localpart,
        reader.value(section, "name", str, "Server notices", "server_notices."),
        reader.value(section, "can_be_declined", bool, False, "server_notices."),
    )


_ROOMS = {"default_version", "map_numeric_versions", "list_for_servers", "purge_empty_after_days"}


def _purge_days(reader: ConfigReader, rooms: dict[str, Any]) -> int | None:
    if "purge_empty_after_days" in rooms and rooms["purge_empty_after_days"] is None:
        return None
    days: int = reader.value(rooms, "purge_empty_after_days", int, 30, "rooms.")
    if not 0 < days <= 36_500:
        reader.problems.append(f"rooms.purge_empty_after_days: expected 1 to 36500 days, found {days}")
    return days


def _media(reader: ConfigReader, raw: dict[str, Any]) -> Media:
    known = {"max_upload_size", "max_remote_size", "remote_cache_size", "user_quota", "remote_retention_days"}
    section = reader.section(raw, "media", known)
    remote = reader.size(section, "max_remote_size", 100 * MB, "media.")
    cache = reader.size(section, "remote_cache_size", 10_000 * MB, "media.")
    if cache < 2 * remote:
        reader.problems.append("media.remote_cache_size: less than two media of max_remote_size")
    quota = section.get("user_quota", 5_000 * MB)
    days = reader.value(section, "remote_retention_days", int, None, "media.")
    if days is not None and not 0 < days <= 36_500:
        reader.problems.append(f"media.remote_retention_days: expected 1 to 36500 days, found {days}")
    return Media(
        reader.size(section, "max_upload_size", 50 * MB, "media."),
        remote,
        cache,
        None if quota is None else reader.size(section, "user_quota", 5_000 * MB, "media."),
        days,
    )


def _url_previews(reader: ConfigReader, raw: dict[str, Any]) -> UrlPreviews:
    known = {"enabled", "max_image_size", "cache_size", "timeout", "allowed_networks", "denied_networks"}
    section = reader.section(raw, "url_previews", known)
    timeout = reader.value(section, "timeout", int, 10, "url_previews.")
    if not 0 < timeout <= 25:
        reader.problems.append(f"url_previews.timeout: expected 1 to 25 seconds, found {timeout}")
    return UrlPreviews(
        reader.value(section, "enabled", bool, False, "url_previews."),
        reader.size(section, "max_image_size", 5 * MB, "url_previews."),
        reader.size(section, "cache_size", 1_000 * MB, "url_previews."),
        timeout,
        reader.networks(section, "allowed_networks", "url_previews."),
        reader.networks(section, "denied_networks", "url_previews."),
    )


def _metrics(reader: ConfigReader, raw: dict[str, Any]) -> MetricsListener | None:
    if raw.get("metrics") is None:
        return None
    section = reader.section(raw, "metrics", {"host", "port"})
    return MetricsListener(
        reader.value(section, "host", str, "127.0.0.1", "metrics."),
        reader.port(section, "port", 9100, "metrics."),
    )


def _limits(reader: ConfigReader, raw: dict[str, Any]) -> dict[str, Rate]:
    section = reader.section(raw, "limits", set(DEFAULT_LIMITS))
    return {name: _rate(reader, section, name, default) for name, default in DEFAULT_LIMITS.items()}


def _rate(reader: ConfigReader, section: dict[str, Any], name: str, default: Rate) -> Rate:
    entry = reader.section(section, name, {"per_second", "burst"}, "limits.")
    rate = entry.get("per_second", default.per_second)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0:
        reader.problems.append(f"limits.{name}.per_second: expected a number above 0, found {shown(rate)}")
        rate = default.per_second
    return Rate(float(rate), max(1, reader.value(entry, "burst", int, default.burst, f"limits.{name}.")))
