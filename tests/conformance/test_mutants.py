"""Positive controls: a server with one requirement broken fails that requirement and nothing else.

In the short form some mutants meet the checks they have to fail and a few of every kind; with
LMSERVER_DRILLS=long every mutant meets every check.
"""

from __future__ import annotations

import os

import pytest

from lmserver.conformance import checks
from lmserver.conformance.model import Outcome, Result
from tests.conformance import basic_mutants, hub_mutants, participant_mutants
from tests.conformance.mutants import Mutant
from tests.conformance.subject import Subject, failed

MUTANTS = [*basic_mutants.MUTANTS, *hub_mutants.MUTANTS, *participant_mutants.MUTANTS]
LONG = os.environ.get("LMSERVER_DRILLS") == "long"
NEIGHBOURS = {
    "keys.signed", "keys.lifetime", "notary.query", "auth.sig", "auth.all_headers", "malformed.not_json",
    "join.template", "join.state_hashes", "hub.echo", "hub.content_hash", "hub.list", "lpdu.failed_pdus",
    "lpdu.bad_signature", "send.same_response", "rules.state_level", "allowed.message", "leave.sent",
    "knock.sent", "event.served", "state.before", "backfill.order", "participant.lpdu_hash",
    "participant.signature", "receive.message", "receive.bad_signature", "invited.signature", "edu.to_device",
    "requests.signed",
}  # fmt: skip


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if LONG or m.short], ids=lambda mutant: mutant.name)
async def test_a_broken_server_fails_what_it_breaks(
    mutant: Mutant, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant.breaks(monkeypatch)
    results = await subject.results(*(() if LONG else mutant.fails | NEIGHBOURS))
    assert sorted(failed(results)) == sorted(mutant.fails), told(results)


async def test_the_same_server_unbroken_fails_nothing(subject: Subject) -> None:
    """So it is the mutation that fails above. There is no TLS here."""
    results = await subject.results(*(() if LONG else NEIGHBOURS))
    assert failed(results) == set(), told(results)
    skipped = {r.check.id for r in results if r.outcome is Outcome.SKIP}
    assert skipped == ({"tls.version", "tls.http2", "tls.certificate"} if LONG else set())


def test_every_neighbour_is_a_check() -> None:
    assert {check.id for check in checks.ALL} >= NEIGHBOURS


def told(results: list[Result]) -> str:
    return "\n".join(f"{r.outcome.value} {r.check.id}: {r.detail}" for r in results if r.detail)
