"""Telling the other servers of a room what its users here do besides sending events.

D04 has no EDUs for typing and receipts yet, so they go in Matrix's form to every server with a user in
the room, the hub or not, and only to those whose keys say `m.linearized`: one known dual-stack peer
fails a whole transaction over an EDU it does not expect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import structlog

from lmserver.protocol import edus
from lmserver.rooms.engine import RoomEngine
from lmserver.storage import outbound, server_keys
from lmserver.storage.database import Connection, Database, DatabaseUnavailable
from lmserver.storage.outbound import NewEdu
from lmserver.storage.receipts import Receipt

KIND: Final = "receipt"
MAX_PENDING: Final = 10_000

log = structlog.get_logger(__name__)


class Outbox(Protocol):
    """The sender, as far as announcements need it."""

    def offer(self, names: Iterable[str], key: str, edu: bytes) -> None: ...

    def wake(self, names: Iterable[str]) -> None: ...


class Announcements:
    """Receipts are queued for good, the newest of each user; typing is offered and forgotten."""

    def __init__(
        self,
        db: Database,
        engine: RoomEngine,
        outbox: Outbox,
        dropped: Callable[[str, int], None],
        clock: Callable[[], int],
    ) -> None:
        self._db = db
        self._engine = engine
        self._outbox = outbox
        self._dropped = dropped
        self._clock = clock
        self._typing: dict[tuple[str, str], bool] = {}
        self._task: asyncio.Task[None] | None = None

    async def targets(self, room_id: str) -> list[str]:
        """The other servers in the room."""
        snapshot = await self._engine.snapshot(room_id)
        names = set() if snapshot is None else set(snapshot.servers) - {self._engine.our_name}
        return await server_keys.linearized(self._db, names) if names else []

    async def queue_receipt(self, db: Connection, receipt: Receipt, servers: Sequence[str]) -> None:
        """A public receipt, in the caller's transaction; it replaces the user's older one."""
        edu = edus.receipt(receipt.room_id, receipt.user_id, receipt.event_id, receipt.ts, receipt.thread_id)
        key = f"{receipt.room_id} {receipt.user_id} {receipt.thread_id}"
        queued = [NewEdu(server, KIND, edu, key) for server in servers]
        self._dropped(KIND, await outbound.queue_edus(db, queued, self._clock()))

    def wake(self, servers: Iterable[str]) -> None:
        """After COMMIT."""
        self._outbox.wake(servers)

    def typing(self, room_id: str, user_id: str, is_typing: bool) -> None:
        """Returns at once; who is in the room is looked up by a task of its own."""
        if len(self._typing) >= MAX_PENDING:
            return
        self._typing[room_id, user_id] = is_typing
        if self._task is None:
            self._task = asyncio.create_task(self._tell_typing(), name="typing announcements")

    async def _tell_typing(self) -> None:
        try:
            while self._typing:
                room_id, user_id = key = next(iter(self._typing))
                is_typing = self._typing.pop(key)
                servers = await self.targets(room_id)
                self._outbox.offer(
                    servers, f"typing {room_id} {user_id}", edus.typing(room_id, user_id, is_typing)
                )
        except DatabaseUnavailable:
            self._typing.clear()
        except Exception as error:  # typing is worth no failure
            log.error("typing_not_announced", exc_info=error)
        finally:
            self._task = None

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
