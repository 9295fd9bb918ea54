"""What strangers say about a file, made safe to store and to repeat: its type and its name."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote, unquote_to_bytes

OCTETS = "application/octet-stream"
MAX_TYPE = 200
MAX_NAME = 200

# CS API §Serving inline content: what a browser may show without being able to run it.
INLINE = frozenset((
    "text/css", "text/plain", "text/csv", "application/json", "application/ld+json", "image/jpeg",
    "image/gif", "image/png", "image/apng", "image/webp", "image/avif", "video/mp4", "video/webm",
    "video/ogg", "video/quicktime", "audio/mp4", "audio/webm", "audio/aac", "audio/mpeg", "audio/ogg",
    "audio/wave", "audio/wav", "audio/x-wav", "audio/x-pn-wav", "audio/flac", "audio/x-flac",
))  # fmt: skip

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # noqa: S105 - a token of RFC 9110 is no password
_TYPE = re.compile(rf'({_TOKEN}/{_TOKEN})(?:[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|"[ !#-\[\]-~]*"))*')
_PARAMETER = re.compile(rf'[ \t]*;[ \t]*({_TOKEN})[ \t]*=[ \t]*({_TOKEN}|"(?:[^"\\]|\\.)*")')


def safe_type(value: str | None) -> str:
    """A Content-Type of the grammar of RFC 9110, else application/octet-stream."""
    text = (value or "").strip()
    return text if len(text) <= MAX_TYPE and _TYPE.fullmatch(text) else OCTETS


def essence(content_type: str) -> str:
    """Type and subtype without parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def safe_name(value: str | None) -> str | None:
    """A file name without control, format (bidirectional overrides) and unassigned characters;
    None when nothing is left."""
    if value is None:
        return None
    kept = "".join(c for c in value[: 4 * MAX_NAME] if unicodedata.category(c)[0] != "C")
    return kept.strip()[:MAX_NAME] or None


def disposition(content_type: str, filename: str | None) -> str:
    """The Content-Disposition to serve it with: inline only for what cannot run; the name is
    percent-encoded unless it is plain, so nothing in it can end the header (RFC 6266)."""
    kind = "inline" if essence(content_type) in INLINE else "attachment"
    if filename is None:
        return kind
    if re.fullmatch(_TOKEN, filename) and "%" not in filename:
        return f"{kind}; filename={filename}"
    return f"{kind}; filename*=utf-8''{quote(filename, safe='')}"


def name_in(header: str | None) -> str | None:
    """The file name in another server's Content-Disposition (RFC 6266), made safe."""
    text = (header or "")[:2048]
    found = dict.fromkeys(("filename*", "filename"), "")
    for name, value in _PARAMETER.findall(text):
        if name.lower() in found and not found[name.lower()]:
            found[name.lower()] = value
    charset, _, encoded = found["filename*"].partition("'")
    if charset.lower() == "utf-8" and "'" in encoded:
        return safe_name(unquote_to_bytes(encoded.partition("'")[2]).decode("utf-8", "replace"))
    plain = found["filename"]
    return safe_name(re.sub(r"\\(.)", r"\1", plain[1:-1]) if plain.startswith('"') else plain)
