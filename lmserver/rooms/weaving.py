"""State events of history, woven into the lives of the entries we know (pure).

An event that is put below our join was in force from its place to where the next life of its entry
begins; what was in force before ends there. History that contradicts the state the hub gave us
with the join is a lie of the hub's, then or now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from lmserver.protocol.events import Pdu
from lmserver.storage.history import Life
from lmserver.storage.room_state import NewState

CONTRADICTION = "join_state: the event contradicts the state that came with our join"


class Weaver:
    """Lives before and after; `begin` and `end` are what has to be written."""

    def __init__(self, known: Iterable[Life]) -> None:
        self._lives: dict[tuple[str, str], list[Life]] = {}
        self._placed: set[str] = set()
        self.begin: list[NewState] = []
        for life in known:
            self._lives.setdefault((life.type, life.state_key), []).append(life)
            if life.event_position is not None:
                self._placed.add(life.event_id)
        self._before = {self._key(life): life for lives in self._lives.values() for life in lives}

    @staticmethod
    def _key(life: Life) -> tuple[str, str, int]:
        return life.type, life.state_key, life.from_position

    @property
    def end(self) -> list[Life]:
        """Known lives that end earlier now."""
        now = [life for lives in self._lives.values() for life in lives]
        return [
            life
            for life in now
            if (old := self._before.get(self._key(life))) is not None and old.to_position != life.to_position
        ]

    def place(self, pdu: Pdu, position: int) -> str | None:
        """Put one state event at a position below its next life; returns what is wrong with it."""
        lives = self._lives.setdefault((pdu.type, pdu.state_key or ""), [])
        later = min((x for x in lives if x.from_position >= position), key=_start, default=None)
        if later is None:
            return CONTRADICTION  # a state once set is never unset
        if later.event_id != pdu.event_id and (
            later.from_position == position or later.event_id not in self._placed
        ):
            return CONTRADICTION  # the later state is older than this
        self._placed.add(pdu.event_id)
        if later.from_position == position:
            return None
        earlier = max((x for x in lives if x.from_position < position), key=_start, default=None)
        if earlier is not None and (earlier.to_position is None or earlier.to_position > position):
            lives[lives.index(earlier)] = replace(earlier, to_position=position)
            self._shorten(earlier, position)
        lives.append(
            Life(pdu.type, pdu.state_key or "", position, later.from_position, pdu.event_id, position)
        )
        self.begin.append(
            NewState(
                pdu.type, pdu.state_key or "", pdu.event_id, pdu.membership, position, later.from_position
            )
        )
        return None

    def _shorten(self, life: Life, position: int) -> None:
        """A life that began in this weaving ends earlier before it is written at all."""
        for index, new in enumerate(self.begin):
            if (new.type, new.state_key, new.from_position) == self._key(life):
                self.begin[index] = replace(new, to_position=position)


def _start(life: Life) -> int:
    return life.from_position
