"""Spaces: what is in them, here and on other servers, for whoever may know (CS API §Spaces).

A room is told of to those who are in it or invited, and to everybody if anybody may join, knock or read.
A walk begins anew for every page, so that its token is a number and survives a restart; what other
servers said is kept for a few minutes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmserver.federation_client.client import FederationClient, quote_path
from lmserver.federation_client.errors import FederationError
from lmserver.protocol import ids
from lmserver.protocol.errors import ProtocolError
from lmserver.protocol.room_versions import room_version
from lmserver.rooms import public_list
from lmserver.rooms.client_format import Shown, shown
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.outsiders import newest
from lmserver.storage import public_list as stored_rooms
from lmserver.storage import room_state
from lmserver.storage.database import Executor
from lmserver.storage.public_list import RoomState

MAX_CHILDREN: Final = 500
MAX_WALKED: Final = 1_000
MAX_ASKED: Final = 20
ASKING_SECONDS: Final = 25.0
"""Questions to other servers for one page, and how long all of them may take."""
MAX_VIA: Final = 3
MAX_KEPT: Final = 1_000
KEPT_SECONDS: Final = 300.0
TIMEOUT: Final = 8.0
MAX_ANSWER: Final = 2 * 1024 * 1024

SPACE, CHILD = "m.space", "m.space.child"
PATH: Final = "/_matrix/federation/v1/hierarchy"
_OPEN: Final = ("public", "knock", "knock_restricted")

JsonObject = dict[str, Any]


class NotVisible(Exception):
    """There is no such room, or the user may not know of it."""


@dataclass(frozen=True, slots=True)
class SpaceRoom:
    """A room with what strangers may know of it, and what stands in it if it is a space."""

    entry: JsonObject
    children: tuple[JsonObject, ...] = ()
    federated: bool = True

    @property
    def is_open(self) -> bool:
        return self.entry.get("join_rule") in _OPEN or self.entry.get("world_readable") is True

    def chosen(self, *, suggested_only: bool) -> list[JsonObject]:
        return [c for c in self.children if not suggested_only or c["content"].get("suggested") is True]


@dataclass(frozen=True, slots=True)
class Walk:
    """One page of a walk: `start` rooms are left out; `max_depth` None goes all the way down."""

    start: int
    limit: int
    max_depth: int | None
    suggested_only: bool


@dataclass(slots=True)
class _Budget:
    """Questions to other servers that may still be asked, and until when."""

    left: int
    until: float

    def spend(self, now: float) -> bool:
        """Whether there is one left to ask."""
        self.left -= 1
        return self.left >= 0 and now < self.until


class Spaces:
    """Tells users and servers what is in a space, and users what a room is."""

    def __init__(
        self,
        db: Executor,
        engine: RoomEngine,
        client: FederationClient,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._engine = engine
        self._client = client
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, SpaceRoom | None]] = OrderedDict()

    # -- for users ------------------------------------------------------------------------------

    async def summary(self, user_id: str | None, room_id: str, via: Sequence[str]) -> JsonObject:
        """What a room is, and the user's membership in it. Raises NotVisible."""
        room = await self._room(room_id, via, self._budget(MAX_VIA))
        if room is None or not await self._visible(user_id, room):
            raise NotVisible
        if user_id is None:
            return room.entry
        known = await newest(self._db, user_id, room_id)
        return room.entry | {"membership": "leave" if known is None else known.membership}

    async def hierarchy(self, user_id: str, root: str, walk: Walk) -> tuple[list[JsonObject], bool]:
        """A page of the rooms in and under a space, the space first, and whether there is more.
        Raises NotVisible for the space itself; what else the user may not know of is left out."""
        budget = self._budget(MAX_ASKED)
        waiting: list[tuple[str, int, Sequence[str]]] = [(root, 0, [])]
        met: set[str] = set()
        found: list[JsonObject] = []
        while waiting and len(found) <= walk.start + walk.limit and len(met) < MAX_WALKED:
            room_id, depth, via = waiting.pop()
            if room_id in met:
                continue
            met.add(room_id)
            room = await self._room(room_id, via, budget)
            if room is None or not await self._visible(user_id, room):
                if room_id == root:
                    raise NotVisible
                continue
            children = room.chosen(suggested_only=walk.suggested_only)
            found.append(room.entry | {"children_state": children})
            if walk.max_depth is None or depth < walk.max_depth:
                below = [(c["state_key"], depth + 1, c["content"]["via"]) for c in children]
                waiting += reversed(below)
        end = walk.start + walk.limit
        return found[walk.start : end], len(found) > end

    async def _visible(self, user_id: str | None, room: SpaceRoom) -> bool:
        if room.is_open:
            return True
        if user_id is None:
            return False
        known = await newest(self._db, user_id, room.entry["room_id"])
        return known is not None and known.membership in ("join", "invite")

    # -- for servers ----------------------------------------------------------------------------

    async def for_server(self, server: str, room_id: str, *, suggested_only: bool) -> JsonObject | None:
        """The room and the rooms in it (SS API §GET hierarchy); None if the server may not know."""
        room = await self._local(room_id)
        if room is None or not await self._shown_to(server, room, or_invited=True):
            return None
        children = room.chosen(suggested_only=suggested_only)
        named = [c["state_key"] for c in children]
        told, hidden = [], []
        for state in await stored_rooms.states(self._db, named, public_list.TYPES):
            child = _of_state(state)
            if not await self._participating(state.room_id):
                continue
            if await self._shown_to(server, child, or_invited=False):
                told.append(child.entry)
            else:
                hidden.append(state.room_id)
        return {
            "room": room.entry | {"children_state": children},
            "children": told,
            "inaccessible_children": hidden,
        }

    async def _shown_to(self, server: str, room: SpaceRoom, *, or_invited: bool) -> bool:
        if not room.federated:
            return False
        room_id = room.entry["room_id"]
        snapshot = await self._engine.snapshot(room_id)
        if room.is_open or (snapshot is not None and snapshot.includes(server)):
            return True
        if not or_invited:
            return False
        lives = await room_state.server_memberships(self._db, room_id, server)
        return any(life.to_position is None and life.membership == "invite" for life in lives)

    # -- rooms ----------------------------------------------------------------------------------

    def _budget(self, most: int) -> _Budget:
        return _Budget(most, self._clock() + ASKING_SECONDS)

    async def _room(self, room_id: str, via: Sequence[str], budget: _Budget) -> SpaceRoom | None:
        """Ours to know, or another server's."""
        if await self._participating(room_id):
            return await self._local(room_id)
        return await self._remote(room_id, via, budget)

    async def _participating(self, room_id: str) -> bool:
        snapshot = await self._engine.snapshot(room_id)
        return snapshot is not None and snapshot.includes(self._engine.our_name)

    async def _local(self, room_id: str) -> SpaceRoom | None:
        states = await stored_rooms.states(self._db, [room_id], public_list.TYPES)
        if not states:
            return None
        room = _of_state(states[0])
        if room.entry.get("room_type") != SPACE:
            return room
        version = room_version(states[0].room_version)
        stored = await stored_rooms.entries(self._db, room_id, CHILD, MAX_CHILDREN)
        children = _in_order(_child_of(shown(event, version)) for event in stored)
        return SpaceRoom(room.entry, children, room.federated)

    async def _remote(self, room_id: str, via: Sequence[str], budget: _Budget) -> SpaceRoom | None:
        kept = self._kept.get(room_id)
        if kept is not None and kept[0] > self._clock():
            return kept[1]
        servers = [s for s in dict.fromkeys(via) if ids.is_server_name(s) and s != self._engine.our_name]
        if not servers:
            return None
        found: SpaceRoom | None = None
        for server in servers[:MAX_VIA]:
            if not budget.spend(self._clock()):
                return None  # which says nothing of the room, and is not kept
            found = await self._ask(server, room_id)
            if found is not None:
                break
        self._kept[room_id] = (self._clock() + KEPT_SECONDS, found)
        self._kept.move_to_end(room_id)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return found

    async def _ask(self, server: str, room_id: str) -> SpaceRoom | None:
        try:
            answer = await self._client.send_json(
                "GET",
                server,
                PATH + quote_path(room_id),
                query=[("suggested_only", "false")],
                timeout=TIMEOUT,
                max_response=MAX_ANSWER,
            )
        except (FederationError, ProtocolError):
            return None
        return _of_answer(answer.get("room"), room_id)


