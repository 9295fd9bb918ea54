"""Rooms from an operator's side: found, looked into, closed, deleted. Nothing here asks what the operator
could see as a user."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from lmserver.protocol import ids
from lmserver.protocol.events import EventDraft
from lmserver.protocol.power_levels import PowerLevels
from lmserver.protocol.room_versions import room_version
from lmserver.protocol.room_view import RoomView
from lmserver.rooms.client_format import ClientEvent, Extras, client_event, shown
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.membership import Membership
from lmserver.rooms.outcomes import Rejected
from lmserver.rooms.public_list import TYPES
from lmserver.rooms.purging import RoomPurges
from lmserver.storage import public_list, room_list, room_log, room_purges, room_state
from lmserver.storage.database import Database, Executor
from lmserver.storage.list_page import ListPage
from lmserver.storage.room_list import ListedRoom, RoomQuery
from lmserver.storage.room_purges import Purge

MEDIA_EVENTS: Final = 20_000
READ_AT_ONCE: Final = 500
_MXC: Final = re.compile(r"mxc://([^/\s]{1,255})/([^/\s?#]{1,255})")


class UnknownRoom(Exception):
    """We have no list of the room."""


class NoPower(Exception):
    """Nobody of ours may do in the room what was asked; the text says why."""


@dataclass(frozen=True, slots=True)
class RoomDetails:
    """A room with the contents of its state events (those of TYPES), by type, and who made it."""

    room: ListedRoom
    contents: dict[str, dict[str, Any]]
    creator: str | None

    def text(self, type_: str, key: str) -> str | None:
        value = self.contents.get(type_, {}).get(key)
        return value if isinstance(value, str) else None

    @property
    def name(self) -> str | None:
        return self.text("m.room.name", "name")


async def details(db: Executor, room_ids: Sequence[str]) -> list[RoomDetails]:
    """Of each of these rooms that is here, in their order."""
    states = await public_list.current(db, room_ids, TYPES)
    found = []
    for room in await room_list.details(db, room_ids):
        version = room_version(room.room_version)
        events = {e.type: e for e in (shown(stored, version) for stored in states.get(room.room_id, []))}
        create = events.get("m.room.create")
        contents = {type_: event.content for type_, event in events.items()}
        found.append(RoomDetails(room, contents, None if create is None else create.sender))
    return found


class RoomAdministration:
    """What operators do with rooms; every method that takes a room raises UnknownRoom."""

    def __init__(
        self,
        db: Database,
        engine: RoomEngine,
        membership: Membership,
        purges: RoomPurges,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._engine = engine
        self._membership = membership
        self.purges = purges
        self._clock = clock

    async def page(self, query: RoomQuery, part: ListPage) -> tuple[list[RoomDetails], int]:
        """One page, and how many there are on all pages."""
        db = self._db.patient()
        found = await details(db, await room_list.page(db, query, part))
        return found, await room_list.count(db, query)

    async def get(self, room_id: str) -> RoomDetails:
        found = await details(self._db, [room_id])
        if not found:
            raise UnknownRoom(room_id)
        return found[0]

    async def members(self, room_id: str) -> list[str]:
        """Everybody in the room."""
        await self._view(room_id)
        return await room_list.members(self._db, room_id)

    async def state(self, room_id: str) -> list[ClientEvent]:
        """The current state, as clients would get it."""
        view = await self._view(room_id)
        stored = await room_state.current_state(self._db, room_id)
        extras = Extras(self._clock())
        return [client_event(shown(event, view.version), room_id, extras) for event in stored]

    async def messages(
        self, room_id: str, start: int | None, limit: int, *, backwards: bool
    ) -> tuple[list[ClientEvent], int | None]:
        """Events of the list as clients would get them, and the position to go on from, None at the end.
        `start` None: the newest, or the oldest."""
        row = await room_log.room(self._db, room_id)
        if row is None:
            raise UnknownRoom(room_id)
        first, last = -(2**62), row.head_position
        if start is not None:
            first, last = (first, start - 1) if backwards else (start, last)
        stored = await room_log.events_between(
            self._db, room_id, first, last, limit + 1, newest_first=backwards
        )
        page, version = stored[:limit], room_version(row.room_version)
        extras = Extras(self._clock())
        events = [client_event(shown(event, version), room_id, extras) for event in page]
        more = len(stored) > limit and page
        return events, page[-1].position if more else None

    async def media(self, room_id: str) -> list[tuple[str, str]]:
        """(server, media ID) of what the newest MEDIA_EVENTS messages show, each once."""
        row = await room_log.room(self._db, room_id)
        if row is None:
            raise UnknownRoom(room_id)
        last, left, found = row.head_position, MEDIA_EVENTS, dict[tuple[str, str], None]()
        while left > 0:
            stored = await room_log.events_between(
                self._db, room_id, -(2**62), last, READ_AT_ONCE, newest_first=True
            )
            for event in stored:
                if b'"mxc://' in event.pdu and event.redacted_by is None:
                    found.update(dict.fromkeys(_media_in(orjson.loads(event.pdu).get("content"))))
            if len(stored) < READ_AT_ONCE or stored[-1].position is None:
                break
            last, left = stored[-1].position - 1, left - len(stored)
        return list(found)

    # -- closing and deleting -------------------------------------------------------------------

    async def block(self, by: str, room_id: str, blocked: bool) -> None:
        """Close a room to our users, also one that is not known here, or open it again."""
        if blocked:
            await room_purges.block(self._db, room_id, by, self._clock())
        else:
            await room_purges.unblock(self._db, room_id)

    async def blocked_by(self, room_id: str) -> str | None:
        """Who closed the room, known here or not; None for one that is open."""
        return await room_purges.blocked_by(self._db, room_id)

    async def delete(self, by: str, room_id: str, *, block: bool, deletes: bool, forced: bool) -> str:
        """Let our users leave and, with `deletes`, the room be forgotten; its ID among deletions. `forced`
        does not wait for a hub that is away. Raises AlreadyPurging."""
        await self._view(room_id)
        if block:
            await self.block(by, room_id, True)
        return await self.purges.begin(room_id, by, deletes=deletes, forced=forced)

    async def deletion(self, delete_id: str) -> Purge | None:
        return await room_purges.one(self._db, delete_id)

    async def deletions(self, room_id: str) -> list[Purge]:
        """All that are remembered, the newest first."""
        return await room_purges.of_room(self._db, room_id)

    # -- power ----------------------------------------------------------------------------------

    async def make_admin(self, room_id: str, user_id: str) -> None:
        """Give a user the level of the most powerful of ours in the room, in that one's name; who is not in
        the room is invited. Raises NoPower, MembershipError, HubSilent or RoomBusy."""
        view = await self._view(room_id)
        levels = PowerLevels.from_view(view)
        ours = [
            m for m in await room_list.members(self._db, room_id) if m.endswith(":" + self._engine.our_name)
        ]
        giver = max(ours, key=levels.user, default=None)
        if giver is None or levels.user(giver) < levels.event("m.room.power_levels", True):
            raise NoPower("Nobody of this server may change power levels in the room")
        if levels.user(user_id) >= levels.user(giver):
            return
        await self._give(view, giver, user_id, levels)
        if view.membership(user_id) not in ("join", "invite"):
            await self._membership.invite(giver, room_id, user_id)

    async def _give(self, view: RoomView, giver: str, user_id: str, levels: PowerLevels) -> None:
        content = dict(levels.content or {})
        users = content.get("users")
        kept = users if isinstance(users, dict) else {}
        if levels.content is None:
            kept = {levels.creator: levels.user(levels.creator)}
        content["users"] = {**kept, user_id: levels.user(giver)}
        draft = EventDraft(view.room_id, "m.room.power_levels", giver, content, self._clock(), "")
        [outcome] = await self._engine.send([draft])
        if isinstance(outcome, Rejected):
            raise NoPower(outcome.reason)

    async def _view(self, room_id: str) -> RoomView:
        view = await self._engine.view(room_id)
        if view is None:
            raise UnknownRoom(room_id)
        return view


def _media_in(content: Any) -> Iterator[tuple[str, str]]:
    """What a message or its thumbnail is."""
    if not isinstance(content, dict):
        return
    info = content.get("info")
    for value in (content.get("url"), info.get("thumbnail_url") if isinstance(info, dict) else None):
        match = _MXC.fullmatch(value) if isinstance(value, str) else None
        if match is not None and ids.is_server_name(match[1]):
            yield match[1], match[2]
