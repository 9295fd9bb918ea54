"""Durable delivery: one transaction in flight for each destination, the same bytes until 200.

What is left to send is found in the database, so a crash, an outage of a day or a lost wake-up
changes nothing but when. A slow destination has a task of its own and holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from lmserver.federation_client import transactions
from lmserver.federation_client.client import FederationClient, quote_path
from lmserver.federation_client.errors import FederationError, RemoteError
from lmserver.protocol.room_versions import LM_02_ID
from lmserver.storage import outbound
from lmserver.storage.database import Connection, Database, DatabaseUnavailable, UniqueViolation
from lmserver.storage.outbound import StoredTransaction

log = structlog.get_logger(__name__)

LpduAnswers = Callable[[str, Mapping[str, str], Mapping[str, str]], Awaitable[None]]
"""Hub, accepted LPDU ID to event ID, refused LPDU ID to reason."""

POLL_SECONDS = 5.0
IDLE_SECONDS = 10.0
LEASE_MS = 60_000
REQUEST_SECONDS = 30.0
FIRST_RETRY_MS = 1_000
LAST_RETRY_MS = 3_600_000
BAD_STATE_RETRY_MS = 500
MAX_CONCURRENT = 100
UNSTABLE_SEND = f"/_matrix/federation/unstable/{LM_02_ID}/send"
STABLE_SEND = "/_matrix/federation/v2/send"


@dataclass(slots=True)
class _Destination:
    """A destination's task and the event that wakes it. `failures` counts since the last 200."""

    woken: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    hurry: bool = False


