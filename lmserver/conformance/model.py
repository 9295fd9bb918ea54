"""What a check is, how it says that it failed, and the list of all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmserver.conformance.session import Session


class Level(Enum):
    """RFC 2119's words. What only SHOULD hold is a warning when it does not."""

    MUST = "MUST"
    SHOULD = "SHOULD"


class Role(Enum):
    """In which role the server under test is looked at."""

    ANY = "any"
    HUB = "hub"
    PARTICIPANT = "participant"


class Outcome(Enum):
    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    WARN = "warn"
    SKIP = "skip"


class Failed(Exception):
    """The server does not do what the text says; the message is what it did instead."""


class Skipped(Exception):
    """The check cannot be made; the message says what it needs."""


Function = Callable[["Session"], Awaitable[None]]


@dataclass(frozen=True)
class Check:
    """One requirement. `section` is the draft's heading, `text` the requirement in one sentence."""

    id: str
    section: str
    text: str
    level: Level
    role: Role
    function: Function = field(repr=False)


@dataclass(frozen=True)
class Result:
    """What came of a check; `exchanges` is what went over the wire in it, when it failed."""

    check: Check
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0
    exchanges: list[dict[str, Any]] = field(default_factory=list)


CHECKS: list[Check] = []


def check(
    id: str, section: str, text: str, *, level: Level = Level.MUST, role: Role = Role.ANY
) -> Callable[[Function], Function]:
    """Register a check."""

    def register(function: Function) -> Function:
        if any(known.id == id for known in CHECKS):
            raise ValueError(f"two checks named {id}")
        CHECKS.append(Check(id, section, text, level, role, function))
        return function

    return register


def expect(condition: object, otherwise: str) -> None:
    """Fail with `otherwise` unless the condition holds."""
    if not condition:
        raise Failed(otherwise)
