"""What an answer says besides rooms: messages to the device, keys, account data, receipts, typing.

Each is answered when its extension is enabled, and only of rooms the request's lists and
subscriptions show (MSC3885, MSC3884, MSC3959, MSC3960, MSC3961).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.sliding.connection import LIVE, ConnectionState, Pos, Sent
from lmserver.rooms.sliding.request import BadRequest, ExtensionRequest, SlidingRequest
from lmserver.rooms.sliding.room_list import UserRoom, Windows
from lmserver.rooms.sync.device_lists import DeviceListChanges, device_list_changes
from lmserver.rooms.sync.feeds import Feeds
from lmserver.rooms.sync.inboxes import Inboxes
from lmserver.rooms.sync.intervals import Intervals
from lmserver.rooms.sync.journal import Journal
from lmserver.rooms.sync.memberships import UserRooms
from lmserver.rooms.sync.tokens import SyncToken
from lmserver.rooms.typing import Typing
from lmserver.storage.database import Executor

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
    upto: Pos
    memberships: UserRooms
    rooms: Mapping[str, UserRoom]
    windows: Windows
    shown: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def joined(self, wanted: ExtensionRequest) -> list[str]:
        """The joined rooms in the windows that an extension is asked for."""
        return [
            room_id
            for room_id in self.windows.wanted
            if self.rooms[room_id].membership == "join" and self._is_wanted(room_id, wanted)
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
    """Reads extensions; what the journal knows not to have changed is not asked for."""

    def __init__(
        self, db: Executor, journal: Journal, feeds: Feeds, typing: Typing, intervals: Intervals
    ) -> None:
        self._db = db
        self._journal = journal
        self._feeds = feeds
        self._typing = typing
        self._intervals = intervals
        self._inboxes = Inboxes(feeds, journal)

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
        messages, end = await self._inboxes.messages(
            occasion.user_id,
            occasion.device_id,
            since,
            max(occasion.upto.stream, since),
            occasion.request.to_device_limit,
        )
        answer.body["to_device"] = {"next_batch": f"{end}_{occasion.upto.epoch}", "events": messages}
        answer.has_news |= bool(messages)

    async def _e2ee(self, occasion: Occasion, answer: Extensions) -> None:
        lists = await self._device_lists(occasion)
        answer.body["e2ee"] = {"device_lists": {"changed": sorted(lists.changed), "left": sorted(lists.left)}}
        answer.has_news |= bool(lists.changed or lists.left)

    async def add_key_counts(self, answer: Extensions, user_id: str, device_id: str) -> None:
        """What is no news by itself, but stands in every answer that has the extension."""
        if "e2ee" in answer.body:
            counts, fallback = await self._feeds.key_counts(user_id, device_id)
            answer.body["e2ee"]["device_one_time_keys_count"] = counts
            answer.body["e2ee"]["device_unused_fallback_key_types"] = fallback

    async def _device_lists(self, occasion: Occasion) -> DeviceListChanges:
        if occasion.since is None:
            return DeviceListChanges()
        user_id, since, upto = occasion.user_id, occasion.since, occasion.upto
        before = SyncToken(since.stream, since.typing, since.epoch)
        now = SyncToken(upto.stream, upto.typing, upto.epoch)
        interval = await self._intervals.read(user_id, occasion.memberships, before, now, may_know=True)
        if interval.known and not self._journal.covers(since.stream):
            # It let go of some of the interval while we read it.
            interval = await self._intervals.read(user_id, occasion.memberships, before, now, may_know=False)
        quiet = interval.known and not self._journal.device_lists_changed(user_id, since.stream)
        if quiet and not interval.member_changes and not interval.changed_membership:
            return DeviceListChanges()
        left = {
            e.room_id: e.from_position for e in occasion.memberships.entries if e.room_id in interval.left
        }
        return await device_list_changes(
            self._db,
            self._feeds,
            user_id,
            since.stream,
            upto.stream,
            interval.member_changes,
            interval.newly_joined,
            left,
        )

    # -- of rooms -------------------------------------------------------------------------------

    async def _account_data(self, occasion: Occasion, wanted: ExtensionRequest, answer: Extensions) -> None:
        rooms = occasion.joined(wanted)
        new, since = _since_of(occasion, rooms, "account_data")
        start = 0
        if occasion.since is not None and "account_data" in occasion.state.extensions:
            start = occasion.since.stream
        changed = await self._changed_data(occasion, start)
        everywhere = changed.get("", [])
        by_room: dict[str, list[JsonObject]] = {}
        for begin in sorted({start, *since.values()}):
            if begin != start:
                changed = await self._changed_data(occasion, begin)
            by_room |= {r: changed[r] for r, reached in since.items() if reached == begin and r in changed}
        if new:
            by_room |= await self._feeds.room_account_data(occasion.user_id, new)
        answer.body["account_data"] = {"global": everywhere, "rooms": by_room}
        answer.has_news |= bool(everywhere or by_room)
        answer.covered["account_data"] = frozenset(rooms)

    async def _changed_data(self, occasion: Occasion, start: int) -> Mapping[str, list[JsonObject]]:
        known = start > 0 and self._journal.covers(start) and occasion.upto.stream <= self._journal.end
        if known and not self._journal.changed("account_data", occasion.user_id, start):
            return {}
        return await self._feeds.account_data(occasion.user_id, start, occasion.upto.stream)

    async def _receipts(self, occasion: Occasion, wanted: ExtensionRequest, answer: Extensions) -> None:
        """Of a room that is new to the client only the user's own receipts and those of events it gets,
        because a large room has one of everybody."""
        rooms = occasion.joined(wanted)
        new, since = _since_of(occasion, rooms, "receipts")
        contents: dict[str, JsonObject] = {}
        for start in sorted(set(since.values())):
            chosen = [room_id for room_id in since if since[room_id] == start]
            if self._journal.covers(start):
                chosen = [r for r in chosen if self._journal.receipts(r, start, occasion.upto.stream)]
            if chosen:
                contents |= await self._feeds.receipts(occasion.user_id, chosen, start, occasion.upto.stream)
        if new:
            events = [event_id for room_id in new for event_id in occasion.shown.get(room_id, ())]
            contents |= await self._feeds.receipts_on(occasion.user_id, new, events, occasion.upto.stream)
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
        others = [r for r in rooms if r not in known]
        told = {r for r in others if self._typing.users(r)}
        # Of a room that comes back the client may still believe what was true when it left.
        told |= set(self._typing.changed([r for r in others if r in occasion.state.rooms], 0))
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
    return int(match[1]) if int(match[2] or 0) == occasion.upto.epoch else 0
