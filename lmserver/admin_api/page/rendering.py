"""Pages from templates. Everything from outside is escaped; nothing runs, nothing is embedded, nobody may
frame a page or learn where somebody came from (attack C15)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lmserver.web.endpoint import Reply

FOLDER: Final = Path(__file__).parent

SAFE: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
STYLE: Final = (FOLDER / "admin.css").read_bytes()

_environment = Environment(
    loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
_environment.filters["part"] = lambda value: quote(str(value), safe="")
_environment.filters["time"] = lambda at_ms: (
    "never" if not at_ms else datetime.fromtimestamp(min(at_ms, 2**45) / 1000, UTC).strftime("%Y-%m-%d %H:%M")
)


def page(name: str, status: int = 200, headers: dict[str, str] | None = None, **values: Any) -> Reply:
    """A page of a template."""
    text = _environment.get_template(f"{name}.html").render(**values)
    html = {"Content-Type": "text/html; charset=utf-8"}
    return Reply(status, text.encode(errors="replace"), {**html, **SAFE, **(headers or {})})


def see(path: str, headers: dict[str, str] | None = None) -> Reply:
    """Look there now, whatever the method was."""
    return Reply(303, b"", {"Content-Type": "text/plain", "Location": path, **SAFE, **(headers or {})})


def link(path: str, **query: Any) -> str:
    """A path with those members of a query that are something."""
    said = {key: value for key, value in query.items() if value}
    return f"{path}?{urlencode(said)}" if said else path
