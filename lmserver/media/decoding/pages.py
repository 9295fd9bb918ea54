"""What an HTML page says about itself: Open Graph, Twitter's cards, its title, its first words."""

from __future__ import annotations

import json
import re
import unicodedata

from bs4 import BeautifulSoup, Tag
from bs4.filter import SoupStrainer

MAX_PAGE = 1 << 20
MAX_TITLE = 300
MAX_TEXT = 1000
MAX_URL = 2048
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)

_OF_USE = SoupStrainer(["meta", "title", "h1", "h2", "p"])

_SAID_BY = {
    "og:title": ("og:title", "twitter:title"),
    "og:description": ("og:description", "twitter:description", "description"),
    "og:image": ("og:image:secure_url", "og:image", "og:image:url", "twitter:image", "twitter:image:src"),
    "og:site_name": ("og:site_name",),
    "og:type": ("og:type",),
    "og:url": ("og:url",),
}


def describe(path: str, charset: str) -> bytes:
    """JSON of the properties found in the page's first MAX_PAGE bytes; texts are clean and short."""
    with open(path, "rb") as file:
        data = file.read(MAX_PAGE)
    soup = BeautifulSoup(_decoded(data, charset), "html.parser", parse_only=_OF_USE)
    said = _metas(soup)
    found = {}
    for name, sources in _SAID_BY.items():
        value = next((said[source] for source in sources if said.get(source)), "")
        if value:
            found[name] = value
    found.setdefault("og:title", _text_of(soup, ("title", "h1", "h2")))
    found.setdefault("og:description", _text_of(soup, ("p",)))
    return json.dumps({name: _clean(name, value) for name, value in found.items() if value}).encode()


def _decoded(data: bytes, charset: str) -> str:
    in_page = _CHARSET.search(data[:2048])
    for name in (charset, in_page[1].decode() if in_page else "", "utf-8"):
        try:
            return data.decode(name, "replace")
        except (LookupError, UnicodeError, ValueError):
            continue
    return ""


def _metas(soup: BeautifulSoup) -> dict[str, str]:
    """The first content of each name or property."""
    said: dict[str, str] = {}
    for tag in soup.find_all("meta", limit=500):
        if isinstance(tag, Tag):
            name, content = tag.get("property") or tag.get("name"), tag.get("content")
            if isinstance(name, str) and isinstance(content, str) and content.strip():
                said.setdefault(name.strip().lower(), content)
    return said


def _text_of(soup: BeautifulSoup, names: tuple[str, ...]) -> str:
    """The text of the first of these elements that has any."""
    for name in names:
        for tag in soup.find_all(name, limit=20):
            text = tag.get_text(" ", strip=True)
            if text:
                return text[: 4 * MAX_TEXT]
    return ""


def _clean(name: str, value: str) -> str:
    limit = {"og:description": MAX_TEXT, "og:image": MAX_URL, "og:url": MAX_URL}.get(name, MAX_TITLE)
    words = " ".join(value[: 4 * MAX_URL].split())
    return "".join(c for c in words if unicodedata.category(c)[0] != "C")[:limit]
