"""multipart/mixed of exactly two parts, as servers send each other media
(SS API §Content Repository, RFC 2046): written whole, read strictly and in bounded memory.

The reader never takes an early end for the end: unless the closing delimiter has come, reading
raises BadMultipart, so that what was cut short is never kept.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator

MAX_PREAMBLE = 4096
MAX_HEADERS = 8192
MAX_METADATA = 16 * 1024

_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]")
_PARAMETER = re.compile(
    r'\s*;\s*boundary\s*=\s*(?:"([^"\\]{1,70})"|([^\s";]{1,70}))\s*(?:;|$)', re.IGNORECASE
)
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}):[ \t]*([^\r\n\0]*)")


class BadMultipart(Exception):
    """Not a multipart/mixed body of two parts, or not all of it. The text is fixed."""


class Writer:
    """The frame around one file: what comes before it, and after it."""

    def __init__(self, content_type: str, disposition: str) -> None:
        # Unguessable: nobody can have put it into the file before.
        boundary = secrets.token_hex(24)
        self.content_type = f"multipart/mixed; boundary={boundary}"
        self.head = (
            f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n"
            f"--{boundary}\r\nContent-Type: {content_type}\r\nContent-Disposition: {disposition}\r\n\r\n"
        ).encode()
        self.tail = f"\r\n--{boundary}--\r\n".encode()

    def length(self, size: int) -> int:
        """Bytes of the whole body around a file of `size` bytes."""
        return len(self.head) + size + len(self.tail)

    async def body(self, file: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """The whole body."""
        try:
            yield self.head
            async for block in file:
                yield block
            yield self.tail
        finally:
            await file.aclose()


def boundary_of(content_type: str) -> str:
    """The boundary named in a Content-Type of multipart/mixed. Raises BadMultipart."""
    kind, _, _ = content_type.partition(";")
    found = _PARAMETER.search(content_type) if len(content_type) <= 1024 else None
    boundary = (found[1] or found[2]) if found else ""
    if kind.strip().lower() != "multipart/mixed" or not _BOUNDARY.fullmatch(boundary):
        raise BadMultipart("not multipart/mixed with a boundary")
    return boundary


class Reader:
    """Reads `chunks`: first `second_part()`, then `content()` to its end."""

    def __init__(self, boundary: str, chunks: AsyncIterator[bytes]) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._chunks = chunks
        # A body may begin with the delimiter without its line break.
        self._buffer = b"\r\n"

    async def second_part(self) -> dict[str, str]:
        """The headers of the second part, names in lower case. Raises BadMultipart."""
        await self._until(self._delimiter, MAX_PREAMBLE, "the first part does not begin")
        await self._line_end()
        await self._headers()
        # Metadata of the first part: none is defined, so none is used.
        await self._until(self._delimiter, MAX_METADATA, "the first part does not end")
        await self._line_end()
        return await self._headers()

    async def content(self) -> AsyncIterator[bytes]:
        """The bytes of the second part, which has to be the last. Raises BadMultipart."""
        keep = len(self._delimiter) - 1
        while (at := self._buffer.find(self._delimiter)) < 0:
            if len(self._buffer) > keep:
                ready, self._buffer = self._buffer[:-keep], self._buffer[-keep:]
                yield ready
            await self._more("the second part does not end")
        if at:
            yield self._buffer[:at]
        self._buffer = self._buffer[at + len(self._delimiter) :]
        while len(self._buffer) < 2:
            await self._more("the second part does not end")
        if not self._buffer.startswith(b"--"):
            raise BadMultipart("there are more than two parts")

    async def _headers(self) -> dict[str, str]:
        block = await self._until(b"\r\n", MAX_HEADERS, "headers do not end")
        lines = []
        size = 0
        while block:
            size += len(block)
            if size > MAX_HEADERS:
                raise BadMultipart("headers are too large")
            lines.append(block)
            block = await self._until(b"\r\n", MAX_HEADERS, "headers do not end")
        return _parsed(lines)

    async def _line_end(self) -> None:
        """What may stand after a delimiter that does not close: blanks (RFC 2046 §5.1.1)."""
        rest = await self._until(b"\r\n", 64, "a delimiter's line does not end")
        if rest.strip(b" \t"):
            raise BadMultipart("there are fewer than two parts")

    async def _until(self, mark: bytes, limit: int, problem: str) -> bytes:
        """What comes before `mark`, which is taken too; at most `limit` bytes."""
        searched = 0
        while (at := self._buffer.find(mark, searched)) < 0:
            if len(self._buffer) > limit + len(mark):
                raise BadMultipart(problem)
            searched = max(0, len(self._buffer) - len(mark) + 1)
            await self._more(problem)
        if at > limit:
            raise BadMultipart(problem)
        found, self._buffer = self._buffer[:at], self._buffer[at + len(mark) :]
        return found

    async def _more(self, problem: str) -> None:
        chunk = await anext(self._chunks, None)
        if chunk is None:
            raise BadMultipart(problem)
        self._buffer += chunk


def _parsed(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        try:
            match = _HEADER.fullmatch(line.decode("utf-8"))
        except UnicodeDecodeError:
            match = None
        if match is None or match[1].lower() in headers:
            raise BadMultipart("a header is malformed or stands twice")
        headers[match[1].lower()] = match[2].strip()
    return headers
