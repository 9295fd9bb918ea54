"""PUT send: LPDUs to us as a hub, PDUs to us as a participant (D04 §Sending Events).

Everything slow is done before a room is touched. What is dropped leaves no trace; what is
rejected stands in `failed_pdus`; one bad event never fails another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
import structlog

from lmserver.federation_client.errors import KeysUnavailable
from lmserver.federation_server.once import Once
from lmserver.federation_server.paths import STABLE, UNSTABLE
from lmserver.protocol import hashes, ids
from lmserver.protocol.errors import ProtocolError, TooLarge
from lmserver.protocol.events import Lpdu, Pdu, is_lpdu_shaped, parse_lpdu, parse_pdu
from lmserver.protocol.room_versions import RoomVersion, room_version
from lmserver.rooms.checking import Verifier
from lmserver.rooms.engine import RoomEngine
from lmserver.rooms.outcomes import HELD, Accepted, Outcome, RoomBusy
from lmserver.rooms.outsiders import Outsiders
from lmserver.storage import inbound
from lmserver.storage.database import Database, DatabaseUnavailable
from lmserver.storage.inbound import Claim, StoredResponse
from lmserver.web.endpoint import Auth, Reply, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, limited
from lmserver.web.limits import RateLimiter

log = structlog.get_logger(__name__)

MAX_PDUS = 50
MAX_EDUS = 100
LEASE_MS = 30_000
WAIT_FOR_OTHER_SECONDS = 2.0
POLL_SECONDS = 0.05
ENDPOINT = "send"


class EduSink(Protocol):
    """Takes ephemeral data units; junk is ignored."""

    async def to_devices(self, origin: str, txn_id: str, edus: Sequence[Any]) -> None: ...

    async def receive(self, origin: str, edus: Sequence[Any]) -> None: ...


@dataclass(slots=True)
class _RoomWork:
    """What a transaction holds for one room. `listed`: we are in it, so its list takes the events;
    otherwise only what its hub tells of our users is of interest."""

    room_id: str
    version: RoomVersion
    hub: str
    listed: bool
    lpdus: list[Lpdu] = field(default_factory=list)
    pdus: list[Pdu] = field(default_factory=list)


@dataclass(slots=True)
class _Result:
    accepted: dict[str, str] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)

    def reject(self, event_id: str, reason: str) -> None:
        self.failed[event_id] = {"error": reason}

    def body(self) -> bytes:
        return orjson.dumps({"failed_pdus": self.failed, "org.lmserver.accepted": self.accepted})


class TransactionEndpoints:
    """The send endpoint in its stable and unstable forms."""

    def __init__(
        self,
        db: Database,
        engine: RoomEngine,
        outsiders: Outsiders,
        verifier: Verifier,
        joins_settled: Callable[[str], Awaitable[None]],
        edus: EduSink,
        limiter: RateLimiter,
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._engine = engine
        self._outsiders = outsiders
        self._verifier = verifier
        self._joins_settled = joins_settled
        self._edus = edus
        self._limiter = limiter
        self._clock = clock
        self._requests = Once(db, clock)

    @endpoint("PUT", STABLE + "/v2/send/{txn_id}", UNSTABLE + "/send/{txn_id}", auth=Auth.SERVER, at_once=2)
    async def send(self, request: Request) -> Reply:
        """Receive a transaction; answered 200 once everything in it is durable."""
        origin, txn_id = request.origin, request.params["txn_id"]
        pdus, edus = _lists(await request.json())
        return await self._requests.share(
            origin, ENDPOINT, txn_id, lambda: self._once(origin, txn_id, pdus, edus)
        )

    async def close(self) -> None:
        """Let transactions in progress finish."""
        await self._requests.close()

    async def _once(self, origin: str, txn_id: str, pdus: list[Any], edus: list[Any]) -> StoredResponse:
        result = _Result()
        claiming = asyncio.ensure_future(self._claim(origin, txn_id))
        await asyncio.sleep(0)  # its query is under way while the events are parsed
        try:
            work = await self._sorted(origin, pdus, result)
        except BaseException:
            await self._release(origin, (await claiming).fence or 0)
            raise
        claim = await claiming
        if claim.response is not None:
            return claim.response
        fence = claim.fence or 0
        try:
            self._check_rates(origin, work, len(edus))
            # The keys of events come beside them: a client that is told of an event first cannot read it.
            await self._edus.to_devices(origin, txn_id, edus)
            await self._process(origin, work, result)
            await self._edus.receive(origin, edus)
            answer = StoredResponse(200, result.body())
            return await inbound.finish(self._db, origin, ENDPOINT, txn_id, answer, self._clock(), fence)
        except BaseException:
            await self._release(origin, fence)
            raise

    async def _claim(self, origin: str, txn_id: str) -> Claim:
        """One transaction in flight for each origin; a second waits a little, then is told."""
        deadline = asyncio.get_running_loop().time() + WAIT_FOR_OTHER_SECONDS
        while True:
            now = self._clock()
            claim = await inbound.claim(self._db, origin, ENDPOINT, txn_id, now, now + LEASE_MS)
            if claim.response is not None or claim.fence is not None:
                return claim
            if asyncio.get_running_loop().time() > deadline:
                raise ApiError(400, "M_BAD_STATE", "Another transaction of yours is in flight")
            await asyncio.sleep(POLL_SECONDS)

    async def _release(self, origin: str, fence: int) -> None:
        try:
            await inbound.give_up(self._db, origin, fence)
        except DatabaseUnavailable:
            log.warning("lease_left_to_expire", origin=origin)

    # -- events ---------------------------------------------------------------------------------

    async def _sorted(self, origin: str, items: list[Any], result: _Result) -> list[_RoomWork]:
        """The events by room; what is none of a room of ours is dropped. Nothing is changed yet."""
        rooms: dict[str, _RoomWork | None] = {}
        for item in items:
            await self._sort(origin, item, rooms, result)
        return [room for room in rooms.values() if room is not None]

    async def _process(self, origin: str, work: list[_RoomWork], result: _Result) -> None:
        await self._check_signatures(work, result)
        await asyncio.gather(*(self._append(origin, room, result) for room in work))

    async def _sort(
        self, origin: str, item: Any, rooms: dict[str, _RoomWork | None], result: _Result
    ) -> None:
        """D04 §Sending Events, steps 1 to 3, and the schema of step 4."""
        if not isinstance(item, dict):
            return
        room_id = item.get("room_id")
        if not isinstance(room_id, str) or not ids.is_room_id(room_id):
            return
        if room_id not in rooms:
            await self._joins_settled(room_id)
            rooms[room_id] = await self._room(origin, room_id)
        room = rooms[room_id]
        if room is None:
            return
        we_are_hub = room.hub == self._engine.our_name
        try:
            if is_lpdu_shaped(item):
                if we_are_hub:
                    self._sort_lpdu(origin, parse_lpdu(item, room.version), room, result)
            elif not we_are_hub and origin == room.hub:
                room.pdus.append(parse_pdu(item, room.version))
        except TooLarge:
            result.reject(hashes.event_id(item, room.version), "the event is too large")
        except ProtocolError:
            return  # dropped: not an event of this room version

    def _check_rates(self, origin: str, rooms: Sequence[_RoomWork], edus: int) -> None:
        """All of a transaction or nothing of it: 429 before anything is processed, so that the peer
        sends the same again. An event told as failed would be lost to its author, who did nothing
        wrong but be early. PDUs of a room's hub are not counted: one transaction in flight is
        limit enough, and to refuse them would stop the room."""
        wanted = [("federation_edus", origin, edus)]
        for room in rooms:
            key = f"{origin} {room.room_id}"
            joins = sum(lpdu.membership == "join" for lpdu in room.lpdus)
            wanted += [
                ("federation_room_events", key, len(room.lpdus)),
                ("federation_room_joins", key, joins),
                ("room_joins", room.room_id, joins),
            ]
        wait = self._limiter.take_all([entry for entry in wanted if entry[2]])
        if wait:
            raise limited(wait)

    async def _room(self, origin: str, room_id: str) -> _RoomWork | None:
        """The room, from its list or from what its hub told of one of our users."""
        snapshot = await self._engine.snapshot(room_id)
        if snapshot is not None:
            view = snapshot.view
            return _RoomWork(room_id, view.version, view.hub, snapshot.includes(self._engine.our_name))
        version = await self._outsiders.version_told_by(room_id, origin)
        return None if version is None else _RoomWork(room_id, room_version(version), origin, listed=False)

    def _sort_lpdu(self, origin: str, lpdu: Lpdu, room: _RoomWork, result: _Result) -> None:
        """An LPDU comes from its sender's server, through nobody (attack B4)."""
        if lpdu.server != origin:
            result.reject(lpdu.event_id, "the event is not of the sending server")
        else:
            room.lpdus.append(lpdu)

    async def _check_signatures(self, rooms: Sequence[_RoomWork], result: _Result) -> None:
        """All events of the transaction at once; those that fail are dropped, but an event whose
        keys we could not get is told: it may be sent again."""
        lpdus = [lpdu for room in rooms for lpdu in room.lpdus]
        pdus = [pdu for room in rooms for pdu in room.pdus]
        events: list[Lpdu | Pdu] = [*lpdus, *pdus]
        verdicts = [
            *await self._verifier.verify_events(lpdus, current_keys_only=True),
            *await self._verifier.verify_events(pdus),
        ]
        for event, verdict in zip(events, verdicts, strict=True):
            if isinstance(verdict, KeysUnavailable):
                result.reject(event.event_id, str(verdict))
                if isinstance(event, Pdu):
                    await self._engine.missed(event.room_id, event.event_id)
        good = {id(event) for event, verdict in zip(events, verdicts, strict=True) if verdict is None}
        for room in rooms:
            room.lpdus = [lpdu for lpdu in room.lpdus if id(lpdu) in good]
            room.pdus = [hashes.with_hashes_enforced(pdu) for pdu in room.pdus if id(pdu) in good]

    async def _append(self, origin: str, room: _RoomWork, result: _Result) -> None:
        if room.lpdus:
            outcomes = await _isolated(self._engine.accept_lpdus, room.room_id, room.lpdus)
            for lpdu, outcome in zip(room.lpdus, outcomes, strict=True):
                if isinstance(outcome, Accepted):
                    result.accepted[lpdu.event_id] = outcome.event_id
                elif outcome != HELD:  # without an echo it is sent again, and finds the room whole
                    result.reject(lpdu.event_id, "internal error" if outcome is None else outcome.reason)
        unplaced = room.pdus
        if room.pdus and room.listed:
            unplaced = await self._place(room, result)
        if unplaced:
            # Our last user's leave may have been in this very transaction, and what follows it
            # has no place in the list.
            for event_id in await self._outsiders.receive(origin, room.room_id, unplaced):
                result.failed.pop(event_id, None)

    async def _place(self, room: _RoomWork, result: _Result) -> list[Pdu]:
        """Put a hub's events in the room's list; returns those that have no place there."""
        unplaced = []
        outcomes = await _isolated(self._engine.accept_pdus, room.room_id, room.pdus)
        for pdu, outcome in zip(room.pdus, outcomes, strict=True):
            if not isinstance(outcome, Accepted):
                unplaced.append(pdu)
                result.reject(pdu.event_id, "internal error" if outcome is None else outcome.reason)
        return unplaced


