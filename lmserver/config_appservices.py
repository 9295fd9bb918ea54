"""`appservices`: registration files of application services (AS API §Registration).

The format is the one every homeserver reads; keys we do not know are left alone, for bridges put keys of
their own there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lmserver.config_reader import read_yaml, split_url

MAX_SERVICES: Final = 100
MIN_TOKEN: Final = 16
ENCRYPTION: Final = "org.matrix.msc3202"
EPHEMERAL: Final = ("receive_ephemeral", "de.sorunome.msc2409.push_ephemeral", "push_ephemeral")


@dataclass(frozen=True, slots=True)
class Namespace:
    """The operator's regular expression, matched from the beginning of an ID."""

    pattern: re.Pattern[str]
    exclusive: bool

    def has(self, id_: str) -> bool:
        return self.pattern.match(id_) is not None


@dataclass(frozen=True, slots=True)
class AppService:
    """An application service; `url` None: it only sends, and is told of nothing."""

    id: str
    url: str | None
    as_token: str
    hs_token: str
    sender: str
    rate_limited: bool
    users: tuple[Namespace, ...]
    aliases: tuple[Namespace, ...]
    rooms: tuple[Namespace, ...]
    receives_ephemeral: bool
    encrypts: bool
    """It is told what its users' devices need, which these have of /sync no more."""

    def owns(self, user_id: str) -> bool:
        """Whether it may act as the user."""
        return user_id == self.sender or any(namespace.has(user_id) for namespace in self.users)

    def owns_alone(self, user_id: str) -> bool:
        return user_id == self.sender or any(n.exclusive and n.has(user_id) for n in self.users)

    def has_alias(self, alias: str) -> bool:
        return any(namespace.has(alias) for namespace in self.aliases)

    def has_room(self, room_id: str) -> bool:
        return any(namespace.has(room_id) for namespace in self.rooms)

    @property
    def room_namespaces(self) -> str:
        """By what it is interested in rooms that its users need not be in; empty for one that is not."""
        return "\n".join(namespace.pattern.pattern for namespace in (*self.rooms, *self.aliases))


def read_appservices(
    value: object, base: Path, server_name: str, problems: list[str]
) -> tuple[AppService, ...]:
    """A list of files; what is wrong is added to `problems`."""
    paths = [] if value is None else value
    if not isinstance(paths, list) or len(paths) > MAX_SERVICES or not all(isinstance(p, str) for p in paths):
        problems.append(f"appservices: expected a list of at most {MAX_SERVICES} registration files")
        return ()
    found = [_read(base / Path(path).expanduser(), server_name, problems) for path in paths]
    services = tuple(service for service in found if service is not None)
    problems += [
        f"appservices: two of them have the same {what}"
        for what in ("id", "as_token", "sender")
        if len({getattr(service, what) for service in services}) != len(services)
    ]
    return services


def _read(path: Path, server_name: str, problems: list[str]) -> AppService | None:
    where = f"appservices: {path}"
    try:
        raw = read_yaml(path)
    except (OSError, ValueError) as error:
        problems.append(f"{where}: {error.strerror if isinstance(error, OSError) else error}")
        return None
    if not isinstance(raw, dict):
        problems.append(f"{where}: expected a registration with keys")
        return None
    before = len(problems)
    texts = {
        key: _text(raw, key, where, problems) for key in ("id", "as_token", "hs_token", "sender_localpart")
    }
    if any(len(texts[key]) < MIN_TOKEN for key in ("as_token", "hs_token")):
        problems.append(f"{where}: as_token and hs_token have at least {MIN_TOKEN} characters")
    url = raw.get("url") or None
    parts = split_url(url)
    if url is not None and (parts is None or parts.scheme not in ("http", "https") or not parts.hostname):
        problems.append(f"{where}: url: expected an http or https URL, or null")
    namespaces = raw.get("namespaces") or {}
    if not isinstance(namespaces, dict):
        problems.append(f"{where}: namespaces: expected users, aliases and rooms")
        namespaces = {}
    made = AppService(
        texts["id"],
        url.rstrip("/") if isinstance(url, str) else None,
        texts["as_token"],
        texts["hs_token"],
        f"@{texts['sender_localpart']}:{server_name}",
        raw.get("rate_limited", True) is not False,
        _namespaces(namespaces, "users", where, problems),
        _namespaces(namespaces, "aliases", where, problems),
        _namespaces(namespaces, "rooms", where, problems),
        any(raw.get(key) is True for key in EPHEMERAL),
        any(raw.get(key) is True for key in EPHEMERAL) and raw.get(ENCRYPTION) is True,
    )
    return made if len(problems) == before else None


def _text(raw: Mapping[Any, Any], key: str, where: str, problems: list[str]) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        problems.append(f"{where}: {key}: expected text")
        return ""
    return value


def _namespaces(raw: Mapping[Any, Any], kind: str, where: str, problems: list[str]) -> tuple[Namespace, ...]:
    entries = raw.get(kind) or []
    try:
        return tuple(Namespace(re.compile(e["regex"]), e.get("exclusive") is True) for e in entries)
    except (TypeError, KeyError, AttributeError, re.error) as error:
        problems.append(f"{where}: namespaces.{kind}: expected entries with regex and exclusive: {error}")
        return ()
