"""multipart/mixed of two parts: whole or not at all, whatever the pieces it comes in (attack R3)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmserver.media import multipart
from lmserver.media.multipart import BadMultipart, Reader, Writer, boundary_of

HEAD = b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\nContent-Type: text/plain\r\n\r\n"


async def pieces(data: bytes, size: int) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(body: AsyncIterator[bytes], boundary: str = "b") -> tuple[dict[str, str], bytes]:
    reader = Reader(boundary, body)
    headers = await reader.second_part()
    return headers, b"".join([chunk async for chunk in reader.content()])


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=400), size=st.integers(1, 80), inner=st.booleans())
async def test_what_is_written_is_read(content: bytes, size: int, inner: bool) -> None:
    writer = Writer("image/png", "inline; filename=x.png")
    boundary = boundary_of(writer.content_type)
    if inner:  # parts of the delimiter inside the file end nothing
        content += b"\r\n--" + boundary[:-1].encode() + b"\r\n--\r\n" + content
    whole = b"".join([block async for block in writer.body(pieces(content, 7))])
    assert len(whole) == writer.length(len(content))
    headers, found = await read(pieces(whole, size), boundary)
    assert found == content
    assert headers == {"content-type": "image/png", "content-disposition": "inline; filename=x.png"}


async def test_m4_cut_short_anywhere_it_is_never_whole() -> None:
    whole = HEAD + b"some content" + b"\r\n--b--"
    assert (await read(pieces(whole, 5)))[1] == b"some content"
    for end in range(len(whole)):
        with pytest.raises(BadMultipart):
            await read(pieces(whole[:end], 5))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"--b--\r\n",
        b"--b\r\n\r\n{}\r\n--b--\r\n",
        HEAD + b"x\r\n--b\r\nContent-Type: a/b\r\n\r\nthird\r\n--b--",
        HEAD.replace(b"text/plain", b"text/plain\r\ncontent-type: text/html") + b"x\r\n--b--",
        HEAD.replace(b"text/plain", b"text/plain\r\n folded: x") + b"x\r\n--b--",
        HEAD.replace(b"text/plain", b"\xff") + b"x\r\n--b--",
        HEAD.replace(b"text/plain", b"a\0b") + b"x\r\n--b--",
        HEAD.replace(b"Content-Type: text/plain", b"no header") + b"x\r\n--b--",
        HEAD.replace(b"--b\r\n", b"--bb\r\n") + b"x\r\n--b--",
    ],
)
async def test_what_is_not_two_parts_is_refused(body: bytes) -> None:
    with pytest.raises(BadMultipart):
        await read(pieces(body, 9))


async def test_r3_headers_preamble_and_metadata_have_an_end() -> None:
    """Endless parts are refused once they are over the limit, not when they end."""

    async def endless(start: bytes, more: bytes) -> AsyncIterator[bytes]:
        yield start
        for _ in range(1000):
            yield more
        raise AssertionError("read far beyond the limit")

    for start, more in [
        (b"", b"x" * 1024),
        (b"--b\r\nA: ", b"x" * 1024),
        (b"--b\r\n", b"".join(b"A%d: x\r\n" % n for n in range(100))),
        (b"--b\r\n\r\n", b"{" * 1024),
        (b"--b" + b" " * 100, b" " * 1024),
    ]:
        with pytest.raises(BadMultipart):
            await read(endless(start, more))


async def test_transport_padding_and_preamble_are_let_pass() -> None:
    body = b"hello\r\n" + HEAD.replace(b"--b\r\n", b"--b \t\r\n") + b"x\r\n--b--\r\nepilogue"
    assert (await read(pieces(body, 4)))[1] == b"x"


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        ("multipart/mixed; boundary=abc", "abc"),
        ('Multipart/Mixed; charset=x; BOUNDARY="a b c"', "a b c"),
        ("multipart/mixed", None),
        ("multipart/form-data; boundary=abc", None),
        ("text/html; boundary=abc", None),
        ('multipart/mixed; boundary="a\\"b"', None),
        ("multipart/mixed; boundary=" + "x" * 71, None),
        ('multipart/mixed; boundary="x "', None),
        ("multipart/mixed; boundary=ä", None),
        ("multipart/mixed; " + "x" * 2000 + "; boundary=abc", None),
    ],
)
def test_boundaries(header: str, boundary: str | None) -> None:
    if boundary is not None:
        assert boundary_of(header) == boundary
    else:
        with pytest.raises(BadMultipart):
            boundary_of(header)


def test_the_limits_stay_small() -> None:
    assert multipart.MAX_PREAMBLE + multipart.MAX_HEADERS * 2 + multipart.MAX_METADATA < 64 * 1024
