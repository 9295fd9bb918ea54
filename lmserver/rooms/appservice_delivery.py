"""What application services are told: events of the rooms they are in, in order, each once.

One task for each service. What is to be told is found by comparing, room by room, what the service knows
with what the room has; a wake-up is a hint. A service sees of a room what one of its users in it may see,
and the membership of all of them; of a room that its namespaces name, by its ID or an alias, everything
since it does (AS API §Registration).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import orjson
import structlog

from lmserver.config_appservices import AppService
from lmserver.federation_client.appservice_api import AppServiceApi
from lmserver.federation_client.errors import FederationError
from lmserver.rooms.access import Access, Reader
from lmserver.rooms.appservice_encryption import Encryption
from lmserver.rooms.client_format import Extras, Shown, client_event
from lmserver.rooms.erasures import NO_ERASURES
from lmserver.rooms.reading import Reading
from lmserver.rooms.typing import Typing
from lmserver.rooms.visible_ranges import EVERYTHING
from lmserver.storage import aliases, appservices, outside, receipts, room_log, room_reads
from lmserver.storage.appservices import OutsideNews, Told, Waiting, Witness
from lmserver.storage.database import Connection, Database, DatabaseUnavailable
from lmserver.storage.receipts import Receipt
from lmserver.storage.room_log import RoomRow

log = structlog.get_logger(__name__)

MAX_EVENTS: Final = 100
MAX_BODY: Final = 2 * 1024 * 1024
FIRST_PAUSE: Final = 0.5
MAX_PAUSE: Final = 60.0
LOOK_SECONDS: Final = 60.0
UNSETTLED_SECONDS: Final = 0.2
MAX_RECEIPTS: Final = 500
MAX_EPHEMERAL_ROOMS: Final = 200
PAGE: Final = 1000


class Delivery:
    """Tells one service."""

    def __init__(
        self,
        db: Database,
        service: AppService,
        api: AppServiceApi,
        reading: Reading,
        typing: Typing,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._service = service
        self._api = api
        self._reading = reading
        self._ephemeral = _Ephemeral(db, typing, service.sender) if service.receives_ephemeral else None
        self._encryption = Encryption(db, service.id, service.sender) if service.encrypts else None
        self._clock = clock
        self._witnesses: dict[str, str] = {}
        """By room of interest a user of the service, likely to be joined."""
        self._named: set[str] = set()
        """Rooms with an alias of the service's, or that had one."""
        self._since = 0
        """Since when (ms) it has its namespaces."""
        self._dirty: dict[str, None] = {}
        self._look_outside = True
        self._woken = asyncio.Event()

    def changed(self, keys: Iterable[str]) -> None:
        """Something has been committed for rooms and users; called for every event, so it is cheap."""
        rooms = [key for key in keys if key.startswith("!")]
        users = [key for key in keys if key.startswith("@") and self._service.owns(key)]
        for room_id in rooms if users else ():
            # At once, so that what follows a join at its heels is not overlooked.
            self._witnesses.setdefault(room_id, users[0])
        if any(key.startswith("#") and self._service.has_alias(key) for key in keys):
            self._named.update(rooms)
        wanted = [
            room_id
            for room_id in rooms
            if room_id in self._witnesses or room_id in self._named or self._service.has_room(room_id)
        ]
        self._look_outside = self._look_outside or bool(users)
        if not wanted and not users:
            return
        self._dirty |= dict.fromkeys(wanted)
        if self._ephemeral is not None:
            self._ephemeral.note(wanted)
        if self._encryption is not None:
            self._encryption.note()
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled; what is not taken is sent again, unchanged and before anything else."""
        pause, loaded = FIRST_PAUSE, False
        while True:
            try:
                if not loaded:
                    await self._load()
                    loaded = True
                self._woken.clear()
                waiting = await appservices.waiting(self._db, self._service.id) or await self._next()
                if waiting is None:
                    await self._sleep()
                elif await self._send(waiting):
                    pause = FIRST_PAUSE
                    continue
                else:
                    await asyncio.sleep(pause * (0.75 + random.random() / 2))
                    pause = min(2 * pause, MAX_PAUSE)
            except DatabaseUnavailable:
                loaded = False
                await asyncio.sleep(1.0)
            except Exception as error:  # one room must not silence the service for ever
                log.error("appservice_delivery_failed", service=self._service.id, exc_info=error)
                loaded = False
                await asyncio.sleep(5.0)

    async def _sleep(self) -> None:
        if self._dirty:
            return
        unsettled = any(part is not None and part.unsettled for part in (self._ephemeral, self._encryption))
        try:
            async with asyncio.timeout(UNSETTLED_SECONDS if unsettled else LOOK_SECONDS):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _load(self) -> None:
        for room_id in await appservices.rooms_of_interest(self._db, self._service.id):
            self._witnesses.setdefault(room_id, self._service.sender)
            self._dirty[room_id] = None
        namespaces = self._service.room_namespaces
        if not namespaces:
            return
        self._since = await appservices.interested_since(
            self._db, self._service.id, namespaces, self._clock()
        )
        last = ""
        while self._service.aliases and (page := await aliases.after(self._db, last, PAGE)):
            self._named.update(room_id for alias, room_id in page if self._service.has_alias(alias))
            last = page[-1][0]
        for room_id in await appservices.rooms_behind(self._db, self._service.id, self._since):
            if room_id in self._named or self._service.has_room(room_id):
                self._dirty[room_id] = None

    async def _send(self, waiting: Waiting) -> bool:
        """Whether it was taken."""
        try:
            status = await self._api.send(self._service, waiting.txn_id, waiting.body)
        except FederationError as error:
            log.info("appservice_away", service=self._service.id, reason=str(error), detail=error.detail)
            return False
        if status != 200:
            log.warning("appservice_refuses", service=self._service.id, txn_id=waiting.txn_id, status=status)
            return False
        await appservices.settle(self._db, self._service.id, waiting.txn_id)
        return True

    # -- what is next ---------------------------------------------------------------------------

    async def _next(self) -> Waiting | None:
        """Put the next transaction together and store it; None when there is nothing to tell."""
        events: list[dict[str, Any]] = []
        positions: dict[str, Told] = {}
        news = await self._outside(events)
        # Each room once: what comes up meanwhile is for the next transaction, when this one is stored.
        looked, self._dirty = self._dirty, {}
        later: dict[str, None] = {}
        size = 0
        for room_id in looked:
            if len(events) >= MAX_EVENTS or size >= MAX_BODY:
                later[room_id] = None
                continue
            found, told, more = await self._of_room(room_id, MAX_EVENTS - len(events))
            size += sum(len(orjson.dumps(event)) for event in found)
            events += found
            if told is not None:
                positions[room_id] = told
            if more:
                later[room_id] = None
        self._dirty |= later
        ephemeral = [] if self._ephemeral is None else await self._ephemeral.take()
        extra = {"ephemeral": ephemeral, "de.sorunome.msc2409.ephemeral": ephemeral} if ephemeral else {}
        if self._encryption is not None:
            await self._encryption.begin()
        elif not events and not positions and not extra:
            return None
        waiting = await self._db.run(lambda db: self._put(db, events, extra, positions, news))
        if waiting is not None and self._encryption is not None:
            self._encryption.committed()
        return waiting

    async def _put(
        self,
        db: Connection,
        events: list[dict[str, Any]],
        extra: dict[str, Any],
        positions: dict[str, Told],
        news: list[OutsideNews],
    ) -> Waiting | None:
        """The transaction and all that is told thereby, stored together."""
        if self._encryption is not None:
            extra = extra | await self._encryption.take(db, events)
        body = orjson.dumps({"events": events, **extra}) if events or extra else None
        waiting = await appservices.put(db, self._service.id, body, positions, news, self._clock())
        if waiting is not None and self._encryption is not None:
            await self._encryption.told(db)
        return waiting

    async def _outside(self, events: list[dict[str, Any]]) -> list[OutsideNews]:
        """Invites to rooms this server is not in."""
        if not self._look_outside:
            return []
        news = await appservices.outside_news(self._db, self._service.id, MAX_EVENTS // 2)
        self._look_outside = len(news) == MAX_EVENTS // 2
        for item in news:
            fields = orjson.loads(item.event)
            event = client_event(
                Shown(item.event_id, None, fields, None), item.room_id, Extras(self._clock())
            )
            event["unsigned"]["invite_room_state"] = outside.decode_state(item.stripped_state)
            events.append(event)
        return news

    async def _of_room(self, room_id: str, limit: int) -> tuple[list[dict[str, Any]], Told | None, bool]:
        """Events the service has not been told of, what it knows after them, and whether there are more."""
        room = await room_log.room(self._db, room_id)
        told = await appservices.told(self._db, self._service.id, room_id)
        since = None if room is None else await self._interested_since(room_id)
        if room is not None and since is not None:
            return await self._of_named_room(room, told, since, limit)
        witness = await self._witness(room_id)
        if room is None or witness is None:
            self._lose_interest(room_id)
            lost = told is not None and told.present
            return [], Told(told.position, False) if told is not None and lost else None, False
        joined = witness.membership == "join"
        after = await self._begin(room_id, told, witness)
        access = await self._reading.access(witness.user_id, room_id)
        if access is None:
            return [], None, False
        rendered, upto = await self._stretch(room, access, witness.user_id, after, limit)
        if joined or witness.membership in ("invite", "knock"):
            self._witnesses[room_id] = witness.user_id
        elif upto >= room.head_position:
            self._lose_interest(room_id)
        now_told = Told(upto, joined or upto < room.head_position)
        return rendered, None if now_told == told else now_told, upto < room.head_position

    async def _of_named_room(
        self, room: RoomRow, told: Told | None, since: int, limit: int
    ) -> tuple[list[dict[str, Any]], Told | None, bool]:
        """The same of a room that is the service's by its namespaces, whoever is in it."""
        room_id, after = room.room_id, -1 if told is None else told.position
        if told is None or not told.present:
            after = max(after, await appservices.position_before(self._db, room_id, since))
        access = await self._reading.access(self._service.sender, room_id)
        if access is None:
            return [], None, False
        whole = replace(access, visible=EVERYTHING, ignored=frozenset(), erasures=NO_ERASURES)
        rendered, upto = await self._stretch(room, whole, self._service.sender, after, limit)
        now_told = Told(upto, True)
        return rendered, None if now_told == told else now_told, upto < room.head_position

    async def _interested_since(self, room_id: str) -> int | None:
        """Since when (ms) the service's namespaces name the room; None for one they do not."""
        if self._service.has_room(room_id):
            return self._since
        if room_id not in self._named:
            return None
        names = await aliases.times_of_room(self._db, room_id)
        times = [created for alias, created in names.items() if self._service.has_alias(alias)]
        if not times:
            self._named.discard(room_id)
        return max(self._since, min(times)) if times else None

    async def _stretch(
        self, room: RoomRow, access: Access, user_id: str, after: int, limit: int
    ) -> tuple[list[dict[str, Any]], int]:
        """The next events of a room as a user may see them, and the position they go to."""
        stored = await room_log.events_between(
            self._db, room.room_id, after, room.head_position, limit, newest_first=False
        )
        visible = [e for e in self._reading.shown_all(stored, access) if self._may_see(e, access)]
        rendered = await self._reading.render(access, Reader(user_id), visible)
        return rendered, stored[-1].position or after if stored else max(after, room.head_position)

    def _lose_interest(self, room_id: str) -> None:
        """Unless something came up while we looked."""
        if room_id not in self._dirty:
            self._witnesses.pop(room_id, None)

    async def _witness(self, room_id: str) -> Witness | None:
        known = self._witnesses.get(room_id)
        found = None if known is None else await appservices.witness(self._db, room_id, known)
        if found is not None and found.membership == "join":
            return found
        return await appservices.any_witness(self._db, self._service.id, room_id)

    async def _begin(self, room_id: str, told: Told | None, witness: Witness) -> int:
        """After which position the service is to be told: what happened while it was away is not its."""
        if told is not None and told.present:
            return told.position
        known = -1 if told is None else told.position
        first = await appservices.first_position(self._db, self._service.id, room_id, known)
        return known if first is None else first - 1

    def _may_see(self, event: Shown, access: Access) -> bool:
        if event.type == "m.room.member" and event.state_key and self._service.owns(event.state_key):
            return True
        return event.position is not None and event.position in access.visible


