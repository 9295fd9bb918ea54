"""X-Matrix: every request between servers is signed by its origin (D04 §Request Authentication).

The signature covers method, uri, origin, destination and the parsed body, so a captured request
is worth nothing to another server, path or method. The header is read by RFC 9110's grammar and
nothing else: where two readers may disagree about who is asking, the request is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.protocol import canonical_json, ids, unpadded_base64
from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.errors import InvalidBase64, InvalidJson, RequestAuthError, SignatureError
from lmserver.protocol.signatures import SigningKey, VerifyKey

MAX_HEADER: Final = 8192
MAX_HEADERS: Final = 10

# RFC 9110 §5.6: token, quoted-string (values arrive decoded as Latin-1), BWS around "=".
_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# Origins and signatures hold ":" and "/", which no token may: peers send them unquoted all the same.
_BARE_VALUE: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z:/=]+"
_QUOTED: Final = r'"((?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*)"'
_PARAMETER: Final = re.compile(rf"({_TOKEN})[ \t]*=[ \t]*(?:{_QUOTED}|({_BARE_VALUE}))")
_SEPARATOR: Final = re.compile(r"[ \t]*(?:,[ \t]*)+")
_SCHEME: Final = re.compile(r"X-Matrix +", re.IGNORECASE)
_ESCAPED: Final = re.compile(r"\\(.)")

_ALGORITHM: Final = "ed25519:"


@dataclass(frozen=True, slots=True)
class XMatrix:
    """One Authorization header; its names are in their grammar, nothing is verified yet."""

    origin: str
    destination: str
    key_id: str
    signature: str


def request_to_sign(
    method: str, uri: str, origin: str, destination: str, content: object | None
) -> JsonObject:
    """The object a request's signature covers; a request without body has no `content`."""
    request: JsonObject = {"method": method, "uri": uri, "origin": origin, "destination": destination}
    if content is not None:
        request["content"] = content
    return request


def authorization_header(
    method: str, uri: str, destination: str, content: object | None, key: SigningKey
) -> str:
    """The Authorization value of our request. No spaces after commas: Synapse-LM answers 400 to them.

    `uri` is path and query exactly as they go over the wire. Raises InvalidJson for bad content.
    """
    body = None if content is None else canonical_json.encode(content)
    return authorization_header_of_body(method, uri, destination, body, key)


def authorization_header_of_body(
    method: str, uri: str, destination: str, body: bytes | None, key: SigningKey
) -> str:
    """The same for a body in its canonical form: it is signed as it is, not encoded again.

    "content" sorts before every other member, so the signed object begins with it.
    """
    rest = canonical_json.encode(request_to_sign(method, uri, key.server_name, destination, None))
    signed = rest if body is None else b'{"content":' + body + b"," + rest[1:]
    signature = unpadded_base64.encode(key.sign(signed))
    return (
        f'X-Matrix origin="{key.server_name}",destination="{destination}",'
        f'key="{key.key_id}",sig="{signature}"'
    )


def parse_authorization(values: Sequence[str], our_name: str) -> list[XMatrix]:
    """The request's Authorization headers, all for us and all from one other server.

    Raises RequestAuthError.
    """
    if not values:
        raise RequestAuthError("authorization is missing")
    if len(values) > MAX_HEADERS or sum(map(len, values)) > MAX_HEADER:
        raise RequestAuthError("authorization is too large")
    headers = [_parse_header(value, our_name) for value in values]
    if len({header.origin for header in headers}) != 1:
        raise RequestAuthError("authorization has more than one origin")
    return headers


def check_request(
    headers: Sequence[XMatrix], method: str, uri: str, content: object | None, keys: Mapping[str, VerifyKey]
) -> str:
    """The origin, if every header's signature verifies with the origin's `keys` by key ID.

    `uri` is the bytes on the wire, origin-form. `content` is the strictly parsed body, None without
    one. D04 signs `{}` for a request without body, Matrix and both peers omit it: either will do.
    Raises RequestAuthError.
    """
    if not headers:
        raise RequestAuthError("authorization is missing")
    # "//host/path" is a network-path reference: what it names depends on who reads it.
    if not uri.startswith("/") or uri.startswith("//"):
        raise RequestAuthError("request target is not in origin form")
    for header in headers:
        _check_header(header, method, uri, content, keys)
    return headers[0].origin


def _check_header(
    header: XMatrix, method: str, uri: str, content: object | None, keys: Mapping[str, VerifyKey]
) -> None:
    key = keys.get(header.key_id)
    if key is None:
        raise RequestAuthError("signing key is not known")
    try:
        signature = unpadded_base64.decode(header.signature)
    except InvalidBase64 as error:
        raise RequestAuthError("signature is not base64") from error
    contents: tuple[Any, ...] = (content,) if content is not None else (None, {})
    for candidate in contents:
        request = request_to_sign(method, uri, header.origin, header.destination, candidate)
        try:
            key.verify(canonical_json.encode_valid(request), signature)
        except (SignatureError, InvalidJson):
            continue
        return
    raise RequestAuthError("request signature is not valid")


def _parse_header(value: str, our_name: str) -> XMatrix:
    parameters = _parse_parameters(value)
    if "sig" in parameters and "signature" in parameters:
        raise RequestAuthError("authorization has two signatures")
    try:
        origin, destination, key_id = (parameters[name] for name in ("origin", "destination", "key"))
        signature = parameters["sig"] if "sig" in parameters else parameters["signature"]
    except KeyError as error:
        raise RequestAuthError("authorization lacks a parameter") from error
    if destination != our_name:
        raise RequestAuthError("destination is another server")
    if not ids.is_server_name(origin):
        raise RequestAuthError("origin is not a server name")
    if origin == our_name:
        raise RequestAuthError("origin is this server")
    if not key_id.startswith(_ALGORITHM) or not ids.is_key_id(key_id):
        raise RequestAuthError("key ID is not valid")
    return XMatrix(origin, destination, key_id, signature)


def _parse_parameters(value: str) -> dict[str, str]:
    """Name in lower case to value, for the scheme X-Matrix (RFC 9110 §11.4); items may be empty."""
    value = value.strip(" \t")
    scheme = _SCHEME.match(value)
    if scheme is None:
        raise RequestAuthError("authorization is not X-Matrix")
    parameters: dict[str, str] = {}
    position = _skip_separator(value, scheme.end())
    while position < len(value):
        match = _PARAMETER.match(value, position)
        if match is None:
            raise RequestAuthError("authorization is malformed")
        name, quoted, bare = match.groups()
        if name.lower() in parameters:
            raise RequestAuthError("authorization has a duplicate parameter")
        parameters[name.lower()] = _unquoted(quoted, bare)
        position = _skip_separator(value, match.end())
        if position == match.end() < len(value):
            raise RequestAuthError("authorization is malformed")
    return parameters


def _unquoted(quoted: str | None, bare: str | None) -> str:
    return bare or "" if quoted is None else _ESCAPED.sub(r"\1", quoted)


def _skip_separator(value: str, position: int) -> int:
    match = _SEPARATOR.match(value, position)
    return position if match is None else match.end()
