"""Values out of nested mappings, with every problem on the way remembered."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import yaml

Network = IPv4Network | IPv6Network

_NAMES = {str: "text", bool: "true or false", int: "a whole number", list: "a list", dict: "a section"}


class ConfigReader:
    """Takes values out of nested mappings and remembers what is wrong with them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.problems: list[str] = []

    def section(self, owner: dict[str, Any], key: str, known: set[str], path: str = "") -> dict[str, Any]:
        value = owner.get(key)
        where = f"{path}{key}"
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.append(f"{where}: expected a section with keys, found {shown(value)}")
            return {}
        self.unknown(value, known, f"{where}.")
        return value

    def unknown(self, section: dict[Any, Any], known: set[str], path: str = "") -> None:
        for key in section:
            if key not in known:
                self.problems.append(f"{path}{key}: unknown key; known here: {', '.join(sorted(known))}")

    def value(self, section: dict[str, Any], key: str, kind: type, default: Any, path: str) -> Any:
        value = section.get(key, default)
        if value is None and default is None:
            return None
        wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        if wrong:
            self.problems.append(f"{path}{key}: expected {_NAMES[kind]}, found {shown(value)}")
            return default
        return value

    def port(self, section: dict[str, Any], key: str, default: int, path: str) -> int:
        value: int = self.value(section, key, int, default, path)
        if not 0 <= value <= 65535:
            self.problems.append(f"{path}{key}: {value} is not a port (0 to 65535)")
            return default
        return value

    def host(self, section: dict[str, Any], default: str, path: str) -> str:
        """An address to listen at. Empty would be every address there is, which has to be said."""
        value: str = self.value(section, "host", str, default, path)
        if not value or value != value.strip():
            self.problems.append(f"{path}host: expected an address such as 127.0.0.1, found {shown(value)}")
            return default
        return value

    def number(
        self, section: dict[str, Any], key: str, default: int | None, path: str, most: int, *, least: int = 1
    ) -> Any:
        """A whole number within bounds; None only where that is the default."""
        value = self.value(section, key, int, default, path)
        if value is not None and not least <= value <= most:
            self.problems.append(f"{path}{key}: expected {least} to {most}, found {value}")
            return default
        return value

    def size(self, section: dict[str, Any], key: str, default: int, path: str) -> int:
        value: int = self.value(section, key, int, default, path)
        if value <= 0:
            self.problems.append(f"{path}{key}: expected a number of bytes above 0, found {value}")
            return default
        return value

    def file(self, section: dict[str, Any], key: str, path: str) -> Path | None:
        value = self.value(section, key, str, None, path)
        return None if value is None else self.base / Path(value).expanduser()

    def choice(
        self, section: dict[str, Any], key: str, choices: tuple[str, ...], default: str, path: str
    ) -> Any:
        value = self.value(section, key, str, default, path)
        if value not in choices:
            self.problems.append(f"{path}{key}: {shown(value)} is not one of {', '.join(choices)}")
            return default
        return value

    def strings(self, section: dict[str, Any], key: str, path: str) -> list[str]:
        value = section.get(key) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.problems.append(f"{path}{key}: expected a list of strings, found {shown(value)}")
            return []
        return value

    def networks(self, section: dict[str, Any], key: str, path: str) -> tuple[Network, ...]:
        found: list[Network] = []
        for text in self.strings(section, key, path):
            try:
                found.append(ip_network(text))
            except ValueError as error:
                self.problems.append(f"{path}{key}: {shown(text)} is not a network like 10.0.0.0/8: {error}")
        return tuple(found)


def read_yaml(path: Path) -> object:
    """What a file holds. Raises OSError, and ValueError with one line that says what is wrong where."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"not YAML: {where}{what}") from error
    except ValueError as error:  # a date such as 2026-13-01
        raise ValueError(f"not YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    """By itself YAML lets the last of two equal keys win, in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def split_url(text: object) -> SplitResult | None:
    """The parts of a URL; None for what is none, such as http://[::1 or http://a:port."""
    if not isinstance(text, str):
        return None
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return None
    return parts


def shown(value: object) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
