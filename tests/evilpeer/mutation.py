"""Requests that were valid until one thing or two was changed: a strategy for each part of them."""

from __future__ import annotations

import copy
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from tests.evilpeer.forging import resigned

JUNK = st.one_of(
    st.none(), st.booleans(), st.just(2**53), st.just(-(2**63)), st.integers(-(2**53), 2**53), st.floats(),
    st.text(max_size=12), st.sampled_from(["", "\0", "@", "@:", "!", "$", "@__proto__:x", "x" * 300, "\ud7ff\U0001f600",
                                           "../../etc/passwd", "%00", "' OR 1=1 --", "{{7*7}}", "a\r\nb"]),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=4), st.none(), max_size=2),
)  # fmt: skip

SEGMENTS = st.one_of(
    st.text(min_size=1, max_size=20),
    st.sampled_from(["%00", "%2F", "%2e%2e%2f", "%ff", "x" * 300, "@x", "!x", "$x", "%F0%9F%98%80", "null", "-1"]),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value, the whole first."""
    found = [path]
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        found += places(item, (*path, key))
    return found


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """The value with up to three of its parts replaced, removed, repeated or given company."""
    for _ in range(draw(st.integers(0, 3))):
        value = _changed(draw, copy.deepcopy(value))
    return value


def _changed(draw: st.DrawFn, value: Any) -> Any:
    path = draw(st.sampled_from(places(value)))
    if not path:
        return draw(JUNK) if draw(st.integers(0, 9)) == 0 else value
    owner = value
    for key in path[:-1]:
        owner = owner[key]
    match draw(st.sampled_from(["replace", "remove", "repeat", "add"])):
        case "replace":
            owner[path[-1]] = draw(JUNK)
        case "remove":
            del owner[path[-1]]
        case "repeat":
            if isinstance(owner, list):
                owner.extend([owner[path[-1]]] * draw(st.sampled_from([1, 5, 60])))
        case "add":
            if isinstance(owner, dict):
                owner[draw(st.text(max_size=8))] = draw(JUNK)
    return value


def made_valid(value: Any) -> Any:
    """Every LPDU inside with its hash and signature made anew, as far as that can be."""
    if isinstance(value, dict):
        if "hub_server" in value and "sender" in value:
            try:
                return resigned(value)
            except Exception:  # not every mutant can be signed; as it is it is hostile enough
                return value
        return {key: made_valid(item) for key, item in value.items()}
    if isinstance(value, list):
        return [made_valid(item) for item in value]
    return value


@st.composite
def path_of(draw: st.DrawFn, template: str, values: dict[str, str]) -> str:
    """The declared path with valid values in it, now and then one that is not."""
    parts = []
    for part in template.split("/"):
        if not part.startswith("{"):
            parts.append(part)
        elif draw(st.integers(0, 4)) == 0:
            parts.append(quote(draw(SEGMENTS), safe="%") or "x")
        else:
            parts.append(quote(values.get(part.strip("{}"), "x"), safe=""))
    return "/".join(parts)


@st.composite
def query_of(draw: st.DrawFn, values: dict[str, str]) -> str:
    """All, some or none of these parameters, values wrong now and then."""
    chosen = [name for name in values if draw(st.integers(0, 9)) > 0]
    pairs = []
    for name in chosen:
        value = quote(draw(SEGMENTS), safe="%") if draw(st.integers(0, 3)) == 0 else quote(values[name])
        pairs += [f"{name}={value}"] * draw(st.sampled_from([1, 1, 1, 2]))
    return "?" + "&".join(pairs) if pairs else ""
