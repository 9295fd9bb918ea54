"""The rooms of one user, newest first, and the windows a request cuts out of them.

One query reads the whole list; what filters need besides is read for all rooms at once, and only
when a filter asks. Everything is as it was before the stream position the answer ends at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.sliding.request import ListFilters, ListRequest, RoomConfig, SlidingRequest
from lmserver.rooms.sync.other_rooms import RefusesInvites
from lmserver.storage import outside, room_reads, sliding_rooms
from lmserver.storage.database import Executor
from lmserver.storage.outside import OutsideMembership
from lmserver.storage.sliding_rooms import ListedRoom, StateWant


@dataclass(frozen=True, slots=True)
class UserRoom:
    """A room of the list. `changed` is the stream position of its newest event, of the user's member
    event where they are not joined; `head` the position of that. `told` is what is known of a room
    whose list we do not have; `was_in` whether who left had been joined."""

    room_id: str
    membership: str
    event_id: str
    sender: str
    from_position: int
    member_xid: int
    member_ts: int
    changed: int
    head: int
    was_in: bool = False
    told: OutsideMembership | None = None

    @property
    def pending(self) -> bool:
        return self.membership in ("invite", "knock")

    @property
    def left(self) -> bool:
        return self.membership in ("leave", "ban")


@dataclass(slots=True)
class Windows:
    """What a request asks for: room ID to config and the lists it stands in, and each list's count."""

    wanted: dict[str, RoomConfig] = field(default_factory=dict)
    in_lists: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    subscribed: frozenset[str] = frozenset()

    def add(self, room_id: str, config: RoomConfig) -> None:
        old = self.wanted.get(room_id)
        self.wanted[room_id] = config if old is None else old.combined(config)


@dataclass(frozen=True, slots=True)
class Personal:
    """What the user's account data says of rooms."""

    direct: frozenset[str]
    tags: Mapping[str, frozenset[str]]


class OwnData(Protocol):
    """A user's account data, global under the room ID ""."""

    async def get(self, user_id: str, room_id: str, type_: str) -> JsonObject | None: ...

    async def of_type(self, user_id: str, type_: str) -> Mapping[str, JsonObject]:
        """Contents by room ID."""
        ...


class RoomList:
    """Reads lists and cuts windows."""

    def __init__(self, db: Executor, own_data: OwnData, refuses_invites: RefusesInvites) -> None:
        self._db = db
        self._own_data = own_data
        self._refuses_invites = refuses_invites

    async def read(self, user_id: str, upto: int, sent: Mapping[str, str]) -> dict[str, UserRoom]:
        """The user's rooms before a stream position, newest first; `sent` are the memberships the
        client was told of. A room left is in it if the client has to hear of that or somebody else
        did it, and a withdrawn or declined invite only for a client that knows of the invite."""
        listed = await sliding_rooms.of_user(self._db, user_id, list(sent))
        rooms = {room.room_id: room for room in await self._settled(user_id, listed, upto)}
        for told in await outside.of_user(self._db, user_id, 0, upto):
            old = rooms.get(told.room_id)
            if old is None or old.member_xid < told.stream_xid:
                rooms[told.room_id] = _of_outside(told)
        kept = [
            room for room in rooms.values() if await self._is_listed(user_id, room, sent.get(room.room_id))
        ]
        kept.sort(key=lambda room: (-room.changed, room.room_id))
        return {room.room_id: room for room in kept}

    async def _settled(self, user_id: str, listed: Sequence[ListedRoom], upto: int) -> list[UserRoom]:
        """The rooms as they were before `upto`: nearly always as they are."""
        moved = [(r.room_id, upto) for r in listed if r.head_xid >= upto]
        heads = await sliding_rooms.positions_before(self._db, moved)
        rooms: list[UserRoom] = []
        for r in listed:
            head: tuple[int, int] | None = (r.head_position, r.head_xid)
            if r.room_id in heads:
                head = heads[r.room_id]
            if r.member_xid < upto:
                member = (r.membership, r.event_id, r.sender, r.from_position, r.member_xid)
            else:
                before = await room_reads.membership_before(self._db, r.room_id, user_id, upto)
                if before is None:
                    continue
                member = (
                    before.membership,
                    before.event_id,
                    r.sender,
                    before.from_position,
                    before.stream_xid,
                )
            rooms.append(_of_list(r, member, head))
        return rooms

    async def _is_listed(self, user_id: str, room: UserRoom, known: str | None) -> bool:
        if room.membership == "invite" and known != "invite":
            return not await self._refuses_invites(user_id, room.sender)
        if not room.left or known in ("join", "invite", "knock"):
            return True
        return room.was_in and room.sender != user_id

    # -- windows --------------------------------------------------------------------------------

    async def windows(
        self, request: SlidingRequest, rooms: Mapping[str, UserRoom], personal: Personal
    ) -> Windows:
        """What the lists and subscriptions of a request come to."""
        facts = await self._facts([window.filters for window in request.lists.values()], rooms)
        windows = Windows()
        for name, window in request.lists.items():
            passing = [r for r in rooms.values() if _passes(window.filters, r, facts, personal)]
            windows.counts[name] = len(passing)
            for room in _cut(passing, window):
                windows.add(room.room_id, window.config)
                windows.in_lists.setdefault(room.room_id, []).append(name)
        for room_id, config in request.subscriptions.items():
            if room_id in rooms:
                windows.add(room_id, config)
        windows.subscribed = frozenset(request.subscriptions).intersection(rooms)
        return windows

    async def personal(self, user_id: str, request: SlidingRequest) -> Personal:
        """The user's direct rooms, and tags if a filter asks for them."""
        filters = [window.filters for window in request.lists.values()]
        direct = await self._own_data.get(user_id, "", "m.direct")
        tags: Mapping[str, JsonObject] = {}
        if any(f.tags is not None or f.not_tags is not None for f in filters):
            tags = await self._own_data.of_type(user_id, "m.tag")
        return Personal(frozenset(_direct(direct or {})), {r: _tags(content) for r, content in tags.items()})

    async def _facts(self, filters: Sequence[ListFilters], rooms: Mapping[str, UserRoom]) -> _Facts:
        wants: list[StateWant] = []
        types: list[str] = []
        if any(f.is_encrypted is not None for f in filters):
            types.append("m.room.encryption")
        if any(f.room_types is not None or f.not_room_types is not None for f in filters):
            types.append("m.room.create")
        if any(f.name_like is not None for f in filters):
            types.append("m.room.name")
        wants += [
            StateWant(r.room_id, r.head + 1, type_, "")
            for r in rooms.values()
            if r.told is None
            for type_ in types
        ]
        spaces = {space for f in filters for space in f.spaces or ()}
        wants += [
            StateWant(space, rooms[space].head + 1, "m.space.child", None)
            for space in spaces
            if space in rooms and rooms[space].membership == "join"
        ]
        found = await sliding_rooms.state_entries(self._db, wants)
        facts = _Facts()
        for room_id, entries in found.items():
            for _, stored in entries.values():
                if stored.soft_failed is None and stored.redacted_by is None:
                    facts.note(room_id, orjson.loads(stored.pdu))
        for room in rooms.values():
            if room.told is not None and types:
                for event in outside.decode_state(room.told.stripped_state):
                    if event["type"] in types:
                        facts.note(room.room_id, event)
        return facts


