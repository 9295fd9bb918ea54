"""Last of all: every request the server made of us in this run (D04 §Request Authentication)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lmserver.conformance import draft
from lmserver.conformance.model import Failed, Level, Skipped, check, expect
from lmserver.conformance.persona import Inbound, Persona
from lmserver.conformance.session import Session

AUTH = "Request Authentication"
REQUESTS = "Requests and Responses"
_PARAMETER = re.compile(r'([A-Za-z0-9._-]+)="?([^",]*)"?')


def _asked(s: Session) -> Iterator[tuple[Persona, Inbound]]:
    """Requests to endpoints that require authentication, which is all but the keys."""
    found = [(p, r) for p in s.personas for r in p.received if r.uri.startswith("/_matrix/federation/")]
    if not found:
        raise Skipped("the server made no request of the suite in this run")
    yield from found


def _header(request: Inbound) -> dict[str, str]:
    values = [value for name, value in request.headers if name.lower() == "authorization"]
    if not values or not values[0].startswith("X-Matrix "):
        raise Failed(f"{request.method} {request.uri} has no X-Matrix header: {values}")
    return {name.lower(): value for name, value in _PARAMETER.findall(values[0].partition(" ")[2])}


@check("requests.signed", AUTH, "Requests are signed by the server, with and for the names in the header.")
async def signed(s: Session) -> None:
    keys = await s.server_keys()
    for persona, request in _asked(s):
        header = _header(request)
        named = {
            "method": request.method, "uri": request.uri,
            "origin": s.server, "destination": persona.name,
        }  # fmt: skip
        where = f"{request.method} {request.uri}"
        expect(header.get("origin") == s.server, f"{where}: origin is {header.get('origin')!r}")
        expect(header.get("key") in keys, f"{where}: key is {header.get('key')!r}")
        signature = header.get("sig", header.get("signature"))
        # Without a body the draft signs {}, Matrix and the known peers nothing.
        contents = [{"content": request.json}] if request.body else [{}, {"content": {}}]
        messages = [draft.canonical(named | content) for content in contents]
        expect(
            any(draft.verifies(keys[header["key"]], message, signature) for message in messages),
            f"{where}: the signature is not valid",
        )


@check("requests.destination", AUTH, "The header's destination MUST match the one in the signed JSON.")
async def destination(s: Session) -> None:
    for persona, request in _asked(s):
        found = _header(request).get("destination")
        expect(found == persona.name, f"{request.method} {request.uri}: destination is {found!r}")


@check("requests.json", REQUESTS, "POST and PUT requests have a JSON object as body.")
async def json_bodies(s: Session) -> None:
    for _, request in _asked(s):
        if request.method in ("POST", "PUT"):
            expect(isinstance(request.json, dict), f"{request.method} {request.uri}: {request.body[:100]!r}")


@check("requests.content_type", REQUESTS, "POST and PUT requests SHOULD have Content-Type application/json.",
       level=Level.SHOULD)  # fmt: skip
async def content_type(s: Session) -> None:
    for _, request in _asked(s):
        types = [v for name, v in request.headers if name.lower() == "content-type"]
        if request.method in ("POST", "PUT"):
            expect(types[:1] == ["application/json"], f"{request.method} {request.uri}: {types}")


@check(
    "requests.host",
    "Resolving Server Names",
    "The Host header is the server name that was resolved.",
)
async def host(s: Session) -> None:
    for persona, request in _asked(s):
        hosts = [value for name, value in request.headers if name.lower() == "host"]
        expect(hosts == [persona.name], f"{request.method} {request.uri}: Host is {hosts}")