class Sender:
    """Starts a task for every destination with work and lets it end when there is none."""

    def __init__(
        self, db: Database, client: FederationClient, on_lpdu_answers: LpduAnswers, clock: Callable[[], int]
    ) -> None:
        self._db = db
        self._client = client
        self._on_lpdu_answers = on_lpdu_answers
        self._clock = clock
        self._owner = secrets.token_hex(8)
        self._destinations: dict[str, _Destination] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._poller: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Begin to look for work."""
        self._poller = asyncio.create_task(self._poll(), name="sender poll")

    async def stop(self) -> None:
        """Stop; what is in flight is cut off and sent again, the same, at the next start."""
        self._stopping = True
        tasks = [d.task for d in self._destinations.values() if d.task is not None]
        if self._poller is not None:
            tasks.append(self._poller)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(DatabaseUnavailable):
            await outbound.give_up_leases(self._db, self._owner)

    def wake(self, destinations: Iterable[str]) -> None:
        """There may be something for these servers; a hint, called after COMMIT."""
        if self._stopping:
            return
        for name in destinations:
            state = self._destinations.get(name)
            if state is None:
                state = self._destinations[name] = _Destination()
                state.task = asyncio.create_task(self._run(name, state), name=f"send to {name}")
            state.woken.set()

    def peer_alive(self, name: str) -> None:
        """A server that has just asked us something is worth trying again at once."""
        state = self._destinations.get(name)
        if state is not None and not state.hurry:
            state.hurry = True
            state.woken.set()

    async def _poll(self) -> None:
        """The safety net under wake-ups: find work by reading."""
        while True:
            try:
                self.wake(await outbound.destinations_with_work(self._db))
            except DatabaseUnavailable:
                log.warning("sender_poll_failed")
            await asyncio.sleep(POLL_SECONDS * (0.8 + 0.4 * random.random()))

    async def _run(self, name: str, state: _Destination) -> None:
        """One destination until nothing has waited for it for a while."""
        try:
            while True:
                state.woken.clear()
                pause = await self._work(name, state)
                if pause is None:
                    pause = IDLE_SECONDS
                    if not await _woken(state, pause):
                        return
                elif pause and not await _woken(state, pause):
                    continue
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a defect here must not end delivery: the poll starts it again
            log.error("sender_failed", destination=name, error=type(error).__name__, exc_info=error)
        finally:
            if self._destinations.get(name) is state:
                del self._destinations[name]

    async def _work(self, name: str, state: _Destination) -> float | None:
        """Send what waits: seconds to pause, or None when there is nothing left."""
        now = self._clock()
        try:
            lease = await outbound.take_lease(self._db, name, self._owner, now, now + LEASE_MS)
            if lease is None:
                return POLL_SECONDS
            fence, retry = lease
            wait = 0 if state.hurry else retry.retry_at - now
            if wait > 0:
                return wait / 1000
            state.hurry = False
            transaction = await self._next(name, fence)
        except DatabaseUnavailable:
            return POLL_SECONDS
        if transaction is None:
            return None
        async with self._slots:
            return await self._send(name, fence, transaction, retry.failures)

    async def _next(self, name: str, fence: int) -> StoredTransaction | None:
        """The transaction in flight, or the next one, stored before it is sent."""

        async def store(db: Connection) -> StoredTransaction | None:
            if not await outbound.fenced(db, name, fence):
                return None
            stored = await outbound.in_flight(db, name)
            if stored is not None:
                return stored
            built = await transactions.build(db, name, f"{self._clock()}-{secrets.token_hex(4)}")
            if built is not None:
                await outbound.store(db, name, built, self._clock())
            return built

        try:
            return await self._db.run(store)
        except UniqueViolation:
            return await outbound.in_flight(self._db, name)

    async def _send(self, name: str, fence: int, transaction: StoredTransaction, failures: int) -> float:
        """One attempt; the pause before the next."""
        try:
            answer = await self._put(name, transaction)
        except RemoteError as error:
            if error.errcode == "M_BAD_STATE":
                return BAD_STATE_RETRY_MS / 1000
            return await self._failed(name, failures, error, error.retry_after_ms)
        except FederationError as error:
            return await self._failed(name, failures, error, None)
        try:
            await self._acknowledged(name, fence, transaction, answer, failures)
        except DatabaseUnavailable:
            return POLL_SECONDS
        return 0.0

    async def _put(self, name: str, transaction: StoredTransaction) -> dict[str, Any]:
        content = transactions.parse_body(transaction.body)
        path = quote_path(transaction.txn_id)
        try:
            return await self._client.send_json(
                "PUT", name, UNSTABLE_SEND + path, content=content, timeout=REQUEST_SECONDS
            )
        except RemoteError as error:
            if not error.unknown_endpoint:
                raise
        return await self._client.send_json(
            "PUT", name, STABLE_SEND + path, content=content, timeout=REQUEST_SECONDS
        )

    async def _failed(
        self, name: str, failures: int, error: FederationError, retry_after_ms: int | None
    ) -> float:
        """Back off, remember how far, and say so once in a while."""
        delay = min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** min(failures, 16))
        delay = int(delay * (0.75 + 0.5 * random.random()))
        if retry_after_ms is not None:
            delay = max(delay, min(retry_after_ms, LAST_RETRY_MS))
        with contextlib.suppress(DatabaseUnavailable):
            await outbound.set_retry(self._db, name, failures + 1, self._clock() + delay)
        log.info("send_failed", destination=name, failures=failures + 1, retry_ms=delay, reason=str(error))
        return delay / 1000

    async def _acknowledged(
        self, name: str, fence: int, transaction: StoredTransaction, answer: dict[str, Any], failures: int
    ) -> None:
        """200: settle our LPDUs, then advance and remove in one transaction.

        A crash between the two sends the same transaction again and gets the same answer.
        """
        contents = transactions.Contents.decode(transaction.contents)
        if contents.lpdus:
            await self._settle(name, contents.lpdus, answer)

        async def advance(db: Connection) -> None:
            if not await outbound.fenced(db, name, fence):
                return
            await outbound.acknowledge(db, name, contents.ranges, contents.edus)
            await outbound.remove(db, name, transaction.txn_id)
            if failures:
                await outbound.set_retry(db, name, 0, 0)

        await self._db.run(advance)

    async def _settle(self, name: str, sent: list[str], answer: dict[str, Any]) -> None:
        """What the hub says of our LPDUs, as far as it makes sense.

        A hub that names neither acceptance nor failure has taken them: its echo will tell.
        """
        accepted = _texts(answer.get("org.lmserver.accepted"), sent)
        failed: dict[str, str] = {}
        raw = answer.get("failed_pdus")
        for lpdu_id in sent:
            entry = raw.get(lpdu_id) if isinstance(raw, dict) else None
            if isinstance(entry, dict):
                reason = entry.get("error")
                failed[lpdu_id] = reason if isinstance(reason, str) else "refused by the hub"
        silent = [lpdu_id for lpdu_id in sent if lpdu_id not in accepted and lpdu_id not in failed]
        await self._on_lpdu_answers(name, accepted, failed)
        if silent:
            await self._db.run(lambda db: outbound.await_echo(db, name, silent))


async def _woken(state: _Destination, seconds: float) -> bool:
    try:
        await asyncio.wait_for(state.woken.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _texts(value: object, wanted: Iterable[str]) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {k: value[k] for k in wanted if isinstance(value.get(k), str) and len(value[k]) <= 255}
