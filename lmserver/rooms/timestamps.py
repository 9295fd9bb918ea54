"""The event closest to a moment (CS API §Jump to date).

A list has no index by time: what `origin_server_ts` says is the sender's word, and positions alone order
a room. Its events are nearly in order of time all the same, so the place is found by halving, each step
a look at the middle one of a few events, so that one that lies leads nowhere else.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Final

import orjson

from lmserver.federation_client.client import FederationClient, quote_path
from lmserver.federation_client.errors import FederationError
from lmserver.protocol import ids
from lmserver.protocol.errors import ProtocolError
from lmserver.rooms.access import Access
from lmserver.rooms.client_format import Shown
from lmserver.rooms.reading import Reading
from lmserver.rooms.visible_ranges import FOREVER
from lmserver.storage import room_log
from lmserver.storage.database import Executor

SAMPLE: Final = 9
WINDOW: Final = 50
"""Events looked at around the place found, for those that stand a little out of order."""
TIMEOUT: Final = 10.0
PATH: Final = "/_matrix/federation/v1/timestamp_to_event"


@dataclass(frozen=True, slots=True)
class Moment:
    """An event and when its sender says it was sent (ms)."""

    event_id: str
    ts: int


class Timestamps:
    """Answers users and servers; of other servers' history it asks the hub."""

    def __init__(self, db: Executor, reading: Reading, client: FederationClient, our_name: str) -> None:
        self._db = db
        self._reading = reading
        self._client = client
        self._our_name = our_name

    async def for_user(self, access: Access, ts: int, *, forwards: bool) -> Moment | None:
        """The first event at or after `ts`, or the last at or before it, that the user may see."""
        place = await self._place(access, ts)
        found = await self._closest(access, place, ts, forwards=forwards)
        if not self._may_be_older(access, place, found, forwards=forwards):
            return found
        told = await self._of_hub(access, ts, forwards=forwards)
        if told is None or not await self._may_see(access, told):
            return found
        return told if found is None or (forwards and told.ts <= found.ts) else found

    async def here(self, access: Access, ts: int, *, forwards: bool) -> Moment | None:
        """The same of what is here, for another server."""
        return await self._closest(access, await self._place(access, ts), ts, forwards=forwards)

    def _may_be_older(self, access: Access, place: int, found: Moment | None, *, forwards: bool) -> bool:
        """Whether what is asked for may be in history that only the hub has, and is for members to see."""
        lowest = access.room.min_position
        if lowest == 0 or access.room.hub_server == self._our_name or not access.joined:
            return False
        if not access.visible.within(-FOREVER, lowest - 1):
            return False
        return place <= lowest if forwards else found is None

    async def _place(self, access: Access, ts: int) -> int:
        """The first position from which events are not older than `ts`, as far as they are in order."""
        room = access.room
        low, high = room.min_position, room.head_position + 1
        while low < high:
            middle = (low + high) // 2
            sample = await room_log.events_between(
                self._db, room.room_id, middle - 1, room.head_position, SAMPLE, newest_first=False
            )
            times = [orjson.loads(event.pdu)["origin_server_ts"] for event in sample]
            if not times or statistics.median_low(times) >= ts:
                high = middle
            else:
                low = max(middle, sample[0].position or 0) + 1
        return low

    async def _closest(self, access: Access, place: int, ts: int, *, forwards: bool) -> Moment | None:
        if forwards:
            page = await self._reading.forwards(access, place - WINDOW, WINDOW, lambda e: _ts(e) >= ts)
            best = min(page.events, key=lambda e: (_ts(e), e.position or 0), default=None)
        else:
            page = await self._reading.backwards(access, place + WINDOW, WINDOW, lambda e: _ts(e) <= ts)
            best = max(page.events, key=lambda e: (_ts(e), e.position or 0), default=None)
        return None if best is None else Moment(best.event_id, _ts(best))

    async def _may_see(self, access: Access, told: Moment) -> bool:
        """An event that is not here is of the history that members may see."""
        known = await room_log.event(self._db, told.event_id, access.room_id)
        return known is None or await self._reading.event(access, told.event_id) is not None

    async def _of_hub(self, access: Access, ts: int, *, forwards: bool) -> Moment | None:
        try:
            answer = await self._client.send_json(
                "GET",
                access.room.hub_server,
                PATH + quote_path(access.room_id),
                query=[("ts", str(ts)), ("dir", "f" if forwards else "b")],
                timeout=TIMEOUT,
            )
        except (FederationError, ProtocolError):
            return None
        event_id, at = answer.get("event_id"), answer.get("origin_server_ts")
        if not isinstance(event_id, str) or not ids.is_event_id(event_id) or type(at) is not int:
            return None
        return Moment(event_id, at) if (at >= ts if forwards else at <= ts) else None


def _ts(event: Shown) -> int:
    value: int = event.fields["origin_server_ts"]
    return value
