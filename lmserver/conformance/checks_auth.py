"""X-Matrix request authentication (D04 §Request Authentication).

The probe is a GET of an event nobody has: 404 M_NOT_FOUND when the request is believed, 401
M_FORBIDDEN when it is not.
"""

from __future__ import annotations

import json

from lmserver.conformance import draft
from lmserver.conformance.model import Level, check, expect
from lmserver.conformance.persona import Persona
from lmserver.conformance.session import Session

AUTH = "Request Authentication"
KEYS = "GET /_matrix/key/v2/server"
NOBODYS = "$" + "A" * 43


def _probe(s: Session) -> str:
    return s.paths.event(NOBODYS)


async def _believed(s: Session, *authorization: str) -> None:
    (await s.me.ask_with("GET", _probe(s), None, *authorization)).expect(404, "M_NOT_FOUND")


async def _refused(s: Session, *authorization: str, persona: Persona | None = None) -> None:
    answer = await (persona or s.me).ask_with("GET", _probe(s), None, *authorization)
    answer.expect(401, "M_FORBIDDEN")


def _good(s: Session) -> str:
    """A signature of the probe as Matrix and the known peers make it."""
    return s.me.signature("GET", _probe(s))


@check("auth.sig", AUTH, "A request with a valid signature in `sig`, as in the draft's example, is accepted.")
async def sig(s: Session) -> None:
    answer = await s.me.ask("GET", _probe(s))
    hint = f" (has it seen {s.me.name} with other keys? --signing-key FILE keeps them between runs)"
    expect(answer.status != 401, f"the answer is {answer}{hint}")
    answer.expect(404, "M_NOT_FOUND")


@check("auth.signature", AUTH, "The parameter that carries the signature is `signature`.")
async def signature(s: Session) -> None:
    await _believed(s, s.me.header(None, signature=_good(s)))


@check("auth.empty_content", AUTH, "For a request without a body, content is signed as an empty object.")
async def empty_content(s: Session) -> None:
    await _believed(s, s.me.header(s.me.signature("GET", _probe(s), {})))


@check("auth.missing", AUTH, "At least one Authorization header must be present, else 401 M_FORBIDDEN.")
async def missing(s: Session) -> None:
    await _refused(s)


@check("auth.other_scheme", AUTH, "A header of another scheme does not authenticate.")
async def other_scheme(s: Session) -> None:
    await _refused(s, "Bearer abcdef")


@check("auth.wrong_signature", AUTH, "A signature that does not verify is answered 401 M_FORBIDDEN.")
async def wrong_signature(s: Session) -> None:
    other = draft.Key.make(s.me.name, s.me.key.key_id)
    await _refused(s, s.me.header(s.me.signature("GET", _probe(s), key=other)))


@check("auth.malformed_signature", AUTH, "A signature that is not base64 is answered 401 M_FORBIDDEN.")
async def malformed_signature(s: Session) -> None:
    await _refused(s, s.me.header("not base64!"))


@check("auth.wrong_destination", AUTH, "destination MUST match: a header for another server is refused.")
async def wrong_destination(s: Session) -> None:
    elsewhere = "elsewhere.example.org"
    signed = s.me.signature("GET", _probe(s), destination=elsewhere)
    await _refused(s, s.me.header(signed, destination=elsewhere))


@check("auth.destination_signed", AUTH, "destination MUST match the one in the signed JSON.")
async def destination_signed(s: Session) -> None:
    await _refused(s, s.me.header(s.me.signature("GET", _probe(s), destination="elsewhere.example.org")))


@check("auth.no_destination", AUTH, "A header without destination is refused.")
async def no_destination(s: Session) -> None:
    await _refused(s, s.me.header(_good(s), destination=None))


@check("auth.no_key", AUTH, "A header without key is refused.")
async def no_key(s: Session) -> None:
    await _refused(s, s.me.header(_good(s), key=None))


@check("auth.unknown_key", AUTH, "A key that the origin does not list is refused.")
async def unknown_key(s: Session) -> None:
    key = draft.Key.make(s.me.name, "ed25519:unlisted")
    await _refused(s, s.me.header(s.me.signature("GET", _probe(s), key=key), key=key.key_id))


@check("auth.other_origin", AUTH, "origin MUST match: our signature is not another server's.")
async def other_origin(s: Session) -> None:
    uri, other = _probe(s), s.other
    signed = {"method": "GET", "uri": uri, "origin": other.name, "destination": s.server}
    forged = s.me.key.sign(draft.canonical(signed))
    await _refused(s, s.me.header(forged, origin=other.name, key=other.key.key_id))


@check("names.address", "Server Names", "A server MUST NOT use an IP address as its name.")
async def address(s: Session) -> None:
    name = "127.0.0.1:" + (s.me.name.partition(":")[2] or "8448")
    uri = _probe(s)
    signed = {"method": "GET", "uri": uri, "origin": name, "destination": s.server}
    await _refused(s, s.me.header(s.me.key.sign(draft.canonical(signed)), origin=name))


