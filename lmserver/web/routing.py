"""Paths to endpoints, on the bytes of the wire.

Each segment is decoded by itself, so an encoded slash inside a room alias stays inside it, and a
path that is not exactly a declared one is unknown: no trailing slashes, no empty segments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from lmserver.web.endpoint import Endpoint
from lmserver.web.errors import bad_param, unrecognized


@dataclass(slots=True)
class _Node:
    literal: dict[str, _Node] = field(default_factory=dict)
    parameter: _Node | None = None
    methods: dict[str, tuple[Endpoint, tuple[str, ...]]] = field(default_factory=dict)


class Router:
    """A tree of segments; literals win over parameters."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._root = _Node()
        for entry in endpoints:
            self._add(entry)

    def _add(self, entry: Endpoint) -> None:
        node = self._root
        names: list[str] = []
        for segment in entry.path.split("/")[1:]:
            if segment.startswith("{"):
                names.append(segment[1:-1])
                node.parameter = node = node.parameter or _Node()
            else:
                node = node.literal.setdefault(segment, _Node())
        if entry.method in node.methods:
            raise ValueError(f"two endpoints for {entry.method} {entry.path}")
        node.methods[entry.method] = (entry, tuple(names))

    def find(self, method: str, raw_path: str) -> tuple[Endpoint, dict[str, str]]:
        """The endpoint and its parameters; raises ApiError 404, 405 or 400."""
        segments = raw_path.split("/")[1:]
        values: list[str] = []
        node = _descend(self._root, segments, 0, values)
        if node is None:
            raise unrecognized(404)
        found = node.methods.get(method) or (node.methods.get("GET") if method == "HEAD" else None)
        if found is None:
            raise unrecognized(405)
        entry, names = found
        return entry, dict(zip(names, map(_decode, values), strict=True))


def _descend(node: _Node, segments: list[str], index: int, values: list[str]) -> _Node | None:
    if index == len(segments):
        return node if node.methods else None
    segment = segments[index]
    child = node.literal.get(segment)
    if child is not None:
        found = _descend(child, segments, index + 1, values)
        if found is not None:
            return found
    if node.parameter is None or not segment:
        return None
    mark = len(values)
    values.append(segment)
    found = _descend(node.parameter, segments, index + 1, values)
    if found is None:
        del values[mark:]
    return found


def _decode(segment: str) -> str:
    try:
        return unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise bad_param("A path segment is not UTF-8") from None
