"""Invites to rooms that have no list here, and so nothing that could be followed: they are queued by whoever
stores them, in the same transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import orjson

from lmserver.protocol.events import Pdu
from lmserver.protocol.power_levels import PowerLevels
from lmserver.protocol.push_evaluation import Occasion, RoomFacts
from lmserver.rooms.unread import Rules
from lmserver.storage import pushers
from lmserver.storage.database import Connection
from lmserver.storage.pushers import NewNotification


class OutsideInvites:
    """From an invite to the queue; `queued` hears of the users for whom something was queued."""

    def __init__(
        self, rules: Rules, queued: Callable[[Iterable[str]], None], clock: Callable[[], int]
    ) -> None:
        self._rules = rules
        self._queued = queued
        self._clock = clock

    async def news(self, invite: Pdu) -> NewNotification | None:
        """What an invite of one of our users is worth to them. Of the room nothing is known that push
        rules could ask for."""
        user_id = invite.state_key or ""
        rules = await self._rules(user_id)
        nothing = RoomFacts(0, user_id, None, PowerLevels({}, ""))
        verdict = rules.verdict(Occasion(invite.fields, nothing))
        if verdict is None:
            return None
        return NewNotification(user_id, invite.room_id, invite.event_id, orjson.dumps(verdict.tweaks))

    async def queue(self, db: Connection, news: NewNotification) -> None:
        """In the transaction that stores the invite."""
        await pushers.enqueue(db, [news], self._clock())

    def wake(self, user_ids: Iterable[str]) -> None:
        """After COMMIT."""
        self._queued(user_ids)