class _Ephemeral:
    """Typing and public receipts of rooms, as they are now: what is missed is not made up for (AS API
    §Pushing ephemeral data)."""

    def __init__(self, db: Database, typing: Typing, sender: str) -> None:
        self._db = db
        self._typing = typing
        self._sender = sender
        self._rooms: dict[str, None] = {}
        self._serial = 0
        self._since: int | None = None
        self.unsettled = False
        """What was committed a moment ago could not be read yet."""

    def note(self, rooms: Iterable[str]) -> None:
        """Something has changed in these."""
        for room_id in rooms:
            if len(self._rooms) < MAX_EPHEMERAL_ROOMS:
                self._rooms[room_id] = None

    async def take(self) -> list[dict[str, Any]]:
        """What has changed in the rooms noted."""
        settled, upcoming = await room_reads.stream_positions(self._db)
        since, self._since = self._since, settled
        rooms, self._rooms = list(self._rooms), {}
        self.unsettled = bool(rooms) and settled < upcoming
        if self.unsettled:
            self._rooms = dict.fromkeys(rooms)
        typing = self._typing.changed(rooms, self._serial)
        self._serial = self._typing.serial
        found = [_event("m.typing", room_id, {"user_ids": self._typing.users(room_id)}) for room_id in typing]
        if rooms and since is not None:
            news = await receipts.changed(self._db, self._sender, rooms, since, settled, MAX_RECEIPTS)
            found += [_event("m.receipt", receipt.room_id, _content(receipt)) for receipt in news]
        return found


def _event(type_: str, room_id: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"type": type_, "room_id": room_id, "content": content}


def _content(receipt: Receipt) -> dict[str, Any]:
    about: dict[str, Any] = {"ts": receipt.ts}
    if receipt.thread_id:
        about["thread_id"] = receipt.thread_id
    return {receipt.event_id: {receipt.receipt_type: {receipt.user_id: about}}}
