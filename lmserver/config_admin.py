"""`admin` of the configuration: where operators reach the admin API and its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KNOWN = {"host", "port", "page"}
DEFAULT_PORT = 8009


@dataclass(frozen=True, slots=True)
class AdminListener:
    """A listener of its own, plain HTTP; `page` serves /admin on it beside the API."""

    host: str
    port: int
    page: bool


def read_admin(value: object, problems: list[str]) -> AdminListener | None:
    """The section, None where there is none; what is wrong with it goes to `problems`."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        problems.append("admin: expected a section with keys")
        return None
    section: Mapping[str, Any] = value
    problems += [
        f"admin.{key}: unknown key; known here: {', '.join(sorted(KNOWN))}"
        for key in section
        if key not in KNOWN
    ]
    host, port, page = (
        section.get("host", "127.0.0.1"),
        section.get("port", DEFAULT_PORT),
        section.get("page"),
    )
    if not isinstance(host, str) or not host:
        problems.append("admin.host: expected text")
        host = "127.0.0.1"
    if type(port) is not int or not 0 <= port <= 65535:
        problems.append("admin.port: expected a port (0 to 65535)")
        port = DEFAULT_PORT
    if not isinstance(page, bool | None):
        problems.append("admin.page: expected true or false")
    return AdminListener(host, port, page is True)
