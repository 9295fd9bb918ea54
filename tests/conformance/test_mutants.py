"""Positive controls: a server with one requirement broken fails that requirement and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from lmserver.conformance.model import Outcome
from lmserver.federation_server.keys import KeyEndpoints
from lmserver.protocol import transport
from lmserver.web import routing
from lmserver.web.errors import unrecognized
from tests.conformance.mutants import Mutant, Patch, expect_failures, told
from tests.conformance.subject import Subject, failed


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
    to_sign = transport.request_to_sign
    patch.setattr(transport, "request_to_sign", lambda m, uri, o, d: to_sign(m, uri.partition("?")[0], o, d))


def only_sig(patch: Patch) -> None:
    parse = transport._parse_parameters
    patch.setattr(
        transport,
        "_parse_parameters",
        lambda value: {k: v for k, v in parse(value).items() if k != "signature"},
    )


def never_405(patch: Patch) -> None:
    patch.setattr(routing, "unrecognized", lambda status: unrecognized(404))


BASIC = ("errors.*", "responses.*", "malformed.*", "keys.*", "notary.*", "auth.*")
MUTANTS = [
    Mutant("unsigned keys", unsigned_keys, BASIC, frozenset({"keys.signed"})),
    Mutant("keys that expire in a minute", short_keys, BASIC, frozenset({"keys.lifetime"})),
    Mutant("a notary that does not sign", silent_notary, BASIC, frozenset({"notary.signs", "notary.bulk"})),
    Mutant("only the first header is checked", first_header_only, BASIC, frozenset({"auth.all_headers"})),
    Mutant("the query is not signed", query_not_signed, BASIC, frozenset({"auth.query_signed", "auth.query_accepted"})),
    Mutant("only sig is known", only_sig, BASIC, frozenset({"auth.signature"})),
    Mutant("404 for a wrong method", never_405, BASIC, frozenset({"errors.wrong_method", "errors.wrong_method_send"})),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
async def test_a_broken_server_fails_what_it_breaks(
    mutant: Mutant, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    await expect_failures(mutant, subject, monkeypatch)


async def test_the_same_server_unbroken_fails_nothing(subject: Subject) -> None:
    """So it is the mutation that fails above. There is no TLS here."""
    results = await subject.results()
    assert failed(results) == set(), told(results)
    assert {r.check.id for r in results if r.outcome is Outcome.SKIP} == {
        "tls.version",
        "tls.http2",
        "tls.certificate",
    }
