"""Typing and receipts of other servers' users, as far as those are joined to the room (attack B23)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from lmserver.rooms.receipts import MAIN_THREAD, PUBLIC
from lmserver.rooms.typing import Typing
from lmserver.storage import receipts, room_log, room_state
from lmserver.storage.database import Database, DatabaseUnavailable
from lmserver.storage.receipts import Receipt
from lmserver.web.limits import Rate, RateLimiter

TYPING_SECONDS: Final = 30.0
"""How long a server's word that somebody types counts; it is repeated while they do."""
WAKES: Final = {"typing": Rate(0.5, 10), "receipt": Rate(0.5, 20)}
"""How often one user of another server may wake everybody in a room; what comes in between is seen with
the next thing that wakes them."""
MAX_EARLY: Final = 5_000
MAX_EARLY_PER_ROOM: Final = 200


@dataclass(frozen=True, slots=True)
class RemoteTyping:
    room_id: str
    user_id: str
    is_typing: bool


@dataclass(frozen=True, slots=True)
class RemoteReceipt:
    """`thread_id` is "" for a receipt without thread, "main" or the ID of a thread's root; `ts` is
    milliseconds."""

    room_id: str
    user_id: str
    event_id: str
    thread_id: str
    ts: int

    @property
    def key(self) -> tuple[str, str, str]:
        return self.room_id, self.user_id, self.thread_id


class RemoteEphemeral:
    """Takes what the EDU dispatcher has parsed; whose server it came from is checked there.

    A receipt can overtake the event it is for, which comes by way of the hub: it waits, in bounded
    memory, until something happens in the room.
    """

    def __init__(self, db: Database, typing: Typing, publish: Callable[[Iterable[str]], None]) -> None:
        self._db = db
        self._typing = typing
        self._publish = publish
        self._wakes = RateLimiter(WAKES)
        self._early: dict[str, dict[tuple[str, str, str], RemoteReceipt]] = {}
        self._early_count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def receive_typing(self, changes: Sequence[RemoteTyping]) -> None:
        """Raises DatabaseUnavailable."""
        for room_id in {change.room_id for change in changes}:
            here = [change for change in changes if change.room_id == room_id]
            joined = await room_state.joined_of(self._db, room_id, [change.user_id for change in here])
            for change in here:
                if self._wakes.take("typing", f"{room_id} {change.user_id}"):
                    continue  # it ends by itself
                if change.is_typing and change.user_id in joined:
                    self._typing.start(room_id, change.user_id, TYPING_SECONDS, local=False)
                else:
                    self._typing.stop(room_id, change.user_id, local=False)

    async def receive_receipts(self, found: Sequence[RemoteReceipt]) -> None:
        """Raises DatabaseUnavailable."""
        newest: dict[tuple[str, str, str], Receipt] = {}
        for room_id in {receipt.room_id for receipt in found}:
            for receipt in await self._placed([r for r in found if r.room_id == room_id], room_id):
                key = receipt.room_id, receipt.user_id, receipt.thread_id
                before = newest.get(key)
                if before is None or before.position < receipt.position:
                    newest[key] = receipt
        if newest:
            moved = await receipts.advance(self._db, list(newest.values()))
            self._publish(
                {r for r, u, _ in newest if r in moved and not self._wakes.take("receipt", f"{r} {u}")}
            )

    async def _placed(self, found: Sequence[RemoteReceipt], room_id: str) -> list[Receipt]:
        """Those of joined users for events and threads of this room's list."""
        joined = await room_state.joined_of(self._db, room_id, [receipt.user_id for receipt in found])
        found = [receipt for receipt in found if receipt.user_id in joined]
        if not found:
            return []
        ids = {r.event_id for r in found} | {r.thread_id for r in found}
        known = await room_log.known_events(self._db, room_id, ids)
        placed = []
        for r in found:
            position = known.get(r.event_id)
            if position is not None and (r.thread_id in ("", MAIN_THREAD) or r.thread_id in known):
                placed.append(Receipt(room_id, r.user_id, PUBLIC, r.thread_id, r.event_id, position, r.ts))
            elif r.event_id not in known:
                self._keep_for_later(r)
        return placed

    def _keep_for_later(self, receipt: RemoteReceipt) -> None:
        early = self._early.get(receipt.room_id, {})
        if receipt.key not in early:
            if self._early_count >= MAX_EARLY or len(early) >= MAX_EARLY_PER_ROOM:
                return
            self._early_count += 1
        self._early.setdefault(receipt.room_id, early)[receipt.key] = receipt

    @property
    def waiting(self) -> int:
        """Receipts kept for events that have not come."""
        return self._early_count

    def rooms_changed(self, keys: Iterable[str]) -> None:
        """Rooms among these keys may have the events now that receipts wait for."""
        ready = [receipt for key in keys for receipt in self._early.pop(key, {}).values()]
        if ready:
            self._early_count -= len(ready)
            task = asyncio.create_task(self._try_again(ready))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _try_again(self, ready: Sequence[RemoteReceipt]) -> None:
        try:
            await self.receive_receipts(ready)
        except DatabaseUnavailable:
            return  # the user's next receipt comes

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
