"""What becomes of an event that somebody wanted in a room."""

from __future__ import annotations

from dataclasses import dataclass

from lmserver.protocol.events import EventDraft, Lpdu, Pdu
from lmserver.storage.client_transactions import TransactionKey as ClientTxn

__all__ = [
    "CLOSED", "HELD", "Accepted", "ClientTxn", "GapFound", "MembershipError", "Outcome", "Proposal",
    "Rejected", "RoomBusy",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Accepted:
    """In the list, durable. For a duplicate, the event that stood there first."""

    event_id: str
    position: int | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """Not in the list; `reason` is short, fixed text that a peer or client may see."""

    errcode: str
    reason: str
    rule: str | None = None


@dataclass(frozen=True, slots=True)
class GapFound:
    """A hub's event whose predecessor we have not got."""

    prev_event_id: str


Outcome = Accepted | Rejected

HELD = Rejected("M_UNKNOWN", "The room is read-only until its newest events are recovered")
"""The room is not to be extended now (storage/holds.py); neither taken nor refused for good."""


CLOSED = Rejected("M_FORBIDDEN", "the operator of this server has closed the room")
"""Our users do not enter the room: an operator said so, or it is being deleted (storage/room_purges.py)."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One event offered to a room, with the client transaction it came from, if any.

    `completed` marks a PDU that we as hub have made ourselves (an invite its target has signed):
    it is placed only if the room's head is still its predecessor, and is a GapFound otherwise.
    `recovered` marks one we made before our database was restored, and that another server kept.
    """

    event: EventDraft | Lpdu | Pdu
    txn: ClientTxn | None = None
    completed: bool = False
    recovered: bool = False


class RoomBusy(Exception):
    """Too many events wait for this room; the caller should try again later."""


class MembershipError(Exception):
    """A membership change that did not happen: Matrix error code, HTTP status, a short reason of
    ours, for M_LIMIT_EXCEEDED when to come back (ms) and for M_INCOMPATIBLE_ROOM_VERSION the room's
    version, if known."""

    def __init__(
        self,
        errcode: str,
        status: int,
        reason: str,
        retry_after_ms: int | None = None,
        room_version: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.room_version = room_version
        self.errcode = errcode
        self.status = status
        self.reason = reason
        self.retry_after_ms = retry_after_ms
