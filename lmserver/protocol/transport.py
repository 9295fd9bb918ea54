"""X-Matrix: every request between servers is signed by its origin (D04 §Request Authentication).

The signature covers method, uri, origin, destination and the parsed body, so a captured request
is worth nothing to another server, path or method. The header is read by RFC 9110's grammar and
nothing else: where two readers may disagree about who is asking, the request is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lmserver.protocol import canonical_json, ids, unpadded_base64
from lmserver.protocol.errors import InvalidBase64, RequestAuthError, SignatureError, TooLarge
from lmserver.protocol.signatures import SigningKey, VerifyKey

MAX_HEADER: Final = 8192
MAX_HEADERS: Final = 10
MAX_NOT_CANONICAL: Final = 1024 * 1024
"""A larger body is checked only as it came: before its signature is, a body is hardly worth parsing."""

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


def request_to_sign(method: str, uri: str, origin: str, destination: str) -> bytes:
    """The canonical form of the object a request's signature covers, without `content`.

    Raises InvalidJson for a uri that is not text.
    """
    return canonical_json.encode({"method": method, "uri": uri, "origin": origin, "destination": destination})


def _with_content(request: bytes, body: bytes | None) -> bytes:
    """The same with a body in canonical form: "content" sorts before every other member.

    No other body and request give the same bytes: what follows the body are four strings, and a
    string has no bare quote in it.
    """
    return request if body is None else b'{"content":' + body + b"," + request[1:]


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
    """The same for a body in its canonical form: it is signed as it is, not encoded again."""
    request = request_to_sign(method, uri, key.server_name, destination)
    signature = key.sign_base64(_with_content(request, body))
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
    headers: Sequence[XMatrix], method: str, uri: str, body: bytes | None, keys: Mapping[str, VerifyKey]
) -> str:
    """The origin, if every header's signature verifies with the origin's `keys` by key ID.

    `uri` is the bytes on the wire, origin-form; `body` the bytes of the body, None without one. The
    signature covers the canonical form, which nearly every peer sends: the bytes are tried as they
    came, so that a stranger's body is not parsed. D04 signs `{}` for a request without body, Matrix
    and both peers omit it: either will do. Raises RequestAuthError, or InvalidJson or TooLarge for a
    body in no form that can be checked.
    """
    if not headers:
        raise RequestAuthError("authorization is missing")
    # "//host/path" is a network-path reference: what it names depends on who reads it.
    if not uri.startswith("/") or uri.startswith("//"):
        raise RequestAuthError("request target is not in origin form")
    signed = [(_key_of(header, keys), _signature_of(header)) for header in headers]
    request = request_to_sign(method, uri, headers[0].origin, headers[0].destination)
    if not any(_all_verify(signed, _with_content(request, form)) for form in _forms(body)):
        raise RequestAuthError("request signature is not valid")
    return headers[0].origin


def _forms(body: bytes | None) -> Iterator[bytes | None]:
    """The forms of a body that its origin may have signed, the cheapest to try first."""
    yield body
    if body is None:
        yield b"{}"
    elif len(body) > MAX_NOT_CANONICAL:
        raise TooLarge("a body this large is checked only in canonical form")
    else:
        yield canonical_json.encode_valid(canonical_json.parse(body))


def _all_verify(signed: Sequence[tuple[VerifyKey, bytes]], message: bytes) -> bool:
    try:
        for key, signature in signed:
            key.verify(message, signature)
    except SignatureError:
        return False
    return True


def _key_of(header: XMatrix, keys: Mapping[str, VerifyKey]) -> VerifyKey:
    key = keys.get(header.key_id)
    if key is None:
        raise RequestAuthError("signing key is not known")
    return key


def _signature_of(header: XMatrix) -> bytes:
    try:
        return unpadded_base64.decode(header.signature)
    except InvalidBase64 as error:
        raise RequestAuthError("signature is not base64") from error


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
