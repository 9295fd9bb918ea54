"""Replacing a room by one of another version (CS API §Room Upgrades).

First the replacement is made, then the tombstone in the old room says so: a crash in between leaves
a room nobody knows of. What follows the tombstone is done again whenever the upgrade is asked for
again, which names the same replacement. A replacement whose tombstone was refused is deleted, unless
somebody has come into it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from weakref import WeakValueDictionary

from lmserver.protocol import canonical_json, ids
from lmserver.protocol.auth_rules import authorize
from lmserver.protocol.errors import AuthRejected
from lmserver.protocol.events import EventDraft
from lmserver.protocol.room_versions import RoomVersion
from lmserver.protocol.room_view import RoomView
from lmserver.rooms import replacement
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.outcomes import ClientTxn, Rejected, RoomBusy
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.rooms.purging import AlreadyPurging, RoomPurges
from lmserver.storage import aliases, lpdus
from lmserver.storage.database import Database

TAGS, DIRECT = "m.tag", "m.direct"
SERVERS_OWN = ""
"""The device in whose name upgrades send tombstones; no client's is called so."""
MAX_WAITING = 20
MAX_REFUSED = 500
REFUSED = "the upgrade was refused"

JsonObject = dict[str, Any]


class UserData(Protocol):
    """Account data of our users."""

    async def get(self, user_id: str, room_id: str, type_: str) -> JsonObject | None: ...

    async def change(
        self,
        user_id: str,
        room_id: str,
        type_: str,
        changed: Callable[[JsonObject | None], JsonObject | None],
    ) -> None: ...


class NotUpgraded(Exception):
    """The room could not be replaced: Matrix error code and a short reason of ours."""

    def __init__(self, errcode: str, reason: str) -> None:
        super().__init__(reason)
        self.errcode = errcode
        self.reason = reason


