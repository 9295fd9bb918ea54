"""Looks at what happens in rooms of users with pushers, and queues what is worth a notification.

A message in any other room costs one look into a set. Who is to be asked in a room is remembered until a
membership there or a pusher changes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import orjson
import structlog

from lmserver.protocol.push_evaluation import Occasion, PushRuleSet, RoomFacts, Verdict
from lmserver.rooms.background import repeat
from lmserver.rooms.unread import Rules
from lmserver.storage import account_data, pushers, room_state
from lmserver.storage.database import Connection, Database
from lmserver.storage.pushers import NewNotification, Recipient
from lmserver.storage.room_log import StoredEvent

log = structlog.get_logger(__name__)

CHUNK: Final = 200
"""Events of one transaction."""
MAX_REMEMBERED: Final = 10_000
"""Rooms whose recipients are kept in memory."""
GATHER_SECONDS: Final = 0.05
"""What happens meanwhile is looked at together."""
LOOK_AROUND_SECONDS: Final = 60.0
"""How often all rooms are looked over, for what no wake-up told of."""


class Facts(Protocol):
    """What push rules ask about rooms."""

    async def facts(self, user_id: str, room_id: str) -> RoomFacts | None: ...


class Following:
    """From a room's new events to the queue."""

    def __init__(
        self,
        db: Database,
        facts: Facts,
        rules: Rules,
        queued: Callable[[Iterable[str]], None],
        clock: Callable[[], int],
    ) -> None:
        """`queued` hears of the users for whom something was queued."""
        self._db = db
        self._facts = facts
        self._rules = rules
        self._queued = queued
        self._clock = clock
        self._users: set[str] = set()
        self._rooms: set[str] = set()
        self._recipients: OrderedDict[str, list[Recipient]] = OrderedDict()
        self._dirty: set[str] = set()
        self._met: set[tuple[str, str]] = set()
        self._woken = asyncio.Event()

    # -- being told -----------------------------------------------------------------------------

    def changed(self, keys: Iterable[str]) -> None:
        """Something was committed in rooms, which are among these keys; users among them came or went."""
        if not self._users:
            return
        rooms = [key for key in keys if key.startswith("!")]
        people = [key for key in keys if key.startswith("@")]
        if people:
            for room_id in rooms:
                self._recipients.pop(room_id, None)
            self._met.update((user, room_id) for user in people if user in self._users for room_id in rooms)
        self._dirty.update(room_id for room_id in rooms if room_id in self._rooms)
        if self._dirty or self._met:
            self._woken.set()

    async def pushers_changed(self, user_id: str) -> None:
        """A user's pushers were set or removed."""
        self._recipients.clear()
        if await pushers.of_user(self._db, user_id):
            self._users.add(user_id)
            self._rooms.update(m.room_id for m in await room_state.user_memberships(self._db, user_id))
        else:
            self._users.discard(user_id)

    # -- looking --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(repeat("push following", LOOK_AROUND_SECONDS, self.look_around))
            tasks.create_task(repeat("push rooms", GATHER_SECONDS, self._when_woken))

    async def look_around(self) -> None:
        """Everything there is to look at, whoever told of it or did not."""
        self._users = set(await pushers.users(self._db))
        self._recipients.clear()
        for user_id in self._users:
            await pushers.follow_rooms(self._db, user_id)
        found = await pushers.followed(self._db)
        self._rooms = {room_id for room_id, _ in found}
        for room_id in [room_id for room_id, behind in found if behind]:
            await self.look_at(room_id)

    async def _when_woken(self) -> None:
        await self._woken.wait()
        self._woken.clear()
        met, self._met = self._met, set()
        for user_id, room_id in met:
            self._rooms.update(await pushers.follow_rooms(self._db, user_id, [room_id]))
            self._dirty.add(room_id)
        dirty, self._dirty = self._dirty, set()
        try:
            while dirty:
                await self.look_at(next(iter(dirty)))
                dirty.pop()
        finally:
            self._dirty |= dirty

    async def look_at(self, room_id: str) -> None:
        """Queue what is new in a room, a transaction for each chunk."""
        recipients = await self._recipients_of(room_id)
        if not recipients:
            self._rooms.discard(room_id)
            await pushers.unfollow(self._db, room_id)
            return
        asked = {
            r.user_id: (
                r,
                await self._rules(r.user_id),
                await account_data.ignored_users(self._db, r.user_id),
            )
            for r in recipients
        }
        facts = {user_id: await self._facts.facts(user_id, room_id) for user_id in asked}

        async def work(db: Connection) -> tuple[bool, set[str]]:
            after = await pushers.lock_room(db, room_id)
            events = [] if after is None else await pushers.events_after(db, room_id, after, CHUNK)
            if not events:
                return False, set()
            found = [n for event in events for n in _notifications(event, asked, facts)]
            if found:
                await pushers.enqueue(db, found, self._clock())
            await pushers.looked_to(db, room_id, events[-1].position or 0)
            return len(events) == CHUNK, {n.user_id for n in found}

        more = True
        while more:
            more, users = await self._db.run(work)
            if users:
                self._queued(users)

    async def _recipients_of(self, room_id: str) -> list[Recipient]:
        known = self._recipients.get(room_id)
        if known is None:
            known = self._recipients[room_id] = await pushers.recipients(self._db, room_id)
            if len(self._recipients) > MAX_REMEMBERED:
                self._recipients.popitem(last=False)
        return known


Asked = Mapping[str, tuple[Recipient, PushRuleSet, frozenset[str]]]


def _notifications(
    event: StoredEvent, asked: Asked, facts: Mapping[str, RoomFacts | None]
) -> Sequence[NewNotification]:
    """What one event is worth to each recipient."""
    if event.soft_failed is not None or event.redacted_by is not None:
        return []
    fields = orjson.loads(event.pdu)
    found = []
    for user_id, (recipient, rules, ignored) in asked.items():
        room = facts[user_id]
        concerns = (event.position or 0) > recipient.since or _invites(fields, user_id)
        if not concerns or room is None or fields["sender"] == user_id or fields["sender"] in ignored:
            continue
        verdict = rules.verdict(Occasion(fields, room))
        if verdict is not None:
            found.append(NewNotification(user_id, event.room_id, event.event_id, _tweaks(verdict)))
    return found


def _invites(fields: Mapping[str, Any], user_id: str) -> bool:
    return (
        fields["type"] == "m.room.member"
        and fields.get("state_key") == user_id
        and fields["content"].get("membership") == "invite"
    )


def _tweaks(verdict: Verdict) -> bytes:
    return orjson.dumps(verdict.tweaks)