@dataclass(slots=True)
class _Facts:
    """What filters ask of rooms, by room ID."""

    encrypted: set[str] = field(default_factory=set)
    types: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    children: dict[str, set[str]] = field(default_factory=dict)

    def note(self, room_id: str, event: Mapping[str, Any]) -> None:
        content = event["content"]
        match event["type"]:
            case "m.room.encryption":
                self.encrypted.add(room_id)
            case "m.room.create" if isinstance(content.get("type"), str):
                self.types[room_id] = content["type"]
            case "m.room.name" if isinstance(content.get("name"), str):
                self.names[room_id] = content["name"]
            case "m.space.child" if isinstance(content.get("via"), list):
                self.children.setdefault(room_id, set()).add(event["state_key"])


def _of_list(
    room: ListedRoom, member: tuple[str, str, str, int, int], head: tuple[int, int] | None
) -> UserRoom:
    membership, event_id, sender, position, xid = member
    if membership == "join" and head is not None:
        return UserRoom(room.room_id, *member, room.member_ts, head[1], head[0])
    return UserRoom(
        room.room_id, membership, event_id, sender, position, xid, room.member_ts, xid, position, room.was_in
    )


def _of_outside(told: OutsideMembership) -> UserRoom:
    event = {} if told.event is None else orjson.loads(told.event)
    sent = event.get("origin_server_ts")
    return UserRoom(
        told.room_id, told.membership, told.event_id or "", told.sender, 0, told.stream_xid,
        sent if isinstance(sent, int) else 0, told.stream_xid, 0, told=told,
    )  # fmt: skip


def _cut(rooms: Sequence[UserRoom], window: ListRequest) -> Iterable[UserRoom]:
    if window.ranges is None:
        return rooms
    indexes = {i for first, last in window.ranges for i in range(first, min(last + 1, len(rooms)))}
    return [rooms[i] for i in sorted(indexes)]


def _passes(filters: ListFilters, room: UserRoom, facts: _Facts, personal: Personal) -> bool:
    room_id = room.room_id
    return (
        filters.is_dm in (None, room_id in personal.direct)
        and filters.is_encrypted in (None, room_id in facts.encrypted)
        and filters.is_invite in (None, room.membership == "invite")
        and _type_passes(filters, facts.types.get(room_id))
        and _tags_pass(filters, personal.tags.get(room_id, frozenset()))
        and (filters.name_like is None or filters.name_like.lower() in facts.names.get(room_id, "").lower())
        and (
            filters.spaces is None
            or any(room_id in facts.children.get(space, ()) for space in filters.spaces)
        )
    )


def _type_passes(filters: ListFilters, type_: str | None) -> bool:
    if filters.not_room_types is not None and type_ in filters.not_room_types:
        return False
    return filters.room_types is None or type_ in filters.room_types


def _tags_pass(filters: ListFilters, tags: Collection[str]) -> bool:
    if filters.not_tags is not None and not filters.not_tags.isdisjoint(tags):
        return False
    return filters.tags is None or not filters.tags.isdisjoint(tags)


def _direct(content: JsonObject) -> Iterable[str]:
    for rooms in content.values():
        if isinstance(rooms, list):
            yield from (room_id for room_id in rooms if isinstance(room_id, str))


def _tags(content: JsonObject) -> frozenset[str]:
    tags = content.get("tags")
    return frozenset(tags) if isinstance(tags, dict) else frozenset()
