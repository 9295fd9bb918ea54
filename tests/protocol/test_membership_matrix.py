"""Every combination of membership, join rule, sender, target and power, against the oracle."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserver.protocol.auth_rules import authorize
from lmserver.protocol.errors import AuthRejected
from lmserver.protocol.events import EventDraft
from lmserver.protocol.room_versions import LM_02
from lmserver.protocol.room_view import RoomView, StateEvent
from tests.kit.rooms import ALICE, HUB, ROOM, draft, member
from tests.protocol.oracle import Case, membership_allowed, power_change_allowed

SENDER, TARGET = f"@sender:{HUB}", f"@target:{HUB}"
MEMBERSHIPS = ("leave", "invite", "join", "ban", "knock", None)
BECOMES = ("join", "invite", "leave", "ban", "knock", "junk")
RULES = ("public", "invite", "knock", "restricted", "knock_restricted", "private", "junk", None)
NEEDS = {"ban": 60, "kick": 40, "invite": 20, "redact": 50}
LEVELS = (0, 20, 40, 60, 80)


def room(state: dict[tuple[str, str], dict[str, Any]], *, head: str = "$head") -> RoomView:
    events = {
        (type_, key): StateEvent(f"${type_}{key}", type_, key, ALICE, content)
        for (type_, key), content in state.items()
    }
    events["m.room.create", ""] = StateEvent(
        "$create", "m.room.create", "", ALICE, {"room_version": LM_02.id}
    )
    return RoomView(ROOM, LM_02, HUB, head, 9, events)


def allowed(event: EventDraft, view: RoomView) -> bool:
    try:
        authorize(event, view)
    except AuthRejected:
        return False
    return True


def situation(
    sender_was: str | None, target_was: str | None, rule: str | None, levels: dict[str, int]
) -> RoomView:
    state: dict[tuple[str, str], dict[str, Any]] = {
        ("m.room.power_levels", ""): {**NEEDS, "users": levels},
    }
    if rule is not None:
        state["m.room.join_rules", ""] = {"join_rule": rule}
    if target_was is not None:
        state["m.room.member", TARGET] = {"membership": target_was}
    if sender_was is not None:
        state["m.room.member", SENDER] = {"membership": sender_was}
    return room(state)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("becomes", BECOMES)
def test_a13_of_others_matches_the_oracle(rule: str | None, becomes: str) -> None:
    verdicts = set()
    for sender_was, target_was, level, other in product(MEMBERSHIPS, MEMBERSHIPS, LEVELS, LEVELS):
        view = situation(sender_was, target_was, rule, {SENDER: level, TARGET: other})
        case = Case(sender_was or "leave", target_was or "leave", becomes, rule, False, level, other, NEEDS)
        verdict = allowed(member(becomes, sender=SENDER, target=TARGET), view)
        assert verdict == membership_allowed(case), case
        verdicts.add(verdict)
    expected = {True, False} if becomes in ("invite", "leave", "ban") else {False}
    assert verdicts == expected


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("becomes", BECOMES)
def test_a13_of_oneself_matches_the_oracle(rule: str | None, becomes: str) -> None:
    for was, level in product(MEMBERSHIPS, LEVELS):
        view = situation(was, None, rule, {SENDER: level})
        case = Case(was or "leave", was or "leave", becomes, rule, True, level, level, NEEDS)
        assert allowed(member(becomes, sender=SENDER), view) == membership_allowed(case), case


def test_the_matrix_is_not_one_sided() -> None:
    """Control: the oracle itself says yes and no often enough to notice a constant answer."""
    cases = [
        Case(s, t, b, r, False, level, other, NEEDS)
        for s, t, b, r, level, other in product(
            MEMBERSHIPS[:5], MEMBERSHIPS[:5], BECOMES, RULES, LEVELS, LEVELS
        )
    ]
    yes = sum(membership_allowed(case) for case in cases)
    assert 0.02 < yes / len(cases) < 0.5


level = st.integers(-3, 3)
user = st.sampled_from([SENDER, TARGET, f"@third:{HUB}"])
contents = st.fixed_dictionaries(
    {},
    optional={
        "users": st.dictionaries(user, level, max_size=3),
        "events": st.dictionaries(st.sampled_from(["m.a", "m.b"]), level, max_size=2),
        "users_default": level,
        "events_default": level,
        "state_default": st.integers(-3, 0),
        "ban": level,
        "kick": level,
        "redact": level,
        "invite": level,
    },
)


@given(old=contents, new=contents)
def test_power_level_changes_match_the_oracle(old: dict[str, Any], new: dict[str, Any]) -> None:
    # A low bar for sending, so that rule 7 does not hide rule 9.
    old = {**old, "events": {**old.get("events", {}), "m.room.power_levels": -99}}
    new = {**new, "events": {**new.get("events", {}), "m.room.power_levels": -99}}
    view = room({("m.room.power_levels", ""): old, ("m.room.member", SENDER): {"membership": "join"}})
    event = draft("m.room.power_levels", new, sender=SENDER, state_key="")
    assert allowed(event, view) == power_change_allowed(old, new, SENDER)
