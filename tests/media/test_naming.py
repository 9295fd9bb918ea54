"""Types and names from strangers cannot end a header, mislead a reader or run in a browser (M2, Q3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserver.media.naming import OCTETS, disposition, name_in, safe_name, safe_type


@pytest.mark.parametrize(
    "value",
    [None, "", "text", "text/", "/html", "text/html\r\nX: y", "text/html;", "text/html; a", "a/b/c", "text/ html",
     "text/html; charset=\"a\r\nb\"", "tëxt/html", "text/html, text/plain", "a/" + "b" * 300],
)  # fmt: skip
def test_m2_what_is_no_type_is_octets(value: str | None) -> None:
    assert safe_type(value) == OCTETS


@pytest.mark.parametrize("value", ["image/png", "text/plain; charset=utf-8", 'a/b; c="d; e"; f=g'])
def test_types_are_kept(value: str) -> None:
    assert safe_type(f" {value} ") == value


@pytest.mark.parametrize(
    "kind",
    ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/pdf", "text/javascript",
     "application/xml", OCTETS, "TEXT/HTML; charset=utf-8", "image/png2", "multipart/mixed; boundary=x"],
)  # fmt: skip
def test_m2_only_what_cannot_run_is_inline(kind: str) -> None:
    assert disposition(kind, None) == "attachment"


def test_inline_and_names() -> None:
    assert disposition("image/png", None) == "inline"
    assert disposition("IMAGE/PNG; x=y", "a.png") == "inline; filename=a.png"
    assert disposition("image/png", 'a "b".png') == "inline; filename*=utf-8''a%20%22b%22.png"
    assert disposition("image/png", "ä;x=y") == "inline; filename*=utf-8''%C3%A4%3Bx%3Dy"
    assert disposition("image/png", "50%25.png") == "inline; filename*=utf-8''50%2525.png"


def test_q3_m2_control_and_direction_characters_go() -> None:
    assert safe_name("a\r\nSet-Cookie: x") == "aSet-Cookie: x"
    assert safe_name("invoice\u202egnp.exe") == "invoicegnp.exe"
    assert safe_name("\0\x7f\u2066\ud800") is None
    assert safe_name("x" * 5000) == "x" * 200
    assert safe_name("../../etc/passwd") == "../../etc/passwd"  # a name to show; no path is made of it


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (None, None),
        ("attachment", None),
        ("inline; filename=a.png", "a.png"),
        ('inline; filename="a \\"b\\".png"', 'a "b".png'),
        ("attachment; filename=x; filename*=UTF-8''%C3%A4%20b", "ä b"),
        ("attachment; filename*=utf-8'en'a", "a"),
        ("attachment; filename*=latin1''%E4; filename=plain", "plain"),
        ("attachment; filename*=utf-8''%0d%0aX%3a%20y", "X: y"),
        ("attachment; filename*=utf-8''%ff", "\ufffd"),
        ('attachment; filename="unclosed', None),
        ('attachment; x="; filename=no"; filename=yes', "yes"),
    ],
)
def test_names_of_other_servers(header: str | None, name: str | None) -> None:
    assert name_in(header) == name


@given(st.text(max_size=50), st.sampled_from(["image/png", "text/html"]))
def test_every_name_comes_back_and_stays_in_its_header(text: str, kind: str) -> None:
    name = safe_name(text)
    header = disposition(kind, name)
    assert header.isascii() and header.isprintable()
    assert name_in(header) == name


def test_name_in_takes_little_time_over_nonsense() -> None:
    for junk in (';filename="' * 5000, '\\"' * 50_000, ";a=" * 50_000, "; " * 100_000):
        assert (name_in(junk) or "").isprintable()
