"""What a mutant is."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

import pytest

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """`breaks` patches the server's code; exactly the checks in `fails` fail then. In the short form
    only those marked `short` run."""

    name: str
    breaks: Callable[[Patch], None]
    fails: Set[str]
    short: bool = False
