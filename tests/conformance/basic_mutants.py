"""Servers with one thing broken in what every role needs: errors, keys, authentication."""

from __future__ import annotations

from typing import Any

from lmserver.federation_server.keys import KeyEndpoints
from lmserver.protocol import transport
from lmserver.protocol.errors import RequestAuthError
from lmserver.web import routing
from lmserver.web.errors import unrecognized
from tests.conformance.mutants import Mutant, Patch


def unsigned_keys(patch: Patch) -> None:
    own = KeyEndpoints._own
    patch.setattr(KeyEndpoints, "_own", lambda self: {**own(self), "signatures": {}})


def short_keys(patch: Patch) -> None:
    patch.setattr("lmserver.federation_server.keys.VALID_MS", 60_000)


def silent_notary(patch: Patch) -> None:
    patch.setattr("lmserver.federation_server.keys.sign_json", lambda document, key: document)
    own = KeyEndpoints._own

    def signed(self: KeyEndpoints) -> dict[str, Any]:
        from lmserver.protocol.signatures import sign_json

        return sign_json(own(self), self._key)

    patch.setattr(KeyEndpoints, "_own", signed)


def first_header_only(patch: Patch) -> None:
    check = transport.check_request
    patch.setattr(transport, "check_request", lambda headers, *rest: check(headers[:1], *rest))


def query_not_signed(patch: Patch) -> None:
    check = transport.check_request

    def either(headers: Any, method: str, uri: str, *rest: Any) -> str:
        try:
            return check(headers, method, uri, *rest)
        except RequestAuthError:
            return check(headers, method, uri.partition("?")[0], *rest)

    patch.setattr(transport, "check_request", either)


def only_sig(patch: Patch) -> None:
    parse = transport._parse_parameters
    patch.setattr(
        transport,
        "_parse_parameters",
        lambda value: {k: v for k, v in parse(value).items() if k != "signature"},
    )


def never_405(patch: Patch) -> None:
    patch.setattr(routing, "unrecognized", lambda status: unrecognized(404))


MUTANTS = [
    Mutant("unsigned keys", unsigned_keys, {"keys.signed"}, short=True),
    Mutant("keys that expire in a minute", short_keys, {"keys.lifetime"}),
    Mutant("a notary that does not sign", silent_notary, {"notary.signs", "notary.bulk"}),
    Mutant("only the first header is checked", first_header_only, {"auth.all_headers"}, short=True),
    Mutant("the query is not signed", query_not_signed, {"auth.query_signed"}),
    Mutant("only sig is known", only_sig, {"auth.signature"}),
    Mutant("404 for a wrong method", never_405, {"errors.wrong_method", "errors.wrong_method_send"}),
]  # fmt: skip
