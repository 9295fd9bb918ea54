"""One value per text, one text per value."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserver.protocol import canonical_json
from lmserver.protocol.canonical_json import MAX_DEPTH, MAX_INT, encode, parse, parse_object
from lmserver.protocol.errors import InvalidJson, SchemaError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
INTEGERS = st.integers(-MAX_INT, MAX_INT)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


class Refused(Exception):
    pass


def reference(data: bytes) -> Any:
    """The slow exact parser: the standard library with every leniency turned off."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise Refused
        return dict(pairs)

    def integer(digits: str) -> int:
        if len(digits) > 17 or abs(int(digits)) > MAX_INT:
            raise Refused
        return int(digits)

    def refuse(_: str) -> None:
        raise Refused

    def depth(value: Any) -> int:
        if isinstance(value, dict | list):
            items = value.values() if isinstance(value, dict) else value
            return 1 + max(map(depth, items), default=0)
        return 0

    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=unique,
            parse_int=integer,
            parse_float=refuse,
            parse_constant=refuse,
        )
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refused from error
    if depth(value) > MAX_DEPTH:
        raise Refused
    return value


def outcome(parser: Any, data: bytes) -> tuple[Any, ...]:
    try:
        return ("value", repr(parser(data)))
    except (InvalidJson, Refused):
        return ("refused",)


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), "{}".encode("utf-16-le"), b"\xff", b'"\xed\xa0\x80"',
        b"NaN", b"Infinity", b"-Infinity", b'{"content":{"x":NaN}}', b"1.0", b"1e2", b"1E2", b"-0.0", b"0e0", b"1.",
        b'{"users":{"@a:e":100.0}}', b"01", b"+1", b"--1", b".5", b"[1,]", b'{"a":1,}', b"[1]//x", b"/**/1", b"'a'",
        b'"\\ud800"', b'"\\udc00\\ud800"', b'{"\\udfff":1}', b'"\x01"', b'"\n"', b"\x00", b"1 2", b"{}{}", b"nul",
        b'{"a":1,"a":1}', b'{"a":1,"\\u0061":2}', b'[{"x":{"y":[{"k":1,"k":2}]}}]', b'{"":1,"":2}',
        b'{"a":{"b":1,"b":{"c":2}},"d":3}', b'{"\\"":1,"\\u0022":2}', b'{"\\\\":1,"\\u005c":2}', b'{"a:":1,"a:":2}',
        str(MAX_INT + 1).encode(), str(-MAX_INT - 1).encode(), str(2**63).encode(), str(2**64).encode(),
        str(-(2**63) - 1).encode(), b"9" * 5000, b'{"t":9007199254740992}', b"[" * 100_000, b'{"a":' * 100_000,
        b"[" * 65 + b"]" * 65, b'{"a":' * 65 + b"1" + b"}" * 65, b"[" * 100 + b"}" * 100, b'"\\', b'"', b'"a',
    ],
)  # fmt: skip
def test_refused(data: bytes) -> None:
    with pytest.raises(InvalidJson):
        parse(data)
    if len(data) < 10_000:
        assert outcome(reference, data) == ("refused",)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"-0", 0), (b'"\\u0000"', "\0"), (b'"\\ud83d\\ude00"', "\U0001f600"), (b' {"a" : [ 1 , true ] } ', {"a": [1, True]}),
        (str(MAX_INT).encode(), MAX_INT), (str(-MAX_INT).encode(), -MAX_INT), (b'"1.5e3"', "1.5e3"),
        (b'{"a":"\\"b\\":1.5"}', {"a": '"b":1.5'}), (b'"9999999999999999999"', "9999999999999999999"),
        (b'{"a\\\\":"[[{:"}', {"a\\": "[[{:"}), (b'"\\\\\\""', '\\"'), (b'{"a":{"a":{"a":1}}}', {"a": {"a": {"a": 1}}}),
        (b'{"\xc3\xa9":1,"e\xcc\x81":2}', {"\u00e9": 1, "e\u0301": 2}),
    ],
)  # fmt: skip
def test_accepted(data: bytes, value: Any) -> None:
    assert repr(parse(data)) == repr(value)


