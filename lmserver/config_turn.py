"""`turn` of the configuration: relays for calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KNOWN = {"uris", "shared_secret", "username", "password", "ttl_seconds"}
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Turn:
    """Relays, and what lets users in: a secret that credentials are made with, or one user name and
    password for all. `ttl_seconds` is how long clients may use what they are given."""

    uris: tuple[str, ...]
    shared_secret: str | None
    username: str | None
    password: str | None
    ttl_seconds: int


def read_turn(value: object, problems: list[str]) -> Turn | None:
    """The section, None where there is none; what is wrong with it goes to `problems`."""
    if value is None:
        return None
    if not isinstance(value, dict):
        problems.append("turn: expected a section with keys")
        return None
    problems += [
        f"turn.{key}: unknown key; known here: {', '.join(sorted(KNOWN))}"
        for key in value
        if key not in KNOWN
    ]
    uris, ttl = value.get("uris"), value.get("ttl_seconds", DAY)
    if not isinstance(uris, list) or not uris or not all(_is_uri(uri) for uri in uris):
        problems.append("turn.uris: expected a list of addresses like turn:turn.example.org?transport=udp")
        uris = []
    if type(ttl) is not int or ttl <= 0:
        problems.append("turn.ttl_seconds: expected a number of seconds above 0")
        ttl = DAY
    secret, name, password = (
        _text(value, key, problems) for key in ("shared_secret", "username", "password")
    )
    if (secret is None) == (name is None or password is None):
        problems.append("turn: set shared_secret, or username and password")
    return Turn(tuple(uris), secret, name, password, ttl)


def _is_uri(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("turn:", "turns:", "stun:", "stuns:"))


def _text(section: dict[str, Any], key: str, problems: list[str]) -> str | None:
    value = section.get(key)
    if value is None or (isinstance(value, str) and value):
        return value
    problems.append(f"turn.{key}: expected text")
    return None
