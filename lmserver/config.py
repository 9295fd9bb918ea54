"""The configuration: YAML in, frozen dataclasses out, every problem told at once.

Unknown keys are errors: a misspelt key that is silently ignored is how servers end up open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from lmserver.config_admin import AdminListener, read_admin
from lmserver.config_appservices import AppService, read_appservices
from lmserver.config_federation import (
    Federation,
    FederationListener,
    read_federation,
    read_federation_listener,
)
from lmserver.config_limits import read_limits
from lmserver.config_media import Media, UrlPreviews, read_media, read_url_previews
from lmserver.config_oidc import OidcProvider, read_providers, read_trusted_clients
from lmserver.config_reader import ConfigReader, Network, read_yaml, shown, split_url
from lmserver.config_turn import Turn, read_turn
from lmserver.protocol import ids
from lmserver.protocol.room_versions import LM_02_ID, SUPPORTED
from lmserver.web.limits import Rate

MAX_POOL = 1000


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


def _shared_ports(config: Config) -> list[str]:
    """Two listeners at one port: the second would not start."""
    client, federation = config.client, config.federation_listener
    admin, metrics = config.admin, config.metrics
    found = [("client", client.host, client.port), ("federation", federation.host, federation.port)]
    found += [("admin", admin.host, admin.port)] if admin is not None else []
    found += [("metrics", metrics.host, metrics.port)] if metrics is not None else []
    return [
        f"{first}.port and {second}.port are both {port}: give each listener a port of its own"
        for (first, host, port), (second, other, same) in combinations(found, 2)
        if port == same != 0 and (host == other or not _EVERYWHERE.isdisjoint((host, other)))
    ]


_EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - compared, not listened at


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
        raw = read_yaml(path)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except ValueError as error:
        raise ConfigError([f"{path}: {error}"]) from error
    return parse_config(raw, path.resolve().parent)


def parse_config(raw: object, base: Path) -> Config:
    """Check a parsed configuration; relative paths are relative to `base`."""
    if not isinstance(raw, dict):
        raise ConfigError(["the configuration is not a mapping: begin with `lmserver generate-config`"])
    reader = ConfigReader(base)
    reader.unknown(raw, _TOP)
    config = _config(reader, raw)
    reader.problems += _shared_ports(config)
    if reader.problems:
        raise ConfigError(reader.problems)
    return config


def _config(reader: ConfigReader, raw: dict[str, Any]) -> Config:
    name = reader.value(raw, "server_name", str, "", "")
    if isinstance(raw.get("server_name", ""), str) and not ids.is_server_name(name):
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
        database_pool=reader.number(database, "pool_size", 10, "database.", MAX_POOL, least=2),
        client=_client(reader, raw),
        federation_listener=read_federation_listener(reader, raw),
        federation=read_federation(reader, raw),
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
        media=read_media(reader, raw),
        url_previews=read_url_previews(reader, raw),
        logging=Logging(
            reader.choice(logging, "level", ("debug", "info", "warning", "error"), "info", "logging."),
            reader.choice(logging, "format", ("console", "json"), "json", "logging."),
        ),
        metrics=_metrics(reader, raw),
        admin=read_admin(raw.get("admin"), reader.problems),
        limits=read_limits(reader, raw),
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
    parts = split_url(url)
    if url is not None and (parts is None or parts.scheme not in ("http", "https") or not parts.hostname):
        reader.problems.append(f"client.public_url: {shown(url)} is not an http or https URL")
    return ClientListener(
        reader.host(section, "127.0.0.1", "client."),
        reader.port(section, "port", 8008, "client."),
        None if url is None else url.rstrip("/"),
    )


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
    days: int = reader.number(rooms, "purge_empty_after_days", 30, "rooms.", 36_500)
    return days


def _metrics(reader: ConfigReader, raw: dict[str, Any]) -> MetricsListener | None:
    if raw.get("metrics") is None:
        return None
    section = reader.section(raw, "metrics", {"host", "port"})
    return MetricsListener(
        reader.host(section, "127.0.0.1", "metrics."),
        reader.port(section, "port", 9100, "metrics."),
    )