def test_depth_limit_is_exact_and_ignores_brackets_in_strings() -> None:
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert encode(parse(deep)) == deep
    parse(b"[" + b",".join([b"[]"] * 1000) + b"]")
    parse(b'["' + b"[" * 1000 + b'"]')
    with pytest.raises(InvalidJson):
        encode([parse(deep)])


@pytest.mark.parametrize("data", [b"[]", b'"x"', b"null", b"1", b"true"])
def test_parse_object_wants_an_object(data: bytes) -> None:
    with pytest.raises(SchemaError):
        parse_object(data)


@given(VALUES)
def test_round_trip(value: Any) -> None:
    encoded = encode(value)
    assert repr(parse(encoded)) == repr(parse(encode(parse(encoded))))
    assert parse(encoded) == value
    assert encode(parse(encoded)) == encoded


@given(VALUES)
def test_any_spelling_parses_alike(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert parse(text.encode()) == value


@given(VALUES)
def test_own_encoder_and_orjson_agree_below_the_astral_planes(value: Any) -> None:
    own = canonical_json._encode_exactly(value).encode()
    assert encode(value) == own
    if not canonical_json._has_astral_key(value):
        assert orjson.dumps(value, option=orjson.OPT_SORT_KEYS) == own


def test_j13_keys_sort_by_utf16_code_units() -> None:
    value = {"\uff5e": 1, "\U0001f600": 2, "a": "\U0001f600"}
    assert encode(value) == '{"a":"\U0001f600","\U0001f600":2,"\uff5e":1}'.encode()
    assert encode([{"n": value}]) == b'[{"n":' + encode(value) + b"}]"


def test_rfc8785_sorting_example() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    ordered = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(parse(encode(dict.fromkeys(keys)))) == ordered


class Text(str):
    pass


@pytest.mark.parametrize(
    "value",
    [1.0, -0.0, float("nan"), float("inf"), MAX_INT + 1, -MAX_INT - 1, {1: 2}, {None: 1}, {True: 1}, b"x", (1,), {1},
     "\ud800", {"\udfff": 1}, Text("x"), {Text("x"): 1}, object()],
)  # fmt: skip
def test_encode_refuses_what_parse_refuses(value: Any) -> None:
    for nested in (value, [value], {"a": {"b": value}}):
        with pytest.raises(InvalidJson):
            encode(nested)


def test_encode_refuses_a_cycle() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(InvalidJson):
        encode(cycle)


FRAGMENTS = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b'\\"', b"\\\\", b'"a"', b'"\\u0061"', b'"b":', b"1", b"0", b"-",
    b".", b"e", b"1e2", b"1.5", b"true", b"null", b" ", b"\xef\xbb\xbf", b"\xff", b"\\ud800", b"9007199254740992", b"\n",
]  # fmt: skip


@given(
    VALUES,
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2), st.sampled_from(FRAGMENTS)), max_size=4),
)
def test_agrees_with_the_reference_on_mutated_texts(value: Any, edits: list[tuple[int, int, bytes]]) -> None:
    data = json.dumps(value, ensure_ascii=False).encode()
    for place, removed, fragment in edits:
        place %= len(data) + 1
        data = data[:place] + fragment + data[place + removed :]
    assert outcome(parse, data) == outcome(reference, data)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map(b"".join))
def test_agrees_with_the_reference_on_token_soup(data: bytes) -> None:
    assert outcome(parse, data) == outcome(reference, data)


@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4), VALUES, st.data())
def test_duplicates_are_found_at_any_level(members: dict[str, Any], other: Any, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(members)))
    spelled = data.draw(st.sampled_from([json.dumps(key), _escaped(key)]))
    body = json.dumps(members, ensure_ascii=False)[:-1] + f",{spelled}:{json.dumps(other)}}}"
    for wrapped in (body, f'[{body},"x"]', f'{{"o":{{"p":[1,{body}]}}}}'):
        with pytest.raises(InvalidJson):
            parse(wrapped.encode())


def _escaped(key: str) -> str:
    units = key.encode("utf-16-be").hex()
    return '"' + "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)) + '"'