@check("auth.wrong_method", AUTH, "The signature covers the method.")
async def wrong_method(s: Session) -> None:
    await _refused(s, s.me.header(s.me.signature("PUT", _probe(s))))


@check("auth.wrong_uri", AUTH, "The signature covers the request path.")
async def wrong_uri(s: Session) -> None:
    await _refused(s, s.me.header(s.me.signature("GET", s.paths.event("$" + "B" * 43))))


@check("auth.query_signed", AUTH, "uri contains the query string: a signature without it is refused.")
async def query_signed(s: Session) -> None:
    uri = s.paths.state(f"!none:{s.server}", NOBODYS)
    bare = s.me.header(s.me.signature("GET", uri.partition("?")[0]))
    (await s.me.ask_with("GET", uri, None, bare)).expect(401, "M_FORBIDDEN")


@check("auth.query_accepted", AUTH, "uri contains the query string: a signature with it is accepted.")
async def query_accepted(s: Session) -> None:
    answer = await s.me.ask("GET", s.paths.state(f"!none:{s.server}", NOBODYS))
    answer.expect(404, "M_NOT_FOUND")


@check("auth.wrong_content", AUTH, "The signature covers the body.")
async def wrong_content(s: Session) -> None:
    uri = s.paths.send(s.fresh())
    header = s.me.header(s.me.signature("PUT", uri, {"pdus": []}))
    (await s.me.ask_with("PUT", uri, {"pdus": [], "edus": []}, header)).expect(401, "M_FORBIDDEN")


@check("auth.content_formatting", AUTH, "The signature covers the body's JSON value, however it is written.")
async def content_formatting(s: Session) -> None:
    uri = s.paths.send(s.fresh())
    content: dict[str, list[str]] = {"pdus": [], "edus": []}
    body = json.dumps(content, indent=2).encode()
    header = s.me.header(s.me.signature("PUT", uri, content))
    (await s.me.ask_raw("PUT", uri, body, header)).expect(200)


@check("auth.unknown_parameter", AUTH, "Unknown parameters MUST NOT result in authentication errors.")
async def unknown_parameter(s: Session) -> None:
    await _believed(s, s.me.header(_good(s), **{"org.lmserver.unknown": "anything"}))


@check("auth.parameter_case", AUTH, "Names of parameters are case insensitive.")
async def parameter_case(s: Session) -> None:
    header = s.me.header(_good(s))
    await _believed(s, header.replace("origin=", "Origin=").replace("key=", "KEY="))


@check("auth.parameter_order", AUTH, "Parameters are unordered, after one or more spaces.")
async def parameter_order(s: Session) -> None:
    scheme, _, parameters = s.me.header(_good(s)).partition(" ")
    await _believed(s, f"{scheme}   {','.join(reversed(parameters.split(',')))}")


@check("auth.spaces", AUTH, "The header has RFC 9110's format: white space may follow a comma.")
async def spaces(s: Session) -> None:
    await _believed(s, s.me.header(_good(s)).replace(",", ", "))


@check("auth.escapes", AUTH, "Quoted values may contain backslash-escaped characters, to be unescaped.")
async def escapes(s: Session) -> None:
    escaped = "\\" + "\\".join(s.me.name)
    await _believed(s, s.me.header(_good(s), origin=escaped))


@check("auth.token", AUTH, "A value that is a token may stand without quotes.")
async def token(s: Session) -> None:
    await _believed(s, s.me.header(_good(s)) + ",org.lmserver.unknown=a-token")


@check("base64.padded", "Unpadded Base64", "Base64 SHOULD be accepted with padding too.", level=Level.SHOULD)
async def padded(s: Session) -> None:
    await _believed(s, s.me.header(_good(s) + "=="))


@check("auth.two_keys", AUTH, "A server may include a header for each of its signing keys.")
async def two_keys(s: Session) -> None:
    second = s.me.second_key
    header = s.me.header(s.me.signature("GET", _probe(s), key=second), key=second.key_id)
    await _believed(s, s.me.header(_good(s)), header)


@check("auth.all_headers", AUTH, "If any of the headers fails validation the request MUST be rejected.")
async def all_headers(s: Session) -> None:
    second = s.me.second_key
    await _refused(s, s.me.header(_good(s)), s.me.header(_good(s), key=second.key_id))


@check("auth.old_key", KEYS, "Only keys listed under verify_keys are honoured for requests.")
async def old_key(s: Session) -> None:
    old = s.me.old_key
    await _refused(s, s.me.header(s.me.signature("GET", _probe(s), key=old), key=old.key_id))


@check("auth.expired_key", AUTH, "Signatures MUST use a key that is unexpired at the time of the request.")
async def expired_key(s: Session) -> None:
    expired = s.expired
    await _refused(s, expired.header(expired.signature("GET", _probe(s))), persona=expired)


@check("auth.send", AUTH, "Sending requires authentication.")
async def send(s: Session) -> None:
    (await s.me.ask_with("PUT", s.paths.send(s.fresh()), {"pdus": []})).expect(401, "M_FORBIDDEN")
