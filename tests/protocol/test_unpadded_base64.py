"""One text per value."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserver.protocol.errors import InvalidBase64
from lmserver.protocol.unpadded_base64 import decode, encode, encode_urlsafe


@given(st.binary(max_size=100))
def test_round_trip_with_and_without_padding(data: bytes) -> None:
    assert decode(encode(data)) == data
    assert decode(base64.b64encode(data).decode()) == data
    assert "=" not in encode(data) + encode_urlsafe(data)
    assert encode_urlsafe(data) == encode(data).replace("+", "-").replace("/", "_")


@given(st.text("ABCDwxyz0189+/=-_ \n\u00e9", max_size=8))
def test_an_accepted_text_is_canonical(text: str) -> None:
    try:
        data = decode(text)
    except InvalidBase64:
        return
    assert text in (encode(data), base64.b64encode(data).decode())


@pytest.mark.parametrize(
    "text",
    ["A", "AAAAA", "AB", "AAB", "AA=", "AA===", "AAA==", "AAAA=", "====", "=", "A=A=", "-_-_", "AA AA", "AAAA\n", " AAAA",
     "AA==AA==", "\u00e9AAA", "AAAA\0", "\uff21AAA", "\ud800AAA"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(InvalidBase64):
        decode(text)


@pytest.mark.parametrize(
    ("text", "data"), [("", b""), ("AA", b"\0"), ("AA==", b"\0"), ("Zm9v", b"foo"), ("+/8", b"\xfb\xff")]
)
def test_accepted(text: str, data: bytes) -> None:
    assert decode(text) == data
