"""A room's state in memory, of which every change makes another and leaves the one before as it was.

A room may have any number of state entries, and whoever may set state sets them (attack R14): a change
must not cost a copy of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from lmserver.protocol.room_view import StateEvent, StateKey

FEW: Final = 64
"""So many changes are always kept apart."""


class StateMap(Mapping[StateKey, StateEvent]):
    """Entries that are shared with earlier states, and the newer ones beside them.

    The newer ones are copied at each change, and merged with the others once there are more of them
    than the square root of those: a change costs that much, not all.
    """

    __slots__ = ("_changes", "_length", "_shared")

    def __init__(self, shared: Mapping[StateKey, StateEvent]) -> None:
        """`shared` is not changed from now on."""
        self._shared = shared
        self._changes: dict[StateKey, StateEvent] = {}
        self._length = len(shared)

    def changed(self, event: StateEvent) -> StateMap:
        """The state in which this event is the entry of its type and key."""
        key = (event.type, event.state_key)
        changes = {**self._changes, key: event}
        if len(changes) > FEW and len(changes) ** 2 > len(self._shared):
            return StateMap({**self._shared, **changes})
        made = StateMap(self._shared)
        made._changes = changes
        made._length = self._length + (key not in self)
        return made

    def __getitem__(self, key: StateKey) -> StateEvent:
        found = self._changes.get(key)
        return self._shared[key] if found is None else found

    def get(self, key: StateKey, default: Any = None) -> Any:
        """Several times for each event: Mapping's own costs an exception where there is none."""
        found = self._changes.get(key)
        return self._shared.get(key, default) if found is None else found

    def __contains__(self, key: object) -> bool:
        return key in self._changes or key in self._shared

    def __iter__(self) -> Iterator[StateKey]:
        yield from self._shared
        yield from (key for key in self._changes if key not in self._shared)

    def __len__(self) -> int:
        return self._length
