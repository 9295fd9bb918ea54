"""Names for rooms: local aliases, the list of public rooms, people one shares a room with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from lmserver.protocol import ids
from lmserver.protocol.power_levels import PowerLevels
from lmserver.protocol.room_view import RoomView
from lmserver.rooms.engine import RoomEngine
from lmserver.storage import aliases, room_state
from lmserver.storage.database import Executor, UniqueViolation

MAX_LISTED: Final = 500
MAX_SERVERS: Final = 10

Remote = Callable[[str], Awaitable[tuple[str, list[str]] | None]]
"""Asks another server for an alias: (room ID, servers), or None."""


class AliasTaken(Exception):
    """The alias names another room already."""


class NotAllowed(Exception):
    """The user may not change this alias or listing."""


@dataclass(frozen=True, slots=True)
class ListedRoom:
    """One entry of the public room list, in the specification's form."""

    members: int
    entry: dict[str, Any]


class Directory:
    """Aliases and the public list of this server."""

    def __init__(self, db: Executor, engine: RoomEngine, remote: Remote | None = None) -> None:
        self._db = db
        self._engine = engine
        self._remote = remote

    # -- aliases --------------------------------------------------------------------------------

    async def resolve(self, alias: str) -> tuple[str, list[str]] | None:
        """(room ID, servers to join through), or None."""
        if ids.server_of(alias) != self._engine.our_name:
            return None if self._remote is None else await self._remote(alias)
        room_id = await aliases.room_of(self._db, alias)
        if room_id is None:
            return None
        return room_id, await self._servers(room_id)

    async def _servers(self, room_id: str) -> list[str]:
        """The hub first, because it is the one that can let somebody in."""
        snapshot = await self._engine.snapshot(room_id)
        if snapshot is None:
            return [self._engine.our_name]
        named = [snapshot.view.hub, self._engine.our_name, *snapshot.servers]
        return list(dict.fromkeys(named))[:MAX_SERVERS]

    async def add(self, alias: str, room_id: str, user_id: str) -> None:
        """Raises AliasTaken, NotAllowed for a room the user is not in or a foreign alias."""
        view = await self._engine.view(room_id)
        if ids.server_of(alias) != self._engine.our_name:
            raise NotAllowed("aliases of other servers are theirs to make")
        if view is None or view.membership(user_id) != "join":
            raise NotAllowed("you are not in this room")
        try:
            await aliases.add(self._db, alias, room_id, user_id)
        except UniqueViolation:
            raise AliasTaken(alias) from None

    async def remove(self, alias: str, user_id: str, *, admin: bool = False) -> bool:
        """Remove an alias: its creator may, and whoever may set the room's canonical alias
        (attack C11). False when there is none."""
        owned = await aliases.owner_of(self._db, alias)
        if owned is None:
            return False
        room_id, creator = owned
        view = await self._engine.view(room_id)
        if not admin and creator != user_id and not _may_name(view, user_id):
            raise NotAllowed("only its creator or the room's moderators may delete an alias")
        await aliases.remove(self._db, alias)
        return True

    async def of_room(self, room_id: str) -> list[str]:
        return await aliases.of_room(self._db, room_id)

    # -- the public list ------------------------------------------------------------------------

    async def is_published(self, room_id: str) -> bool:
        return await aliases.is_published(self._db, room_id)

    async def publish(self, room_id: str, public: bool) -> None:
        """List a room or take it off; the caller has checked who asks."""
        await aliases.set_published(self._db, room_id, public)

    async def set_published(self, room_id: str, public: bool, user_id: str, *, admin: bool = False) -> None:
        """Raises NotAllowed for who may not set the room's canonical alias."""
        view = await self._engine.view(room_id)
        if not admin and not _may_name(view, user_id):
            raise NotAllowed("you may not change how this room is listed")
        await self.publish(room_id, public)

    async def public_rooms(self, search: str | None) -> list[ListedRoom]:
        """Listed rooms, those with most members first."""
        found = []
        for room_id in await aliases.published_rooms(self._db, MAX_LISTED):
            view = await self._engine.view(room_id)
            if view is None:
                continue
            listed = await self._entry(view)
            if search is None or _mentions(listed.entry, search):
                found.append(listed)
        return sorted(found, key=lambda room: -room.members)

    async def _entry(self, view: RoomView) -> ListedRoom:
        members = (await room_state.member_counts(self._db, view.room_id)).get("join", 0)
        entry: dict[str, Any] = {
            "room_id": view.room_id,
            "num_joined_members": members,
            "world_readable": view.history_visibility() == "world_readable",
            "guest_can_join": _text(view, "m.room.guest_access", "guest_access") == "can_join",
            "join_rule": view.join_rule(),
        }
        for key, type_, field in (
            ("name", "m.room.name", "name"),
            ("topic", "m.room.topic", "topic"),
            ("canonical_alias", "m.room.canonical_alias", "alias"),
            ("avatar_url", "m.room.avatar", "url"),
            ("room_type", "m.room.create", "type"),
        ):
            value = _text(view, type_, field)
            if value is not None:
                entry[key] = value
        return ListedRoom(members, entry)


def _may_name(view: RoomView | None, user_id: str) -> bool:
    if view is None or view.membership(user_id) != "join":
        return False
    levels = PowerLevels.from_view(view)
    return levels.user(user_id) >= levels.event("m.room.canonical_alias", True)


def _text(view: RoomView, type_: str, field: str) -> str | None:
    event = view.get(type_)
    value = None if event is None else event.content.get(field)
    return value if isinstance(value, str) else None


def _mentions(entry: dict[str, Any], search: str) -> bool:
    wanted = search.casefold()
    return any(wanted in entry.get(key, "").casefold() for key in ("name", "topic", "canonical_alias"))
