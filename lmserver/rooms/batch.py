"""What one turn has decided so far; nothing of it counts before COMMIT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lmserver.protocol.events import Pdu
from lmserver.protocol.power_levels import PowerLevels
from lmserver.rooms.outcomes import Accepted, ClientTxn
from lmserver.rooms.relations import new_relation
from lmserver.rooms.snapshot import Snapshot
from lmserver.storage.client_transactions import KnownTransaction
from lmserver.storage.evidence import NewEvidence
from lmserver.storage.fanout import RangeChange
from lmserver.storage.message_search import searched_text
from lmserver.storage.relations import NewRelation
from lmserver.storage.room_log import NewEvent
from lmserver.storage.room_state import NewState


@dataclass(slots=True)
class Batch:
    """What one turn has decided so far; nothing of it counts before COMMIT."""

    room_id: str
    our_name: str
    snapshot: Snapshot
    events: list[NewEvent] = field(default_factory=list)
    pdus: list[Pdu] = field(default_factory=list)
    states: list[NewState] = field(default_factory=list)
    ranges: list[RangeChange] = field(default_factory=list)
    redactions: list[tuple[Pdu, bool]] = field(default_factory=list)
    txns: list[tuple[ClientTxn, str | None, str | None]] = field(default_factory=list)
    evidence: list[NewEvidence] = field(default_factory=list)
    altered: dict[str, bytes] = field(default_factory=dict)
    lpdus: dict[tuple[str, str], Accepted] = field(default_factory=dict)
    known_txns: dict[ClientTxn, KnownTransaction] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)
    relations: list[NewRelation] = field(default_factory=list)
    people: dict[str, dict[str, Any]] = field(default_factory=dict)

    def begin(self, created: Pdu) -> None:
        """A new room's create event, at position 0."""
        self._add(created, 0, None, None, None, None)
        self.states.append(NewState(created.type, "", created.event_id, None, 0))

    def seal(self) -> list[NewEvent]:
        """The rows to write, once every event is signed."""
        for event, pdu in zip(self.events, self.pdus, strict=True):
            event.pdu = pdu.canonical
        return self.events

    @property
    def is_messages_only(self) -> bool:
        """Whether there are events, and nothing of them stands anywhere but in the list."""
        return bool(self.events) and not (
            self.states or self.ranges or self.redactions or self.relations or self.evidence
        )

    def place(self, pdu: Pdu, *, failed: str | None = None, keep_lpdu_hash: bool = True) -> Accepted:
        """Put an event at the next position; `failed` is why it is soft-failed."""
        if pdu.altered_from is not None:
            self.hold(pdu, "altered", "the content is not what its hashes say")
            self.altered[pdu.event_id] = pdu.altered_from
        view = self.snapshot.view
        if failed is None and pdu.type == "m.room.redaction":
            self.redactions.append((pdu, PowerLevels.from_view(view).allows(pdu.sender, "redact")))
        before = view.head_event_id
        self.snapshot, changes = self.snapshot.after(pdu, self.our_name, applies=failed is None)
        position = self.snapshot.view.head_position
        lpdu_hash = pdu.lpdu_hash if keep_lpdu_hash else None
        text = None if failed is not None else self._text(pdu)
        self._add(pdu, position, before, lpdu_hash, failed, text)
        self.ranges += changes
        accepted = Accepted(pdu.event_id, position)
        if lpdu_hash is not None:
            self.lpdus[lpdu_hash, pdu.sender] = accepted
        if failed is None and (related := new_relation(pdu, position)) is not None:
            self.relations.append(related)
        if failed is None and pdu.state_key is not None:
            self._set_state(pdu, pdu.state_key, position)
        return accepted

    def _add(
        self,
        pdu: Pdu,
        position: int,
        before: str | None,
        lpdu_hash: str | None,
        failed: str | None,
        text: str | None,
    ) -> None:
        row = NewEvent(
            pdu.event_id, position, before, lpdu_hash, pdu.type, pdu.state_key, pdu.sender, b"", failed, text
        )  # fmt: skip
        self.events.append(row)
        self.pdus.append(pdu)

    def _text(self, pdu: Pdu) -> str | None:
        """What a search finds it by; nothing in an encrypted room."""
        if self.snapshot.view.get("m.room.encryption") is not None:
            return None
        return searched_text(pdu.type, pdu.content)

    def hold(self, pdu: Pdu, kind: str, detail: str, against: str | None = None) -> None:
        """Keep what the hub sent as evidence, with the event `against` that contradicts it."""
        self.evidence.append(
            NewEvidence(
                pdu.event_id, kind, detail, pdu.altered_from or pdu.canonical, related_event_id=against
            )
        )

    def _set_state(self, pdu: Pdu, state_key: str, position: int) -> None:
        for index in range(len(self.states) - 1, -1, -1):
            entry = self.states[index]
            if entry.type == pdu.type and entry.state_key == state_key:
                self.states[index] = NewState(
                    entry.type,
                    entry.state_key,
                    entry.event_id,
                    entry.membership,
                    entry.from_position,
                    position,
                )
                break
        self.states.append(NewState(pdu.type, state_key, pdu.event_id, pdu.membership, position))
        if pdu.type == "m.room.member":
            self.members.append(state_key)
            if pdu.membership == "join":
                self.people[state_key] = pdu.content
