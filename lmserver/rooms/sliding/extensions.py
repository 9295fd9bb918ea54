"""What an answer says besides rooms: messages to the device, keys, account data, receipts, typing.

Each is answered when its extension is enabled, and only of rooms the request's lists and
subscriptions show (MSC3885, MSC3884, MSC3959, MSC3960, MSC3961).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.sliding.connection import LIVE, ConnectionState, Pos, Sent
from lmserver.rooms.sliding.request import BadRequest, ExtensionRequest, SlidingRequest
from lmserver.rooms.sliding.room_list import UserRooms, Windows
from lmserver.rooms.sync.device_lists import device_list_changes
from lmserver.rooms.sync.feeds import Feeds
from lmserver.rooms.typing import Typing
from lmserver.storage import receipts as stored_receipts
from lmserver.storage import room_reads, sliding_rooms
from lmserver.storage.database import Executor
from lmserver.storage.room_reads import RoomSpan

_TO_DEVICE: Final = re.compile(r"([0-9]{1,18})(?:_([0-9]{1,18}))?")


@dataclass(slots=True)
class Occasion:
    """One answer as its extensions see it. `since` is where the client stands, None at the beginning;
    `shown` the IDs of the events in the timelines of the answer, by room."""

    user_id: str
    device_id: str
    request: SlidingRequest
    state: ConnectionState
    since: Pos | None
    upto: int
    epoch: int
    rooms: UserRooms
    windows: Windows
    shown: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def joined(self, wanted: ExtensionRequest) -> list[str]:
        """The joined rooms in the windows that an extension is asked for."""
        return [
            room_id
            for room_id in self.windows.wanted
            if self.rooms.listed[room_id].membership == "join" and self._is_wanted(room_id, wanted)
        ]

    def _is_wanted(self, room_id: str, wanted: ExtensionRequest) -> bool:
        if room_id in self.windows.subscribed and (wanted.rooms is None or room_id in wanted.rooms):
            return True
        lists = self.windows.in_lists.get(room_id, ())
        return bool(lists) and (wanted.lists is None or not wanted.lists.isdisjoint(lists))


@dataclass(slots=True)
class Extensions:
    """The extensions' part of an answer; `covered` are the rooms that receipts and account data were
    read for, and are live from now on."""

    body: dict[str, Any] = field(default_factory=dict)
    has_news: bool = False
    covered: dict[str, frozenset[str]] = field(default_factory=dict)


class ExtensionData:
    """Reads extensions."""

    def __init__(self, db: Executor, feeds: Feeds, typing: Typing) -> None:
        self._db = db
        self._feeds = feeds
        self._typing = typing

    async def read(self, occasion: Occasion) -> Extensions:
        """All that are enabled."""
        answer = Extensions()
        for name, wanted in occasion.request.extensions.items():
            match name:
                case "to_device":
                    await self._to_device(occasion, answer)
                case "e2ee":
                    await self._e2ee(occasion, answer)
                case "account_data":
                    await self._account_data(occasion, wanted, answer)
                case "receipts":
                    await self._receipts(occasion, wanted, answer)
                case "typing":
                    self._typing_part(occasion, wanted, answer)
        return answer

    # -- of the device --------------------------------------------------------------------------

    async def _to_device(self, occasion: Occasion, answer: Extensions) -> None:
        """Messages since the extension's own token; those before it are acknowledged and deleted."""
        since = _to_device_since(occasion)
        messages, end = await self._feeds.to_device(
            occasion.user_id, occasion.device_id, since, max(occasion.upto, since)
        )
        answer.body["to_device"] = {"next_batch": f"{end}_{occasion.epoch}", "events": messages}
        answer.has_news |= bool(messages)

    async def _e2ee(self, occasion: Occasion, answer: Extensions) -> None:
        counts, fallback = await self._feeds.key_counts(occasion.user_id, occasion.device_id)
        changed, left = await self._device_lists(occasion)
        answer.body["e2ee"] = {
            "device_lists": {"changed": changed, "left": left},
            "device_one_time_keys_count": counts,
            "device_unused_fallback_key_types": fallback,
        }
        answer.has_news |= bool(changed or left)

    async def _device_lists(self, occasion: Occasion) -> tuple[list[str], list[str]]:
        if occasion.since is None:
            return [], []
        since, upto = occasion.since.stream, occasion.upto
        newly: set[str] = set()
        left: dict[str, int] = {}
        for room in occasion.rooms.moved:
            before = await room_reads.membership_before(self._db, room.room_id, occasion.user_id, since)
            was_in = before is not None and before.membership == "join"
            if room.membership == "join" and not was_in:
                newly.add(room.room_id)
            elif was_in and room.left and room.told is None:
                left[room.room_id] = room.from_position
        changes = await device_list_changes(
            self._db,
            self._feeds,
            occasion.user_id,
            since,
            upto,
            await room_reads.member_changes(self._db, await self._spans(occasion, since, newly)),
            newly,
            left,
        )
        return sorted(changes.changed), sorted(changes.left)

    async def _spans(self, occasion: Occasion, since: int, newly: Collection[str]) -> list[RoomSpan]:
        """What was new in the rooms the user was in already."""
        active = {
            room.room_id: room.head
            for room in occasion.rooms.listed.values()
            if room.membership == "join" and room.changed >= since and room.room_id not in newly
        }
        before = await sliding_rooms.positions_before(self._db, [(r, since) for r in active])
        return [
            RoomSpan(room_id, None if found is None else found[0], active[room_id])
            for room_id, found in before.items()
        ]

    # -- of rooms -------------------------------------------------------------------------------

    async def _account_data(self, occasion: Occasion, wanted: ExtensionRequest, answer: Extensions) -> None:
        rooms = occasion.joined(wanted)
        new, since = _since_of(occasion, rooms, "account_data")
        earlier = "account_data" in occasion.state.extensions and occasion.since is not None
        start = occasion.since.stream if earlier and occasion.since is not None else None
        everywhere = (await self._feeds.account_data(occasion.user_id, start, occasion.upto)).get("", [])
        changed: Mapping[str, list[JsonObject]] = {}
        if since:
            changed = await self._feeds.account_data(occasion.user_id, min(since.values()), occasion.upto)
        by_room = {room_id: changed[room_id] for room_id in since if room_id in changed}
        if new:
            by_room |= await self._feeds.room_account_data(occasion.user_id, new)
        answer.body["account_data"] = {"global": everywhere, "rooms": by_room}
        answer.has_news |= bool(everywhere or by_room)
        answer.covered["account_data"] = frozenset(rooms)

    async def _receipts(self, occasion: Occasion, wanted: ExtensionRequest, answer: Extensions) -> None:
        """Of a room that is new to the client only the user's own receipts and those of events it gets,
        because a large room has one of everybody."""
        rooms = occasion.joined(wanted)
        new, since = _since_of(occasion, rooms, "receipts")
        contents: dict[str, JsonObject] = {}
        for start in sorted(set(since.values())):
            chosen = [room_id for room_id in since if since[room_id] == start]
            contents |= await self._feeds.receipts(occasion.user_id, chosen, start, occasion.upto)
        if new:
            events = [event_id for room_id in new for event_id in occasion.shown.get(room_id, ())]
            contents |= await self._feeds.receipts_on(occasion.user_id, new, events, occasion.upto)
        answer.body["receipts"] = {
            "rooms": {r: {"type": "m.receipt", "content": content} for r, content in contents.items()}
        }
        answer.has_news |= bool(contents)
        answer.covered["receipts"] = frozenset(rooms)

    def _typing_part(self, occasion: Occasion, wanted: ExtensionRequest, answer: Extensions) -> None:
        rooms = occasion.joined(wanted)
        known: list[str] = []
        if occasion.since is not None and "typing" in occasion.state.extensions:
            known = [r for r in rooms if _is_live(occasion.state.rooms.get(r))]
        told = {r for r in rooms if r not in known and self._typing.users(r)}
        if occasion.since is not None:
            told |= set(self._typing.changed(known, occasion.since.typing))
        answer.body["typing"] = {
            "rooms": {
                r: {"type": "m.typing", "content": {"user_ids": self._typing.users(r)}}
                for r in rooms
                if r in told
            }
        }
        answer.has_news |= bool(told)

    async def read_moved(self, user_id: str, since: int, upto: int) -> set[str]:
        """Rooms in which the user's own receipts moved: their unread counts are others now."""
        return await stored_receipts.moved(self._db, user_id, since, upto)


def _is_live(sent: Sent | None) -> bool:
    return sent is not None and sent.seen == LIVE


def _since_of(occasion: Occasion, rooms: Sequence[str], extension: str) -> tuple[list[str], dict[str, int]]:
    """Rooms the extension was never answered for, and how far it was for the others."""
    new: list[str] = []
    since: dict[str, int] = {}
    for room_id in rooms:
        sent = occasion.state.rooms.get(room_id)
        reached = None if sent is None or sent.membership != "join" else getattr(sent, extension)
        if reached is None or occasion.since is None:
            new.append(room_id)
        else:
            since[room_id] = occasion.since.stream if reached == LIVE else reached
    return new, since


def _to_device_since(occasion: Occasion) -> int:
    """The position of the token; 0 for one from before the database was restored."""
    text = occasion.request.to_device_since
    if text is None:
        return 0
    match = _TO_DEVICE.fullmatch(text)
    if match is None:
        raise BadRequest("M_INVALID_PARAM", "since of to_device is not a token")
    return int(match[1]) if int(match[2] or 0) == occasion.epoch else 0
