"""X-Matrix: whom we believe to be asking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserver.protocol import canonical_json, unpadded_base64
from lmserver.protocol.errors import InvalidJson, RequestAuthError, TooLarge
from lmserver.protocol.signatures import SigningKey
from lmserver.protocol.transport import (
    XMatrix,
    authorization_header,
    check_request,
    parse_authorization,
    request_to_sign,
)

EIGEN: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "eigen.json").read_text(encoding="utf-8")
)
HUB = "hub.example.org"
KEY = SigningKey.from_seed("a.example", "ed25519:1", bytes(32))
KEYS = {KEY.key_id: KEY.verify_key}
PARSED = XMatrix("a.example", HUB, "ed25519:1", "c2ln")


def signed(content: object | None, *, uri: str = "/x?a=%2F", method: str = "PUT") -> list[XMatrix]:
    return parse_authorization([authorization_header(method, uri, HUB, content, KEY)], HUB)


def body(content: object | None) -> bytes | None:
    """A body as a peer sends it that does not care for canonical form."""
    return None if content is None else json.dumps(content, indent=1).encode()


@pytest.mark.parametrize("name", ["put", "get"])
def test_eigen_server_vectors(name: str) -> None:
    vector = EIGEN["request_auth"][name]
    request = vector["signed_object"]
    keys = EIGEN["keys"][request["origin"]]
    key = SigningKey.from_seed(request["origin"], keys["key_id"], unpadded_base64.decode(keys["seed_b64"]))
    method, uri, content = request["method"], request["uri"], request.get("content")
    without = {name: value for name, value in request.items() if name != "content"}
    assert request_to_sign(method, uri, key.server_name, HUB) == canonical_json.encode(without)
    assert canonical_json.encode(request) == vector["canonical"].encode()
    assert authorization_header(method, uri, HUB, content, key) == vector["header"]
    headers = parse_authorization([vector["header"]], HUB)
    assert check_request(headers, method, uri, body(content), {key.key_id: key.verify_key}) == key.server_name


@pytest.mark.parametrize(
    "value",
    [
        'X-Matrix origin="a.example",destination="hub.example.org",key="ed25519:1",sig="c2ln"',
        'X-Matrix origin="a.example",destination="hub.example.org",key="ed25519:1",signature="c2ln"',
        "X-Matrix origin=a.example,destination=hub.example.org,key=ed25519:1,sig=c2ln",
        'x-MATRIX  SIG="c2ln" \t, ,KEY = ed25519:1 ,\tDestination="hub.example.org",oRiGiN="a\\.exam\\ple",',
        'X-Matrix x="a,b\\"c=\\\\",origin="a.example",y=,destination="hub.example.org",key="ed25519:1",sig="c2ln"'.replace(
            "y=,", "y=z,"
        ),
        'X-Matrix ,origin="a.example",destination="hub.example.org",key="ed25519:1",sig="c2ln",origin2="b"',
    ],
)
def test_x7_parse_by_the_grammar(value: str) -> None:
    assert parse_authorization([value], HUB) == [PARSED]


GOOD = 'X-Matrix origin="a.example",destination="hub.example.org",key="ed25519:1",sig="c2ln"'


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["X-Matrix"],
        ["Bearer abc"],
        ["X-Matrixorigin=a"],
        [GOOD.replace('destination="hub.example.org",', "")],
        [GOOD.replace('origin="a.example",', "")],
        [GOOD.replace('key="ed25519:1",', "")],
        [GOOD.replace(',sig="c2ln"', "")],
        [GOOD.replace("hub.example.org", "other.example.org")],
        [GOOD.replace("hub.example.org", "HUB.example.org")],
        [GOOD.replace("hub.example.org", "hub.example.org:8448")],
        [GOOD.replace("a.example", HUB)],
        [GOOD.replace("a.example", "127.0.0.1")],
        [GOOD.replace("a.example", "[::1]")],
        [GOOD.replace("a.example", "127.1")],
        [GOOD.replace("a.example", "a.example.")],
        [GOOD.replace("a.example", "")],
        [GOOD.replace("ed25519:1", "ed25519:")],
        [GOOD.replace("ed25519:1", "ed25519:a/b")],
        [GOOD.replace("ed25519:1", "rsa:1")],
        [GOOD + ',signature="c2ln"'],
        [GOOD + ',origin="a.example"'],
        [GOOD + ',ORIGIN="b.example"'],
        [GOOD + ",x=1,X=2"],
        [GOOD + ' x="1"'],
        [GOOD + ',x="1'],
        [GOOD + ",x"],
        [GOOD + ",x="],
        [GOOD + ',x="1"2'],
        [GOOD + ',x="\n"'],
        [GOOD + ';x="1"'],
        [GOOD + ',x="' + "a" * 65536 + '"'],
        [GOOD, GOOD.replace("a.example", "b.example")],
        [GOOD, "Bearer abc"],
        [GOOD] * 11,
    ],
)
def test_x2_x7_x11_x12_refused(values: list[str]) -> None:
    with pytest.raises(RequestAuthError):
        parse_authorization(values, HUB)


def test_a_request_without_body_may_be_signed_with_an_empty_object() -> None:
    both: tuple[object, ...] = (None, {})
    for content in both:
        assert check_request(signed(content), "PUT", "/x?a=%2F", None, KEYS) == "a.example"
    assert check_request(signed({}), "PUT", "/x?a=%2F", b"{}", KEYS) == "a.example"
    with pytest.raises(RequestAuthError):
        check_request(signed(None), "PUT", "/x?a=%2F", b"{}", KEYS)


@pytest.mark.parametrize(
    ("method", "uri", "content"),
    [
        ("POST", "/x?a=%2F", {"a": 1}),
        ("PUT", "/x?a=/", {"a": 1}),
        ("PUT", "/x?a=%2f", {"a": 1}),
        ("PUT", "/x", {"a": 1}),
        ("PUT", "/x?a=%2F", {"a": 2}),
        ("PUT", "/x?a=%2F", {"a": 1.5}),
        ("PUT", "/x?a=%2F", {}),
        ("PUT", "/x?a=%2F", None),
    ],
)
def test_x4_x8_a_signature_covers_the_whole_request(method: str, uri: str, content: object) -> None:
    headers = signed({"a": 1})
    assert check_request(headers, "PUT", "/x?a=%2F", body({"a": 1}), KEYS) == "a.example"
    with pytest.raises((RequestAuthError, InvalidJson)):
        check_request(headers, method, uri, body(content), KEYS)


@pytest.mark.parametrize("tail", [b',"destination":"hub.example.org"', b',"uri":"/y"', b"}"])
def test_x8_bytes_around_the_signed_body_are_not_taken_for_it(tail: bytes) -> None:
    headers = signed({"a": 1})
    assert check_request(headers, "PUT", "/x?a=%2F", b'{"a":1}', KEYS) == "a.example"
    with pytest.raises((RequestAuthError, InvalidJson)):
        check_request(headers, "PUT", "/x?a=%2F", b'{"a":1}' + tail, KEYS)


def test_a_stranger_cannot_have_a_large_body_parsed() -> None:
    content = {"a": [{}] * 400_000}
    headers = signed(content)
    assert check_request(headers, "PUT", "/x?a=%2F", canonical_json.encode(content), KEYS) == "a.example"
    with pytest.raises(TooLarge):
        check_request(headers, "PUT", "/x?a=%2F", body(content), KEYS)


def test_x6_every_header_must_verify_with_a_known_key() -> None:
    good = signed(None)[0]
    other = SigningKey.from_seed("a.example", "ed25519:2", bytes([1] * 32))
    keys = {**KEYS, other.key_id: other.verify_key}
    second = XMatrix(good.origin, good.destination, other.key_id, good.signature)
    assert check_request([good, good], "PUT", "/x?a=%2F", None, keys) == "a.example"
    for headers in ([good, second], [second, good], [good, PARSED], []):
        with pytest.raises(RequestAuthError):
            check_request(headers, "PUT", "/x?a=%2F", None, keys)
    with pytest.raises(RequestAuthError):
        check_request([good], "PUT", "/x?a=%2F", None, {})


@pytest.mark.parametrize("uri", ["http://hub.example.org/x", "//hub.example.org/x", "*", "x", ""])
def test_x9_origin_form_only(uri: str) -> None:
    with pytest.raises(RequestAuthError):
        check_request(signed(None, uri=uri), "PUT", uri, None, KEYS)


@given(st.text(max_size=40) | st.text('X-Matrix origin="a\\,= \tsigkeydest', max_size=60))
def test_x7_any_text_is_refused_or_parsed(text: str) -> None:
    for value in (text, "X-Matrix " + text, GOOD + "," + text):
        try:
            headers = parse_authorization([value], HUB)
        except RequestAuthError:
            continue
        assert headers == [PARSED]
