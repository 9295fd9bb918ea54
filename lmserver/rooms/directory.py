"""Names for rooms: local aliases, and which rooms are in the public list."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from lmserver.protocol import ids
from lmserver.protocol.events import EventDraft
from lmserver.protocol.power_levels import PowerLevels
from lmserver.protocol.room_view import RoomView
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.outcomes import RoomBusy
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.storage import aliases
from lmserver.storage.database import Database, UniqueViolation

MAX_SERVERS: Final = 10
MAX_ALIASES: Final = 100
"""Aliases of one room here: names are few, and whoever takes them all leaves none for others."""
MAX_NEW_NAMES: Final = 20
"""Aliases one event may bring: each may be of another server, which is asked."""

Remote = Callable[[str], Awaitable[tuple[str, list[str]] | None]]
"""Asks another server for an alias: (room ID, servers), or None."""


class Bridges(Protocol):
    """What application services have to do with aliases."""

    def alias_is_others(self, alias: str, user_id: str) -> bool: ...

    async def makes_alias(self, alias: str) -> bool: ...


class AliasTaken(Exception):
    """The alias names another room already."""


class NotAllowed(Exception):
    """The user may not change this alias or listing."""


class AliasReserved(NotAllowed):
    """Only an application service may make this alias."""


class Directory:
    """Aliases of this server, and which rooms are in its public list."""

    def __init__(
        self,
        db: Database,
        engine: RoomEngine,
        clock: Callable[[], int],
        list_changed: Callable[[], None],
        publish: Callable[[Iterable[str]], None],
        remote: Remote | None = None,
        bridges: Bridges | None = None,
    ) -> None:
        self._bridges = bridges
        self._db = db
        self._engine = engine
        self._clock = clock
        self._list_changed = list_changed
        self._publish = publish
        self._remote = remote

    # -- aliases --------------------------------------------------------------------------------

    async def resolve(self, alias: str) -> tuple[str, list[str]] | None:
        """(room ID, servers to join through), or None."""
        if ids.server_of(alias) != self._engine.our_name:
            return None if self._remote is None else await self._remote(alias)
        room_id = await aliases.room_of(self._db, alias)
        if room_id is None and self._bridges is not None and await self._bridges.makes_alias(alias):
            room_id = await aliases.room_of(self._db, alias)
        return None if room_id is None else (room_id, await self._servers(room_id))

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
        if self._bridges is not None and self._bridges.alias_is_others(alias, user_id):
            raise AliasReserved("this alias belongs to an application service")
        if view is None or view.membership(user_id) != "join":
            raise NotAllowed("you are not in this room")
        if len(await aliases.of_room(self._db, room_id)) >= MAX_ALIASES:
            raise NotAllowed("the room has aliases enough")
        await self.reserve(alias, room_id, user_id)

    async def reserve(self, alias: str, room_id: str, user_id: str) -> None:
        """Give a room that the user is making one of our aliases; raises AliasTaken."""
        try:
            await aliases.add(self._db, alias, room_id, user_id, self._clock())
        except UniqueViolation:
            raise AliasTaken(alias) from None
        self._publish([room_id, alias])

    async def move(self, old_id: str, new_id: str) -> None:
        """Aliases and the place in the public list go to a room that replaces another."""
        await self._db.run(lambda db: aliases.move(db, old_id, new_id))
        self._list_changed()
        self._publish([new_id, *await aliases.of_room(self._db, new_id)])

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
        if view is not None and _may_name(view, user_id):
            await self._unname(view, alias, user_id)
        return True

    async def _unname(self, view: RoomView, alias: str, user_id: str) -> None:
        """The room does not go on calling itself what it is not (CS API §DELETE /directory/room)."""
        event = view.get("m.room.canonical_alias")
        content = {} if event is None else dict(event.content)
        others = content.get("alt_aliases")
        if content.get("alias") == alias:
            del content["alias"]
        if isinstance(others, list) and alias in others:
            content["alt_aliases"] = [other for other in others if other != alias]
        if event is None or content == event.content:
            return
        draft = EventDraft(view.room_id, "m.room.canonical_alias", user_id, content, self._clock(), "")
        with contextlib.suppress(HubSilent, RoomBusy):
            await self._engine.send([draft])

    async def wrong_names(self, view: RoomView, content: Mapping[str, Any]) -> list[str]:
        """What m.room.canonical_alias newly claims and is no alias of the room (attack C11)."""
        old = view.get("m.room.canonical_alias")
        new = names_in(content) - (set() if old is None else names_in(old.content))
        if len(new) > MAX_NEW_NAMES:
            return sorted(new)
        found = await asyncio.gather(*(self.resolve(alias) for alias in new))
        return [a for a, room in zip(new, found, strict=True) if room is None or room[0] != view.room_id]

    async def of_room(self, room_id: str) -> list[str]:
        return await aliases.of_room(self._db, room_id)

    # -- the public list ------------------------------------------------------------------------

    async def is_published(self, room_id: str) -> bool:
        return await aliases.is_published(self._db, room_id)

    async def publish(self, room_id: str, public: bool) -> None:
        """List a room or take it off; the caller has checked who asks."""
        await aliases.set_published(self._db, room_id, public)
        self._list_changed()

    async def set_published(self, room_id: str, public: bool, user_id: str, *, admin: bool = False) -> None:
        """Raises NotAllowed for who may not set the room's canonical alias."""
        view = await self._engine.view(room_id)
        if not admin and not _may_name(view, user_id):
            raise NotAllowed("you may not change how this room is listed")
        await self.publish(room_id, public)


def names_in(content: Mapping[str, Any]) -> set[str]:
    """The aliases an m.room.canonical_alias claims."""
    alias, others = content.get("alias"), content.get("alt_aliases")
    named = [alias, *(others if isinstance(others, list) else [])]
    return {name for name in named if ids.is_room_alias(name)}


def _may_name(view: RoomView | None, user_id: str) -> bool:
    if view is None or view.membership(user_id) != "join":
        return False
    levels = PowerLevels.from_view(view)
    return levels.user(user_id) >= levels.event("m.room.canonical_alias", True)