async def _isolated(
    accept: Callable[[str, Any], Awaitable[list[Outcome]]], room_id: str, events: Sequence[Any]
) -> list[Outcome | None]:
    """Accept a batch; if it fails as a whole for no reason we know, each event by itself.

    A database that is away fails the transaction, so that the peer repeats it.
    """
    try:
        return list(await accept(room_id, events))
    except (DatabaseUnavailable, RoomBusy):
        raise
    except Exception as error:
        log.error("event_batch_failed", room_id=room_id, error=type(error).__name__, exc_info=error)
    outcomes: list[Outcome | None] = []
    for event in events:
        try:
            outcomes += await accept(room_id, [event])
        except (DatabaseUnavailable, RoomBusy):
            raise
        except Exception as error:
            log.error("event_failed", room_id=room_id, event_id=event.event_id, error=type(error).__name__)
            outcomes.append(None)
    return outcomes


def _lists(body: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The two lists within their limits, or 400 with nothing processed (attack B20)."""
    pdus, edus = body.get("pdus", []), body.get("edus", [])
    if not isinstance(pdus, list) or not isinstance(edus, list):
        raise bad_json("pdus and edus are lists")
    if len(pdus) > MAX_PDUS or len(edus) > MAX_EDUS:
        raise bad_json(f"a transaction has at most {MAX_PDUS} pdus and {MAX_EDUS} edus")
    return pdus, edus
