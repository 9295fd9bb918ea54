"""A hub that was restored gets back what it lost from the servers that kept it (drill D15).

The events carry our own signature, and each names the one before it, so what comes back is proved
to be what we appended, whoever brings it. Until every server in a room has said that it has
nothing beyond our list, the room is held: read, and not extended. A server that brings nothing we
signed changes nothing; it can delay the end of a restore, which the operator may decide.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import dropwhile
from typing import Any, Final, Protocol

import structlog

from lmserver.federation_client.errors import FederationError, RemoteError
from lmserver.protocol import ids
from lmserver.protocol.events import Pdu
from lmserver.protocol.room_versions import room_version
from lmserver.rooms.checking import Verifier, check_pdus
from lmserver.rooms.outcomes import GapFound, Rejected, RoomBusy
from lmserver.rooms.turns import Turns
from lmserver.storage import holds, room_log
from lmserver.storage.database import Database, DatabaseUnavailable
from lmserver.storage.room_log import RoomRow

PAGE: Final = 100
MAX_PAGES: Final = 10_000
MAX_KNOWN_PAGES: Final = 100
MAX_HEAD_PAGES: Final = 100
MAX_SERVERS: Final = 10_000
AT_ONCE: Final = 50
ASKING_SECONDS: Final = 30.0
"""How long rooms that nobody else seems to be in wait for what other servers say."""
FIRST_PAUSE: Final = 2.0
IDLE_SECONDS: Final = 30.0
MAX_PAUSE: Final = 300.0
SUSPECT_SECONDS: Final = 60.0
STEPS: Final = (0, *(2**n for n in range(25)))

log = structlog.get_logger(__name__)


class Answer(Enum):
    """What a server has of a room beyond our list."""

    NOTHING = "nothing"
    MORE = "more"
    GAP = "something that does not follow our list"
    FORK = "a list of ours that parts from ours"
    NONE = "no answer"


class Api(Protocol):
    """The part of RoomApi that recovery needs."""

    async def heads(self, server: str, after: str) -> tuple[dict[str, str], str | None]: ...

    async def tail(self, server: str, room_id: str, after: Sequence[str], limit: int) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class Found:
    answer: Answer
    events: tuple[Pdu, ...] = ()


class TailRecovery:
    """Asks for lost events while any room is held, and whenever something suggests that some are."""

    def __init__(
        self, db: Database, turns: Turns, api: Api, verifier: Verifier, clock: Callable[[], int]
    ) -> None:
        self._db = db
        self._turns = turns
        self._api = api
        self._verifier = verifier
        self._clock = clock
        self._suspects: set[str] = set()
        self._asked_at: dict[str, int] = {}
        self._woken = asyncio.Event()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="tail recovery")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def suspect(self, server: str) -> None:
        """The server has refused an event of ours: it may have others. It is asked once a minute
        at most, and believed only what we signed."""
        now = self._clock()
        if now - self._asked_at.get(server, -(10**12)) < SUSPECT_SECONDS * 1000:
            return
        if len(self._asked_at) >= MAX_SERVERS:
            self._asked_at.clear()
        self._asked_at[server] = now
        self._suspects.add(server)
        self._woken.set()

    async def restored(self) -> None:
        """Rooms have just been held: forget what memory has of them, and begin."""
        for room in await holds.held(self._db):
            self._turns.forget(room.room_id)
        self._suspects |= await self._known_servers()
        self._woken.set()

    # -- when -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause, asked_all, before = FIRST_PAUSE, False, 0
        while True:
            self._woken.clear()
            left = 1
            try:
                if not asked_all:
                    self._suspects |= await self._known_servers()
                    asked_all = True
                left = await self._pass()
            except DatabaseUnavailable:
                log.warning("recovery_database_unavailable")
            except Exception as error:  # the next pass tries again
                log.error("recovery_failed", exc_info=error)
            pause = min(pause * 2, MAX_PAUSE) if left >= before > 0 else FIRST_PAUSE
            before = left
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause if left else IDLE_SECONDS)

    async def _known_servers(self) -> set[str]:
        """At a start everybody is asked, because a copy of the whole machine brings no sign of its
        age along; without a sign nobody waits for the answers, nor is a server that is down asked."""
        held = bool(await holds.held(self._db))
        return set(await holds.servers_to_ask(self._db, self._clock(), all_known=held, limit=MAX_SERVERS))

    async def _pass(self) -> int:
        suspects, self._suspects = self._suspects, set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASKING_SECONDS):
                await asyncio.gather(*(self._look_into(server) for server in suspects))
        return await self.recover_held()

    async def recover_held(self) -> int:
        """One pass over the rooms that wait for their newest events; how many still do."""
        await holds.release_unshared(self._db, self._turns.our_name)
        rooms = [room.room_id for room in await holds.held(self._db) if room.hold == holds.RESTORED]
        heads = _Heads(self._api, self._slots)
        left = 0
        for room_id in rooms:
            left += not await self._recover(room_id, heads)
        if left:
            log.warning("rooms_held", rooms=left, recovered=len(rooms) - left)
        return left

    async def _look_into(self, server: str) -> None:
        """Whether a server has events of ours that we have not; if so the room is held first, and
        then has the server's users in it, so that it is not released without the server."""
        heads = _Heads(self._api, self._slots)
        claimed = await heads.of(server)
        if not claimed:
            return
        for room_id in await holds.unknown_heads(self._db, self._turns.our_name, claimed):
            found = await self._next(room_id, server, last=False)
            if found.answer is Answer.FORK:
                await self._hold(room_id, server, holds.FORKED)
            elif found.answer is Answer.MORE:
                await self._hold(room_id, server, holds.RESTORED)
                if await holds.is_held(self._db, room_id):
                    await self._drain(room_id, server, heads, last=False)

    async def _hold(self, room_id: str, server: str, why: str) -> None:
        if await holds.hold(self._db, room_id, why):
            log.error("room_rolled_back", room_id=room_id, server=server, hold=why)

    # -- one room -------------------------------------------------------------------------------

    async def _recover(self, room_id: str, heads: _Heads) -> bool:
        """Append what the room's other servers kept; True when the room is whole and released. An invite
        that nothing follows is believed when no server has anything else."""
        whole: set[str] = set()
        last = False
        while True:
            self._turns.forget(room_id)
            snapshot = await self._turns.snapshot(room_id)
            if snapshot is None:
                return True
            left = sorted(snapshot.servers.keys() - whole - {self._turns.our_name})
            if not left and not last:
                whole, last = set(), True
                continue
            if not left:
                await holds.release(self._db, room_id, decided=False)
                log.info("room_recovered", room_id=room_id, head=snapshot.view.head_position)
                return True
            answers = await asyncio.gather(*(self._drain(room_id, server, heads, last) for server in left))
            if Answer.FORK in answers:
                await holds.hold(self._db, room_id, holds.FORKED)
                log.error("room_forked", room_id=room_id)
                return False
            new = {s for s, answer in zip(left, answers, strict=True) if answer is Answer.NOTHING}
            moved = await room_log.room(self._db, room_id)
            if not new and (moved is None or moved.head_event_id == snapshot.view.head_event_id):
                return False
            whole |= new

    async def _drain(self, room_id: str, server: str, heads: _Heads, last: bool) -> Answer:
        """Append everything one server has that follows our head; see `_judge` for `last`."""
        claimed = await heads.of(server)
        if claimed is None:
            return Answer.NONE
        head = claimed.get(room_id)
        if head is None or not await holds.unknown_heads(self._db, self._turns.our_name, {room_id: head}):
            return Answer.NOTHING
        for _ in range(MAX_PAGES):
            found = await self._next(room_id, server, last)
            if found.answer is not Answer.MORE:
                return found.answer
            try:
                outcomes = await self._turns.place_recovered(room_id, found.events)
            except RoomBusy:
                return Answer.NONE
            refused = [o for o in outcomes if isinstance(o, Rejected)]
            if refused:
                log.error("recovered_event_refused", room_id=room_id, server=server, reason=refused[0].reason)
                return Answer.GAP
            if all(isinstance(o, GapFound) for o in outcomes):
                continue  # another server's answer was faster; look again behind the new head
        return Answer.NONE

    async def _next(self, room_id: str, server: str, last: bool) -> Found:
        """What the server has next beyond our list, proved to be ours."""
        row = await room_log.room(self._db, room_id)
        if row is None:
            return Found(Answer.NOTHING)
        after = await holds.landmarks(self._db, room_id, STEPS)
        for _ in range(MAX_KNOWN_PAGES):
            try:
                page = await self._page(row, server, after)
            except RemoteError as error:
                return Found(Answer.GAP if error.errcode == "M_NOT_FOUND" else Answer.NONE)
            except FederationError:
                return Found(Answer.NONE)
            if page is None:
                return Found(Answer.NOTHING)
            if not page:
                return Found(Answer.GAP)
            fresh = await self._unknown(room_id, page)
            if fresh:
                return await self._judge(row, server, fresh, last)
            if page[-1].event_id in after:
                return Found(Answer.GAP)  # it goes round in circles
            after = [page[-1].event_id]
        return Found(Answer.NONE)

    async def _unknown(self, room_id: str, page: Sequence[Pdu]) -> list[Pdu]:
        """The page from the first event on that has no place in our list."""
        places = await room_log.known_events(self._db, room_id, [e.event_id for e in page])
        return list(dropwhile(lambda e: places.get(e.event_id) is not None, page))

    async def _judge(self, row: RoomRow, server: str, fresh: list[Pdu], last: bool) -> Found:
        """Whether events that we have not got follow our head, contradict our list, or prove nothing.

        An invite that its target's server was asked to sign, and that was then not appended, bears
        our signature too, and whoever may invite gets one at any head: nothing following it, it proves
        nothing. Only at the head of a held room it is what was lost there, if nothing else was (`last`).
        """
        prev = fresh[0].prev_events[0]
        row = await room_log.room(self._db, row.room_id) or row
        at_head = prev == row.head_event_id
        snapshot = await self._turns.snapshot(row.room_id)
        member = snapshot is not None and server in snapshot.servers
        while fresh and not (last and at_head and member) and self._asks(fresh[-1]):
            fresh.pop()
        if not fresh:
            return Found(Answer.NOTHING)
        if at_head:
            return Found(Answer.MORE, tuple(fresh))
        place = await room_log.event_position(self._db, row.room_id, prev)
        behind = place is not None and place < row.head_position
        newer = await room_log.event_position(self._db, row.room_id, fresh[0].event_id)
        return Found(Answer.FORK if behind and newer is None else Answer.GAP)

    async def _page(self, row: RoomRow, server: str, after: Sequence[str]) -> list[Pdu] | None:
        """Events behind `after`, up to the first that is not a link of ours; None at the end."""
        raw = await self._api.tail(server, row.room_id, after, PAGE)
        if not raw:
            return None
        checked = await check_pdus(raw, room_version(row.room_version), row.room_id, self._verifier)
        chain: list[Pdu] = []
        for item in checked:
            if not isinstance(item, Pdu) or not self._is_ours(item):
                break
            if chain and item.prev_events != [chain[-1].event_id]:
                break
            chain.append(item)
        return chain

    def _is_ours(self, pdu: Pdu) -> bool:
        """Completed by us as the hub: then our signature has been checked."""
        return (pdu.hub_server or pdu.server) == self._turns.our_name and len(pdu.prev_events) == 1

    def _asks(self, pdu: Pdu) -> bool:
        """Whether another server may have got it from us before it was appended."""
        return pdu.membership == "invite" and ids.server_of(pdu.state_key or "") != self._turns.our_name


class _Heads:
    """What each server says its heads are; asked once for all rooms."""

    def __init__(self, api: Api, slots: asyncio.Semaphore) -> None:
        self._api = api
        self._slots = slots
        self._answers: dict[str, dict[str, str] | None] = {}

    async def of(self, server: str) -> dict[str, str] | None:
        """Room to head; None when the server gives no answer."""
        if server not in self._answers:
            async with self._slots:
                self._answers[server] = await self._ask(server)
        return self._answers[server]

    async def _ask(self, server: str) -> dict[str, str] | None:
        heads: dict[str, str] = {}
        after: str | None = ""
        try:
            for _ in range(MAX_HEAD_PAGES):
                page, after = await self._api.heads(server, after or "")
                heads |= {r: head for r, head in page.items() if ids.is_room_id(r) and ids.is_event_id(head)}
                if after is None:
                    return heads
        except FederationError:
            return None
        return heads
