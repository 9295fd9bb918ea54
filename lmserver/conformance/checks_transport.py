"""TLS, errors and malformed requests (D04 §Transport, §API Standards)."""

from __future__ import annotations

import asyncio
import ssl

from lmserver.conformance.exchange import TIMEOUT, Answer
from lmserver.conformance.model import Failed, Skipped, check, expect
from lmserver.conformance.paths import KEY_QUERY, KEYS
from lmserver.conformance.session import Session

TRANSPORT = "Transport"
ENDPOINTS = "Unsupported Endpoints"
MALFORMED = "Malformed Requests"


async def _handshake(s: Session, alpn: list[str] | None = None) -> tuple[str | None, str | None]:
    """TLS version and application protocol that the server chooses."""
    if s.wire.plain:
        raise Skipped("plain HTTP")
    context = s.wire.context
    if alpn is not None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(alpn)
    address = s.wire.target.addresses[0]
    try:
        async with asyncio.timeout(TIMEOUT):
            _, writer = await asyncio.open_connection(
                address.ip, address.port, ssl=context, server_hostname=s.wire.target.tls_name
            )
    except (OSError, TimeoutError) as error:
        raise Failed(f"no TLS connection: {error}") from error
    connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
    chosen = connection.version(), connection.selected_alpn_protocol()
    writer.close()
    return chosen


@check("tls.version", TRANSPORT, "Servers MUST support a minimum of TLS 1.3.")
async def tls_version(s: Session) -> None:
    version, _ = await _handshake(s)
    expect(version == "TLSv1.3", f"the server chose {version}")


@check("tls.http2", TRANSPORT, "Servers MUST support a minimum of HTTP/2.")
async def http2(s: Session) -> None:
    _, protocol = await _handshake(s, ["h2", "http/1.1"])
    expect(protocol == "h2", f"offered h2 and http/1.1, the server chose {protocol}")


@check("tls.certificate", "TLS Certificates", "The certificate MUST be valid for the server's name.")
async def certificate(s: Session) -> None:
    await _handshake(s)


def _is_error(answer: Answer) -> None:
    expect(isinstance(answer.errcode, str), f"the error has no errcode: {answer}")
    expect(answer.content_type == "application/json", f"Content-Type is {answer.content_type}")


@check("errors.unknown_endpoint", ENDPOINTS, "An unknown endpoint is answered 404 M_UNRECOGNIZED.")
async def unknown_endpoint(s: Session) -> None:
    answer = await s.me.ask("GET", "/_matrix/federation/v1/org.lmserver.no_such_endpoint")
    answer.expect(404, "M_UNRECOGNIZED")


@check("errors.wrong_method", ENDPOINTS, "A known endpoint, but wrong method: 405 M_UNRECOGNIZED.")
async def wrong_method(s: Session) -> None:
    (await s.me.ask("DELETE", KEYS)).expect(405, "M_UNRECOGNIZED")


@check("errors.wrong_method_send", ENDPOINTS, "Another method than PUT on send is answered 405.")
async def wrong_method_send(s: Session) -> None:
    (await s.me.ask("GET", s.paths.send(s.fresh()))).expect(405, "M_UNRECOGNIZED")


@check("errors.trailing_slash", "Requests and Responses", "A trailing slash MUST make an endpoint unknown.")
async def trailing_slash(s: Session) -> None:
    (await s.wire.send("GET", KEYS + "/")).expect(404, "M_UNRECOGNIZED")


@check("errors.double_slash", "Requests and Responses", "//_matrix/... is an unknown endpoint.")
async def double_slash(s: Session) -> None:
    (await s.wire.send("GET", "/" + KEYS)).expect(404, "M_UNRECOGNIZED")


@check("errors.json", "Errors", "Errors are JSON objects with errcode, served as application/json.")
async def errors_are_json(s: Session) -> None:
    _is_error(await s.wire.send("GET", "/_matrix/federation/v1/org.lmserver.no_such_endpoint"))
    _is_error(await s.wire.send("GET", s.paths.event("$unknown")))


@check("responses.json", "Requests and Responses", "JSON answers MUST be served as application/json.")
async def responses_are_json(s: Session) -> None:
    answer = await s.wire.send("GET", KEYS)
    expect(answer.content_type == "application/json", f"Content-Type is {answer.content_type}")


_JSON = [("Content-Type", "application/json")]


@check("malformed.not_json", MALFORMED, "A body that is not JSON is answered 400 M_NOT_JSON.")
async def not_json(s: Session) -> None:
    (await s.wire.send("POST", KEY_QUERY, b'{"server_keys":', _JSON)).expect(400, "M_NOT_JSON")


@check("malformed.not_utf8", MALFORMED, "JSON MUST be UTF-8: other bytes are answered 400 M_NOT_JSON.")
async def not_utf8(s: Session) -> None:
    body = b'{"server_keys":{},"x":"\xff"}'
    (await s.wire.send("POST", KEY_QUERY, body, _JSON)).expect(400, "M_NOT_JSON")


@check("malformed.not_object", MALFORMED, "JSON that is not the object expected: 400 M_BAD_JSON.")
async def not_object(s: Session) -> None:
    (await s.wire.send("POST", KEY_QUERY, b"[]", _JSON)).expect(400, "M_BAD_JSON")


@check("malformed.missing_key", MALFORMED, "A body without a required key is answered 400 M_BAD_JSON.")
async def missing_key(s: Session) -> None:
    (await s.wire.send("POST", KEY_QUERY, b"{}", _JSON)).expect(400, "M_BAD_JSON")


@check("malformed.wrong_type", MALFORMED, "A send request whose pdus is no array: 400 M_BAD_JSON.")
async def wrong_type(s: Session) -> None:
    answer = await s.me.ask("PUT", s.paths.send(s.fresh()), {"pdus": "none"})
    answer.expect(400, "M_BAD_JSON")


@check("well_known.form", "GET /.well-known/matrix/server", "If it is served, m.server is a required field.")
async def well_known(s: Session) -> None:
    answer = await s.wire.send("GET", "/.well-known/matrix/server")
    expect(answer.status != 200 or isinstance(answer.fields.get("m.server"), str), f"it is answered {answer}")
