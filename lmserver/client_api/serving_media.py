"""How a medium is answered to a client: whole, a part of it, or not again (RFC 9110 §13, §14)."""

from __future__ import annotations

import re

from lmserver.media import naming
from lmserver.media.library import Medium
from lmserver.web.endpoint import Reply, Request, Streamed

SAFE_HEADERS = {
    # CS API §Content repository, §Security considerations; a sandbox runs nothing.
    "Content-Security-Policy": "sandbox; default-src 'none'; script-src 'none'; style-src 'unsafe-inline';"
    " object-src 'self'; media-src 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
    # Who may see it is asked again after a day: an operator may have hidden it.
    "Cache-Control": "private, max-age=86400, immutable",
}

_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,15})-([0-9]{0,15})[ \t]*", re.IGNORECASE)
_TAGS = re.compile(r'(?:W/)?("[!#-~]*")')
MAX_HEADER = 4096


class Unsatisfiable(Exception):
    """The range asked for has no byte of the medium."""


def served(request: Request, medium: Medium, filename: str | None) -> Streamed | Reply:
    """The answer to GET (or HEAD) of a medium, which is offered under this name."""
    content = medium.content
    tag = f'"{content.sha256.hex()}"'
    headers = {**SAFE_HEADERS, "ETag": tag, "Accept-Ranges": "bytes"}
    if _has_it(request.headers.get("If-None-Match", ""), tag):
        return Reply(304, b"", headers)
    headers["Content-Type"] = content.content_type
    headers["Content-Disposition"] = naming.disposition(content.content_type, filename)
    asked = request.headers.get("Range", "")
    # Of a medium that is not the one the asker has the rest of, all is sent.
    if request.method != "GET" or request.headers.get("If-Range", tag).strip() != tag:
        asked = ""
    try:
        part = byte_range(asked, content.size)
    except Unsatisfiable:
        error = {"errcode": "M_UNKNOWN", "error": "The range is not in the media"}
        return Reply(416, error, {"Content-Range": f"bytes */{content.size}", "Accept-Ranges": "bytes"})
    if part is None:
        return Streamed(medium.body, content.size, headers)
    start, end = part
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    return Streamed(medium.part(start, end), end - start, headers, 206)


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last of a Range header; None for what is answered whole: no range,
    several, another unit, or nonsense (RFC 9110 §14.2). Raises Unsatisfiable."""
    match = _RANGE.fullmatch(header.strip()) if len(header) <= MAX_HEADER else None
    if match is None or match[1] == match[2] == "":
        return None
    if not match[1]:
        last = int(match[2])
        if not last or not size:
            raise Unsatisfiable
        return max(0, size - last), size
    start = int(match[1])
    if match[2] and int(match[2]) < start:
        return None
    if start >= size:
        raise Unsatisfiable
    return start, min(size, int(match[2]) + 1) if match[2] else size


def _has_it(header: str, tag: str) -> bool:
    """Whether If-None-Match names the medium; weak comparison (RFC 9110 §13.1.2)."""
    return header.strip() == "*" or tag in _TAGS.findall(header[:MAX_HEADER])
