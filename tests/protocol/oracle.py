"""A second reading of the draft's membership and power-level rules, written from its text.

Deliberately unlike the code under test: memberships as one table of conditions, power levels as
set arithmetic over a flattened document. Where both agree on every combination, a slip would have
to be made twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """One combination, in the draft's words. Levels are numbers; `needs` maps actions to levels."""

    sender_was: str
    target_was: str
    becomes: str
    join_rule: str | None
    same: bool
    sender_level: int
    target_level: int
    needs: dict[str, int]


Condition = Callable[[Case], bool]

# Membership to alternatives; each alternative is a list of conditions that must all hold.
TABLE: dict[str, list[list[Condition]]] = {
    "join": [
        [lambda c: c.same, lambda c: c.sender_was != "ban", lambda c: c.join_rule == "public"],
        [
            lambda c: c.same,
            lambda c: c.sender_was in {"invite", "join"},
            lambda c: c.join_rule in {"invite", "knock", None},
        ],
    ],
    "invite": [
        [
            lambda c: c.sender_was == "join",
            lambda c: c.target_was not in {"join", "ban"},
            lambda c: c.sender_level >= c.needs["invite"],
        ],
    ],
    "leave": [
        [lambda c: c.same, lambda c: c.sender_was in {"knock", "join", "invite"}],
        [
            lambda c: not c.same,
            lambda c: c.sender_was == "join",
            lambda c: c.target_was != "ban" or c.sender_level >= c.needs["ban"],
            lambda c: c.sender_level >= c.needs["kick"],
            lambda c: c.target_level < c.sender_level,
        ],
    ],
    "ban": [
        [
            lambda c: c.sender_was == "join",
            lambda c: c.sender_level >= c.needs["ban"],
            lambda c: c.target_level < c.sender_level,
        ],
    ],
    "knock": [
        [lambda c: c.join_rule == "knock", lambda c: c.same, lambda c: c.sender_was not in {"ban", "join"}],
    ],
}


def membership_allowed(case: Case) -> bool:
    """Whether the draft lets the change happen; unknown memberships have no alternative."""
    return any(all(condition(case) for condition in way) for way in TABLE.get(case.becomes, []))


FIELDS = {"users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"}


def _flat(content: dict[str, Any]) -> dict[tuple[str, str], int]:
    flat = {("field", k): v for k, v in content.items() if k in FIELDS}
    for section in ("events", "users"):
        flat |= {(section, k): v for k, v in content.get(section, {}).items()}
    return flat


def power_change_allowed(old: dict[str, Any], new: dict[str, Any], sender: str) -> bool:
    """Rules 9.5 to 9.9 for well-formed contents, with the decided reading of 9.8."""
    own = old.get("users", {}).get(sender, old.get("users_default", 0))
    before, after = _flat(old), _flat(new)
    for key in before.keys() | after.keys():
        was, now = before.get(key), after.get(key)
        if was == now:
            continue
        if now is not None and now > own:
            return False
        if was is None or key == ("users", sender):
            continue
        if was > own or (key[0] == "users" and was == own):
            return False
    return True