def _of_state(state: RoomState) -> SpaceRoom:
    room = public_list.listed(state)
    entry = room.entry | {"room_version": state.room_version}
    version = room_version(state.room_version)
    for event in (shown(stored, version) for stored in state.events):
        algorithm = event.content.get("algorithm") if event.type == "m.room.encryption" else None
        if isinstance(algorithm, str):
            entry["encryption"] = algorithm
    return SpaceRoom(entry, (), room.federated)


def _of_answer(room: object, room_id: str) -> SpaceRoom | None:
    """Another server's word on a room, of it what is as specified."""
    if not isinstance(room, dict) or room.get("room_id") != room_id:
        return None
    cleaned = public_list.cleaned([room], 1)
    if not cleaned:
        return None
    entry = cleaned[0]
    for name in ("room_version", "encryption"):
        value = room.get(name)
        if isinstance(value, str) and len(value) <= 128:
            entry[name] = value
    listed = room.get("children_state")
    given = listed[:MAX_CHILDREN] if isinstance(listed, list) else []
    return SpaceRoom(entry, _in_order(_child(event) for event in given if isinstance(event, dict)))


def _child_of(event: Shown) -> JsonObject | None:
    return _child(event.fields)


def _child(fields: Mapping[str, Any]) -> JsonObject | None:
    """An m.space.child event in stripped form; None for one that names no room to be found."""
    content, at = fields.get("content"), fields.get("origin_server_ts")
    if fields.get("type") != CHILD or not ids.is_room_id(fields.get("state_key")) or type(at) is not int:
        return None
    via = content.get("via") if isinstance(content, dict) else None
    if not isinstance(via, list) or not via or not all(isinstance(server, str) for server in via):
        return None
    if not ids.is_user_id(fields.get("sender")):
        return None
    return {name: fields[name] for name in ("type", "state_key", "sender", "content", "origin_server_ts")}


def _in_order(children: Iterable[JsonObject | None]) -> tuple[JsonObject, ...]:
    """CS API §Ordering of children within a space."""
    return tuple(sorted((c for c in children if c is not None), key=_order))


def _order(child: JsonObject) -> tuple[bool, str, int, str]:
    order = child["content"].get("order")
    valid = isinstance(order, str) and 0 < len(order) <= 50 and all(" " <= c <= "~" for c in order)
    return not valid, order if valid else "", child["origin_server_ts"], child["state_key"]
