"""JSON as the protocol needs it: one value per text on the way in, one text per value on the way out.

Hashes and signatures cover values, peers send texts. A text two parsers read differently
(duplicate keys, numbers past 2^53, lone surrogates) lets a signature cover something else than
what is acted on, so `parse` refuses every such text and `encode` refuses every value `parse`
could not have returned (D04 §Canonical JSON, RFC 8785, RFC 7493).

orjson does the heavy work, but keeps the last of duplicate keys, turns integers past 64 bits into
floats, and sorts keys by code point. What it gets wrong is decided beside it, exactly and at C speed:

- The text without its strings (`_outside_strings`) holds only structure and numbers. Its nesting,
  its number tokens and its count of ":", one for each object member, are therefore exact.
- Code-point order and UTF-16 order differ only where a key has a character past U+FFFF.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import orjson

from lmserver.protocol.errors import InvalidJson, SchemaError

JsonObject = dict[str, Any]

MAX_INT: Final = 2**53 - 1
MAX_DEPTH: Final = 64

# A digit before one of ".eE" is a float in valid JSON, whatever its value. 16 digits in a row are
# an integer that may be past MAX_INT.
_FLOAT: Final = re.compile(rb"[0-9][.eE]")
_LONG_INTEGER: Final = re.compile(rb"[0-9]{16,}")
_ONE_BRACKET: Final = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
# First bytes of the UTF-8 form of a character past U+FFFF.
_ASTRAL_LEADS: Final = (0xF0, 0xF1, 0xF2, 0xF3, 0xF4)

_escape_string: Final = json.JSONEncoder(ensure_ascii=False).encode


def parse(data: bytes) -> Any:
    """The value of a JSON text in UTF-8. The caller has checked the size.

    Raises InvalidJson for what is not JSON (RFC 8259) and for a byte order mark, duplicate keys,
    floats in any notation, integers beyond +-MAX_INT, lone surrogates, and nesting over MAX_DEPTH.
    """
    outside = _outside_strings(data)
    if _too_deep(outside):
        raise InvalidJson("JSON is nested too deeply")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidJson("not JSON") from error
    if _FLOAT.search(outside):
        raise InvalidJson("JSON has a number that is not an integer")
    if any(len(digits) > 16 or int(digits) > MAX_INT for digits in _LONG_INTEGER.findall(outside)):
        raise InvalidJson("JSON has an integer out of range")
    members = outside.count(b":")
    if members and _members(value) != members:
        raise InvalidJson("JSON has duplicate keys")
    return value


def parse_object(data: bytes) -> JsonObject:
    """Like `parse`, for a text that must be an object. Raises InvalidJson and SchemaError."""
    value = parse(data)
    if type(value) is not dict:
        raise SchemaError("not a JSON object")
    return value


def encode(value: Any) -> bytes:
    """The canonical bytes of a value (RFC 8785).

    Raises InvalidJson for anything `parse` would refuse, and for types it never returns.
    """
    check(value)
    return encode_valid(value)


def check(value: Any) -> None:
    """Raises InvalidJson unless the value could have come from `parse`, lone surrogates aside."""
    _check_encodable([value], MAX_DEPTH + 1)


def encode_valid(value: Any) -> bytes:
    """`encode` without the walk over the value: for what `parse` gave or `encode` has accepted.

    An event is encoded about five times on its way through a hub, and checked once.
    """
    try:
        encoded = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError) as error:
        raise InvalidJson("text has a lone surrogate") from error
    if not encoded.isascii() and any(lead in encoded for lead in _ASTRAL_LEADS) and _has_astral_key(value):
        return _encode_exactly(value).encode()
    return encoded


def _outside_strings(data: bytes) -> bytes:
    """The text without its string literals; exact if the text is valid JSON.

    Backslashes occur only in strings. Without escaped backslashes, then without escaped quotes,
    every quote left begins or ends a string, in turn.
    """
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(data.split(b'"')[::2])


def _too_deep(outside: bytes) -> bool:
    """Whether brackets nest over MAX_DEPTH; each pass removes exactly the innermost level."""
    if outside.count(b"[") + outside.count(b"{") <= MAX_DEPTH:
        return False
    brackets = outside.translate(_ONE_BRACKET, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        fewer = brackets.replace(b"[]", b"")
        if not fewer or len(fewer) == len(brackets):
            return bool(fewer)
        brackets = fewer
    return True


def _members(value: Any) -> int:
    """How many object members a parsed value has, at every level (its depth is bounded)."""
    values: Any
    if type(value) is dict:
        count, values = len(value), value.values()
    elif type(value) is list:
        count, values = 0, value
    else:
        return 0
    for item in values:
        if type(item) is dict or type(item) is list:
            count += _members(item)
    return count


def _check_encodable(container: dict[Any, Any] | list[Any], levels: int) -> None:
    """Raises InvalidJson unless only exact JSON types are inside; `levels` bounds recursion and cycles."""
    if levels == 0:
        raise InvalidJson("JSON is nested too deeply")
    values: Any = container
    if type(container) is dict:
        for key in container:
            if type(key) is not str:
                raise InvalidJson("JSON keys must be text")
        values = container.values()
    for item in values:
        kind = type(item)
        if kind is str or item is None or kind is bool:
            continue
        if kind is int:
            if not -MAX_INT <= item <= MAX_INT:
                raise InvalidJson("JSON has an integer out of range")
        elif kind is dict or kind is list:
            _check_encodable(item, levels - 1)
        else:
            raise InvalidJson("not a JSON type")


def _has_astral_key(value: Any) -> bool:
    if type(value) is dict:
        return any(max(key, default="") > "\uffff" for key in value) or any(
            map(_has_astral_key, value.values())
        )
    return type(value) is list and any(map(_has_astral_key, value))


def _utf16_order(member: tuple[str, Any]) -> bytes:
    """Big-endian UTF-16 compares by bytes as by code units (RFC 8785 §3.2.3)."""
    return member[0].encode("utf-16-be")


def _encode_exactly(value: Any) -> str:
    """RFC 8785 by the letter, for values `_check_encodable` has let through."""
    if type(value) is dict:
        members = sorted(value.items(), key=_utf16_order)
        return "{" + ",".join(f"{_escape_string(k)}:{_encode_exactly(v)}" for k, v in members) + "}"
    if type(value) is list:
        return "[" + ",".join(map(_encode_exactly, value)) + "]"
    return _escape_string(value)