class Upgrades:
    """Replaces rooms, and lets users find in the new room what they had set in the old one."""

    def __init__(
        self,
        db: Database,
        engine: RoomEngine,
        data: UserData,
        copy_push_rule: Callable[[str, str, str], Awaitable[None]],
        move_names: Callable[[str, str], Awaitable[None]],
        profile_of: Callable[[str], Awaitable[JsonObject]],
        purges: RoomPurges,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._engine = engine
        self._data = data
        self._copy_push_rule = copy_push_rule
        self._give_names = move_names
        self._profile_of = profile_of
        self._purges = purges
        self._clock = clock
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def upgrade(self, user_id: str, room_id: str, version: RoomVersion) -> str:
        """The replacement's ID. Raises AuthRejected for who may not, NotUpgraded, HubSilent or
        RoomBusy."""
        async with self._locks.setdefault(room_id, asyncio.Lock()):
            view = await self._engine.view(room_id)
            if view is None or view.membership(user_id) != "join":
                raise AuthRejected("5", "you are not in this room")
            authorize(replacement.tombstone(view, room_id, user_id, self._clock()), view)
            known = await self._replacement(view)
            if known is not None and known.version == version:
                new_id = known.room_id
            else:
                new_id = await self._under_way(view, user_id, version) or await self._make(
                    view, user_id, version
                )
                await self._announce(view, new_id, user_id)
            await self._move_names(view, new_id, user_id)
        await self.carry_over(user_id, new_id)
        return new_id

    async def _replacement(self, view: RoomView) -> RoomView | None:
        """The room that replaces this one, if both say so."""
        event = view.get("m.room.tombstone")
        named = None if event is None else event.content.get("replacement_room")
        found = await self._engine.view(named) if isinstance(named, str) and ids.is_room_id(named) else None
        return found if found is not None and _predecessor(found) == view.room_id else None

    async def _under_way(self, view: RoomView, user_id: str, version: RoomVersion) -> str | None:
        """The replacement that a tombstone names for which the hub has not answered yet."""
        waiting = await lpdus.unsettled(self._db, view.room_id, user_id, SERVERS_OWN, MAX_WAITING)
        for lpdu in map(canonical_json.parse_object, waiting):
            named = lpdu["content"].get("replacement_room") if lpdu["type"] == "m.room.tombstone" else None
            found = await self._engine.view(named) if isinstance(named, str) else None
            if found is not None and found.version == version:
                return found.room_id
        return None

    async def _make(self, view: RoomView, user_id: str, version: RoomVersion) -> str:
        new_id = f"!{secrets.token_urlsafe(18)}:{self._engine.our_name}"
        profile, named = await self._profile_of(user_id), await aliases.of_room(self._db, view.room_id)
        now = self._clock()
        drafts = replacement.new_room(view, version, new_id, user_id, profile, named, now)
        await self._engine.create(version, drafts)
        return new_id

    async def _announce(self, view: RoomView, new_id: str, user_id: str) -> None:
        """The tombstone, one for a replacement however often it is asked for."""
        draft = replacement.tombstone(view, new_id, user_id, self._clock())
        try:
            [outcome] = await self._engine.send([draft], ClientTxn(user_id, SERVERS_OWN, new_id))
        except RoomBusy:
            await self._discard(user_id, view.room_id, new_id)
            raise
        if isinstance(outcome, Rejected):
            await self._discard(user_id, view.room_id, new_id)
            raise NotUpgraded(outcome.errcode, f"the room cannot be replaced: {outcome.reason}")

    async def tidy(self) -> None:
        """Delete replacements whose tombstone was refused after who asked for it had gone."""
        for lpdu in map(
            canonical_json.parse_object, await lpdus.refused_of(self._db, SERVERS_OWN, MAX_REFUSED)
        ):
            named = lpdu["content"].get("replacement_room")
            if lpdu["type"] == "m.room.tombstone" and isinstance(named, str):
                await self._discard(lpdu["sender"], lpdu["room_id"], named)

    async def _discard(self, user_id: str, old_id: str, new_id: str) -> None:
        """Delete a replacement that came to nothing; where others are in it, it is a room like any other."""
        view = await self._engine.view(new_id)
        if view is None or _predecessor(view) != old_id or _joined(view) != {user_id}:
            return
        with contextlib.suppress(AlreadyPurging):
            await self._purges.begin(new_id, REFUSED, deletes=True, forced=False)

    async def _move_names(self, old: RoomView, new_id: str, user_id: str) -> None:
        """Aliases and the place in the public list go along; the old room falls silent, as far as
        the user may do that."""
        await self._give_names(old.room_id, new_id)
        changes: list[tuple[str, JsonObject]] = []
        levels = replacement.silenced(old)
        if levels is not None:
            changes.append(("m.room.power_levels", levels))
        named = old.get("m.room.canonical_alias")
        if named is not None and named.content:
            changes.append(("m.room.canonical_alias", {}))
        for type_, content in changes:
            draft = EventDraft(old.room_id, type_, user_id, content, self._clock(), "")
            with contextlib.suppress(HubSilent, RoomBusy):
                await self._engine.send([draft])

    async def carry_over(self, user_id: str, room_id: str) -> None:
        """For somebody who has entered a replacement: tags, push rules and whom they talk to there,
        as in the room it replaces. What is set already stays."""
        view = await self._engine.view(room_id)
        old_id = None if view is None else _predecessor(view)
        old = None if old_id is None else await self._engine.view(old_id)
        if old is None or old_id is None or old.membership(user_id) != "join":
            return
        replaced_by = await self._replacement(old)
        if replaced_by is None or replaced_by.room_id != room_id:
            return
        tags = await self._data.get(user_id, old_id, TAGS)
        if tags and tags.get("tags"):
            await self._data.change(user_id, room_id, TAGS, lambda stored: None if stored else tags)
        await self._data.change(user_id, "", DIRECT, lambda stored: _with_room(stored, old_id, room_id))
        await self._copy_push_rule(user_id, old_id, room_id)


def _predecessor(view: RoomView) -> str | None:
    create = view.get("m.room.create")
    named = None if create is None else create.content.get("predecessor")
    room_id = named.get("room_id") if isinstance(named, dict) else None
    return room_id if isinstance(room_id, str) and ids.is_room_id(room_id) else None


def _joined(view: RoomView) -> set[str]:
    members = (key for type_, key in view.state if type_ == "m.room.member")
    return {user_id for user_id in members if view.membership(user_id) == "join"}


def _with_room(direct: JsonObject | None, old_id: str, new_id: str) -> JsonObject | None:
    """m.direct with the new room wherever the old one stands; None when that changes nothing."""
    changed = {
        user_id: [*rooms, new_id]
        for user_id, rooms in (direct or {}).items()
        if isinstance(rooms, list) and old_id in rooms and new_id not in rooms
    }
    return {**(direct or {}), **changed} if changed else None
