"""Read receipts: how far each user has read, public or for the user's own devices only.

A receipt only moves forward along the room's list. The fully-read marker is account data of the
room, not a receipt, and moves the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms import threads
from lmserver.rooms.access import Access
from lmserver.rooms.reading import Reading
from lmserver.storage import receipts
from lmserver.storage.database import Connection, Database
from lmserver.storage.receipts import Receipt

PUBLIC: Final = "m.read"
PRIVATE: Final = "m.read.private"
FULLY_READ: Final = "m.fully_read"
MAIN_THREAD: Final = threads.MAIN


class UnknownEvent(Exception):
    """The user can see no such event in the room."""


class OtherThread(Exception):
    """The event is not in the thread the receipt names."""


class Announcer(Protocol):
    """Tells other servers of public receipts."""

    async def targets(self, room_id: str) -> list[str]:
        """Servers in the room that want to know."""
        ...

    async def queue_receipt(self, db: Connection, receipt: Receipt, servers: Sequence[str]) -> None:
        """Inside the transaction that moves the receipt."""
        ...

    def wake(self, servers: Iterable[str]) -> None:
        """After COMMIT."""
        ...


class Markers(Protocol):
    """Where fully-read markers are kept: account data of a room."""

    async def get(self, user_id: str, room_id: str, type_: str) -> JsonObject | None: ...

    async def put(self, user_id: str, room_id: str, type_: str, content: JsonObject) -> None: ...


class Receipts:
    """Records receipts and tells who has to know."""

    def __init__(
        self,
        db: Database,
        reading: Reading,
        markers: Markers,
        publish: Callable[[Iterable[str]], None],
        announcer: Announcer,
        has_read: Callable[[str], None],
        clock: Callable[[], int],
    ) -> None:
        """`has_read` hears after COMMIT of users who have read something."""
        self._db = db
        self._reading = reading
        self._markers = markers
        self._publish = publish
        self._clock = clock
        self._announcer = announcer
        self._has_read = has_read

    async def record(
        self, user_id: str, access: Access, kind: str, event_id: str, thread: str | None
    ) -> None:
        """The user has read up to an event, in a thread named by its root; raises UnknownEvent for one
        they cannot see, OtherThread for one that is in another thread. A root is in its thread as well.

        An event in front of the receipt they have already is no news and changes nothing.
        """
        event = await self._reading.event(access, event_id)
        if event is None or event.position is None:
            raise UnknownEvent(event_id)
        if thread not in (None, MAIN_THREAD) and await self._reading.event(access, thread) is None:
            raise UnknownEvent(thread)  # a row for each thread: there are no more of them than events
        if kind == FULLY_READ:
            await self._mark(user_id, access, event_id, event.position)
            return
        if thread not in (None, event_id, await threads.thread_of(self._db, access.room_id, event.content)):
            raise OtherThread(event_id)
        receipt = Receipt(
            access.room_id, user_id, kind, thread or "", event_id, event.position, self._clock()
        )
        servers = await self._announcer.targets(access.room_id) if kind == PUBLIC else []

        async def work(db: Connection) -> bool:
            moved = bool(await receipts.advance(db, [receipt]))
            if moved and servers:
                await self._announcer.queue_receipt(db, receipt, servers)
            return moved

        if await self._db.run(work):
            self._publish([access.room_id if kind == PUBLIC else user_id])
            self._announcer.wake(servers)
            self._has_read(user_id)

    async def _mark(self, user_id: str, access: Access, event_id: str, position: int) -> None:
        old = await self._markers.get(user_id, access.room_id, FULLY_READ)
        if old is not None and isinstance(old.get("event_id"), str):
            before = await self._reading.event(access, old["event_id"])
            if before is not None and (before.position or 0) >= position:
                return
        await self._markers.put(user_id, access.room_id, FULLY_READ, {"event_id": event_id})
        self._publish([user_id])
