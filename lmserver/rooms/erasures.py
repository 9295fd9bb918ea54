"""What users sent who were erased: whole for those who were in the room before, redacted for those who came
later (CS API §POST /account/deactivate, `erase`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lmserver.rooms.visible_ranges import Span, last_joined


@dataclass(frozen=True, slots=True)
class Erasures:
    """As one reader meets them in a room. `at` has for each user erased the position that the room's list
    ended at then; `memberships` are the reader's."""

    at: Mapping[str, int] = field(default_factory=dict)
    memberships: Sequence[Span] = ()

    def __bool__(self) -> bool:
        return bool(self.at)

    def hide(self, sender: str, type_: str, state_key: str | None, position: int | None) -> bool:
        """Whether the reader gets an event only as a redacted copy.

        Messages and memberships are the user's. Other state is the room's: without it those who come later
        would have no encryption, for example. MLS commits say nothing, and groups need them.
        """
        erased_at = self.at.get(sender)
        if erased_at is None:
            return False
        if type_ == "m.mls.commit" or (state_key is not None and type_ != "m.room.member"):
            return False
        joined = last_joined([span for span in self.memberships if span.start <= erased_at])
        return joined is None or (position is not None and position > joined)


NO_ERASURES = Erasures()
