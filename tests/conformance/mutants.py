"""What a mutant is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lmserver.conformance.model import Result
from tests.conformance.subject import Subject, failed

Patch = pytest.MonkeyPatch

LONG = os.environ.get("LMSERVER_DRILLS") == "long"
"""Every mutant meets every check then."""


@dataclass(frozen=True)
class Mutant:
    """`breaks` patches the server's code; exactly the checks in `fails` fail then, among those that
    match `around`."""

    name: str
    breaks: Callable[[Patch], None]
    around: tuple[str, ...]
    fails: frozenset[str]


async def expect_failures(mutant: Mutant, subject: Subject, patch: Patch) -> None:
    mutant.breaks(patch)
    results = await subject.results(*(() if LONG else mutant.around))
    assert sorted(failed(results)) == sorted(mutant.fails), told(results)


def told(results: list[Result]) -> str:
    return "\n".join(f"{r.outcome.value} {r.check.id}: {r.detail}" for r in results if r.detail)
