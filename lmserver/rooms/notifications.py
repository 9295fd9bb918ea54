"""What a user was notified about and has not read, over all rooms (CS API §Listing Notifications)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lmserver.protocol.canonical_json import JsonObject
from lmserver.protocol.push_evaluation import Occasion
from lmserver.rooms.access import Reader
from lmserver.rooms.reading import Reading
from lmserver.rooms.unread import Rules, Unread
from lmserver.storage import room_state, unread
from lmserver.storage.database import Executor
from lmserver.storage.unread import Noticed

MAX_LOOKED_AT: Final = 5_000
"""Unread events among which the newest are found."""
_TOKEN: Final = re.compile(r"n([0-9]{1,15})_([0-9]{1,19})")


class BadToken(ValueError):
    """Not a token of ours."""


@dataclass(frozen=True, slots=True)
class NotificationToken:
    """Where a page ended: the time (ms) and position of its last event."""

    ts: int
    position: int

    def __str__(self) -> str:
        return f"n{self.ts}_{self.position}"


def parse_token(text: str) -> NotificationToken:
    """Raises BadToken."""
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise BadToken("not a token of notifications")
    return NotificationToken(int(match[1]), int(match[2]))


class Notifications:
    """Lists them, newest first."""

    def __init__(self, db: Executor, reading: Reading, unread_: Unread, rules: Rules) -> None:
        self._db = db
        self._reading = reading
        self._unread = unread_
        self._rules = rules

    async def page(
        self, reader: Reader, before: NotificationToken | None, limit: int, *, only_highlights: bool
    ) -> JsonObject:
        """The answer of GET /notifications; what has been read is not listed any more."""
        rooms = await room_state.joined_rooms(self._db, reader.user_id)
        places = [
            (room_id, mark.position)
            for room_id, marks in (await self._unread.marks(reader.user_id, rooms)).items()
            for mark in marks
            if mark.highlight or not only_highlights
        ]
        found = await unread.noticed(
            self._db,
            places[-MAX_LOOKED_AT:],
            None if before is None else (before.ts, before.position),
            limit + 1,
        )
        answer: JsonObject = {"notifications": await self._rendered(reader, found[:limit])}
        if len(found) > limit:
            last = found[limit - 1]
            answer["next_token"] = str(NotificationToken(last.received_ts, last.position))
        return answer

    async def _rendered(self, reader: Reader, found: Sequence[Noticed]) -> list[JsonObject]:
        accesses = await self._reading.accesses(reader.user_id, list({n.room_id for n in found}))
        facts = {room_id: await self._unread.facts(reader.user_id, room_id) for room_id in accesses}
        rules = await self._rules(reader.user_id)
        notifications = []
        for notice in found:
            access, room = accesses.get(notice.room_id), facts.get(notice.room_id)
            event = None if access is None else await self._reading.event(access, notice.event_id)
            if access is None or event is None or room is None:
                continue
            [rendered] = await self._reading.render(access, reader, [event])
            verdict = rules.verdict(Occasion(event.fields, room))
            notifications.append(
                {
                    "actions": ["notify"] if verdict is None else list(verdict.actions),
                    "event": rendered,
                    "read": False,
                    "room_id": notice.room_id,
                    "ts": notice.received_ts,
                }
            )
        return notifications
