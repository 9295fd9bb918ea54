"""State that many events change: the same as a dictionary, at a fraction of its copies (R14)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lmserver.protocol import state_map
from lmserver.protocol.room_view import StateEvent
from lmserver.protocol.state_map import StateMap

MANY = 100_000
CHANGES = 300


def entry(key: str, number: int = 0) -> StateEvent:
    return StateEvent(f"${key}-{number}", "m.test", key, "@a:b", {})


@given(keys=st.lists(st.integers(0, 150), max_size=400), shared=st.integers(0, 100))
def test_it_is_what_a_dictionary_would_be_at_every_step(keys: list[int], shared: int) -> None:
    base = {("m.test", str(n)): entry(str(n)) for n in range(shared)}
    plain, state = dict(base), StateMap(base)
    steps = []
    for number, key in enumerate(keys, 1):
        changed = entry(str(key), number)
        plain = {**plain, ("m.test", str(key)): changed}
        state = state.changed(changed)
        steps.append((plain, state))
    for expected, found in steps[:: max(1, len(steps) // 7)]:
        assert found == expected and len(found) == len(expected) and set(found) == set(expected)
        assert found.get(("m.test", "none")) is None and ("m.test", "none") not in found
    assert len(base) == shared


def seconds(change: Callable[[Any, StateEvent], Any], state: Any) -> float:
    started = time.process_time()
    for number in range(CHANGES):
        state = change(state, entry(f"new{number}"))
    return time.process_time() - started


def test_r14_a_change_does_not_copy_a_large_state() -> None:
    base = {("m.test", str(n)): entry(str(n)) for n in range(MANY)}
    copying = seconds(lambda state, event: {**state, (event.type, event.state_key): event}, base)
    assert seconds(StateMap.changed, StateMap(base)) < copying / 5


def test_what_is_kept_apart_stays_small() -> None:
    base = {("m.test", str(n)): entry(str(n)) for n in range(10_000)}
    state = StateMap(base)
    for number in range(1000):
        state = state.changed(entry(str(number), 1))
        assert len(state._changes) <= max(state_map.FEW, 100)
    assert len(state) == 10_000
