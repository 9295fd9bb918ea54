"""The room engine: what the HTTP layers call to get an event into a room.

Being the hub is state and can move, so every call asks the room's view who the hub is; hub and
participant differ in one branch here and nowhere above.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmserver.protocol.events import EventDraft, Lpdu, Pdu
from lmserver.protocol.room_versions import RoomVersion
from lmserver.protocol.room_view import RoomView
from lmserver.rooms.gaps import GapFiller
from lmserver.rooms.outcomes import CLOSED, ClientTxn, Outcome, Rejected
from lmserver.rooms.own_lpdus import OwnLpdus
from lmserver.rooms.snapshot import Snapshot
from lmserver.rooms.turns import Turns


class RoomEngine:
    """Rooms as the rest of the server sees them."""

    def __init__(self, turns: Turns, own_lpdus: OwnLpdus, gaps: GapFiller) -> None:
        self._turns = turns
        self._own_lpdus = own_lpdus
        self._gaps = gaps

    @property
    def our_name(self) -> str:
        return self._turns.our_name

    async def view(self, room_id: str) -> RoomView | None:
        """The room's current state, or None when we hold no list of it."""
        return await self._turns.view(room_id)

    async def snapshot(self, room_id: str) -> Snapshot | None:
        """The current state together with the servers that have users in the room."""
        return await self._turns.snapshot(room_id)

    async def create(self, version: RoomVersion, drafts: Sequence[EventDraft]) -> list[Outcome]:
        """See Turns.create."""
        return await self._turns.create(version, drafts)

    async def send(self, drafts: Sequence[EventDraft], txn: ClientTxn | None = None) -> list[Outcome]:
        """Events of our users, all in one room; a transaction ID stands for the first of them.

        Raises HubSilent when another server is the hub and does not answer in time, RoomBusy
        when too many events wait for the room.
        """
        view = await self.view(drafts[0].room_id)
        if view is None:
            return [Rejected("M_NOT_FOUND", "room not known")] * len(drafts)
        if any(_enters(draft, view) for draft in drafts) and await self._turns.is_closed(view.room_id):
            return [CLOSED] * len(drafts)
        if view.hub == self.our_name:
            return await self._turns.append_drafts(drafts, txn)
        return [
            await self._own_lpdus.send(draft, view, txn if index == 0 else None)
            for index, draft in enumerate(drafts)
        ]

    async def accept_lpdus(self, room_id: str, lpdus: Sequence[Lpdu]) -> list[Outcome]:
        """LPDUs for a room whose hub we are; signatures checked before."""
        return await self._turns.accept_lpdus(room_id, lpdus)

    async def accept_pdus(self, room_id: str, pdus: Sequence[Pdu]) -> list[Outcome]:
        """PDUs from the room's hub; signatures checked and hashes enforced before."""
        view = await self.view(room_id)
        if view is None:
            return [Rejected("M_NOT_FOUND", "room not known")] * len(pdus)
        return await self._gaps.place(room_id, view.hub, pdus)

    async def missed(self, room_id: str, event_id: str) -> None:
        """An event of the room's hub that cannot be verified now is asked for later."""
        await self._gaps.missed(room_id, event_id)

    async def close(self) -> None:
        """Let every turn in progress finish."""
        await self._turns.close()


def _enters(draft: EventDraft, view: RoomView) -> bool:
    """Whether somebody who is not in the room comes in, or asks to, by themselves."""
    return (
        draft.type == "m.room.member"
        and draft.state_key == draft.sender
        and draft.content.get("membership") in ("join", "knock")
        and view.membership(draft.sender) != "join"
    )
