"""Sending to one destination: one transaction in flight, repeated unchanged until it is taken.

D04 §Sending Events: a transaction with another ID may only follow a 200. The lease makes that so
across processes, the stored transaction across restarts.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import structlog

from lmserver.federation_client.client import Response, quote_path
from lmserver.federation_client.errors import FederationError, told
from lmserver.federation_client.room_api import STABLE, UNSTABLE
from lmserver.federation_client.transaction_builder import (
    MAX_EDUS,
    MAX_EVENTS,
    Contents,
    LatestTaker,
    build,
    rebuild,
)
from lmserver.protocol import ids
from lmserver.storage import destinations, outbound
from lmserver.storage.database import Database, DatabaseUnavailable
from lmserver.storage.destinations import LONGEST_PAUSE_MS, Lease
from lmserver.storage.outbound import OutboundTransaction, Settlement

REQUEST_SECONDS: Final = 20.0
MAX_ANSWER: Final = 256 * 1024
"""An answer says a line or two of each event; every destination may be answering at once."""
LEASE_MS: Final = 30_000
SHORT_WAIT_MS: Final = 5_000
MAX_WAITS: Final = 20
EXTEND_BELOW_MS: Final = 25_000
FIRST_BACKOFF_MS: Final = 1_000
MAX_BACKOFF_MS: Final = LONGEST_PAUSE_MS
WARN_AFTER_REFUSALS: Final = 5
RESEND_LPDU_MS: Final = 60_000
BAD_STATE_SECONDS: Final = 0.5
MAX_BAD_STATES: Final = 10
GATHER_SECONDS: Final = 0.08
"""From one transaction to the next when no client waits for it and less than a full one is due: a
transaction costs both ends more than an event in it does. The first after a pause goes at once."""
SLOW_SECONDS: Final = 2.0
"""A destination that takes longer over a transaction shares its places with others of its kind."""
MAX_REASON: Final = 255
MAX_ERRCODE: Final = 40

Answers = Callable[[str, Mapping[str, str], Mapping[str, str]], Awaitable[None]]
"""(hub, LPDU ID to event ID, LPDU ID to reason): must bear being told twice."""

GiveWay = Callable[[bool], bool]
"""Told after each transaction whether it was slow: whether somebody else wants the place."""

log = structlog.get_logger(__name__)


class Requests(Protocol):
    """The part of FederationClient that sending needs."""

    async def request(
        self,
        method: str,
        destination: str,
        path: str,
        *,
        content: bytes,
        timeout: float = REQUEST_SECONDS,
        max_response: int = ...,
    ) -> Response: ...


@dataclass(frozen=True, slots=True)
class _Ready:
    """A stored transaction, to be sent."""

    txn_id: str
    body: bytes
    contents: Contents


class LeaseLost(Exception):
    """Another process sends to the destination now."""


class DestinationSender:
    """One run: from the lease until nothing is due, the destination fails, or we stop.

    `retry_at` tells afterwards until when (ms) the destination is to be left alone.
    """

    def __init__(
        self,
        destination: str,
        db: Database,
        client: Requests,
        answers: Answers,
        clock: Callable[[], int],
        owner: str,
        linger_seconds: float,
        latest: LatestTaker,
        give_way: GiveWay,
        on_refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.destination = destination
        self.woken = asyncio.Event()
        self.stopping = False
        self.retry_at = 0
        self._db = db
        self._client = client
        self._answers = answers
        self._clock = clock
        self._owner = owner
        self._linger_seconds = linger_seconds
        self._latest = latest
        self._give_way = give_way
        self._on_refused = on_refused
        self._prefix = UNSTABLE
        self._bad_states = 0
        self._waits = 0
        self._more = True
        self._may_gather = False
        self._lease = Lease(0, 0, 0)

    async def run(self) -> None:
        """Send what is due; raises nothing but cancellation."""
        try:
            now = self._clock()
            lease = await destinations.take_lease(
                self._db, self.destination, self._owner, now, now + LEASE_MS
            )
            if lease is None:
                return
            self._lease = lease
            try:
                await self._send_all()
            finally:
                await asyncio.shield(self._release())
        except LeaseLost:
            log.info("destination_lease_lost", destination=self.destination)
        except DatabaseUnavailable:
            log.warning("sender_database_unavailable", destination=self.destination)
        except Exception as error:  # one destination's failure must not end the others
            log.error("sender_failed", destination=self.destination, exc_info=error)
            self.retry_at = self._clock() + FIRST_BACKOFF_MS * 10

    async def _send_all(self) -> None:
        """Until nothing is left and no hint comes for a while, or others wait for the place; what no hint
        tells of, the poll finds."""
        txn = await self._stored()
        while not self.stopping:
            if not (self._more or self.woken.is_set()) and not await self._linger():
                return
            self.woken.clear()
            txn = txn or await self._next()
            if txn is None:
                continue
            started = time.monotonic()
            taken = await self._deliver(txn)
            wanted = self._give_way(time.monotonic() - started > SLOW_SECONDS)
            if not taken:
                return
            if wanted:
                self.woken.set()  # there may be more: to the end of the line
                return
            txn = None
            if self._may_gather:
                await asyncio.sleep(started + GATHER_SECONDS - time.monotonic())

    async def _linger(self) -> bool:
        """Keep the lease a moment for what comes next; False when nothing does."""
        try:
            await asyncio.wait_for(self.woken.wait(), self._linger_seconds)
        except TimeoutError:
            return False
        await self._keep_lease()
        return True

    async def _release(self) -> None:
        if self._lease.fence and not self.retry_at:
            try:
                await destinations.release_lease(self._db, self.destination, self._lease.fence)
            except DatabaseUnavailable:
                log.info("destination_lease_left_to_expire", destination=self.destination)

    async def _keep_lease(self) -> None:
        """A lease outlasts every request made under it."""
        now = self._clock()
        if self._lease.until - now > EXTEND_BELOW_MS:
            return
        until = now + LEASE_MS
        if not await destinations.extend_lease(self._db, self.destination, self._lease.fence, until):
            raise LeaseLost
        self._lease = replace(self._lease, until=until)

    # -- one transaction ------------------------------------------------------------------------

    async def _stored(self) -> _Ready | None:
        """The transaction that was being sent when the last run ended."""
        txn = await outbound.transaction(self._db, self.destination)
        if txn is None:
            return None
        contents = Contents.decode(txn.contents)
        body = txn.body
        if body is None:
            body = rebuild(contents, await outbound.events_in(self._db, contents.spans))
        if body is None:
            log.warning("stored_transaction_lost_its_events", destination=self.destination, txn_id=txn.txn_id)
            await outbound.discard(self._db, self.destination, self._lease.fence, txn.txn_id)
            return None
        return _Ready(txn.txn_id, body, contents)

    async def _next(self) -> _Ready | None:
        """Build and store the next transaction, if anything is due."""
        # One more than fits tells whether something is left.
        due = await outbound.due(self._db, self.destination, self._clock(), MAX_EVENTS + 1, MAX_EDUS + 1)
        built = build(due, self._latest)
        if built is None:
            self._more = False
            return None
        self._more = built.more
        self._may_gather = not (built.more or built.full or built.contents.lpdus)
        ready = _Ready(f"{self._clock()}_{secrets.token_hex(8)}", built.body, built.contents)
        kept = None if built.contents.spans else built.body
        txn = OutboundTransaction(ready.txn_id, kept, built.contents.encode())
        fence = self._lease.fence
        if not await outbound.store_transaction(self._db, self.destination, fence, txn, self._clock()):
            raise LeaseLost
        return ready

    async def _deliver(self, txn: _Ready) -> bool:
        """Repeat until the destination has taken it; False to leave it for later."""
        while not self.stopping:
            await self._keep_lease()
            try:
                response = await self._put(txn)
            except FederationError as error:
                await self._back_off(error.detail or str(error), 0)
                return False
            if response.status == 200:
                await self._settle(txn, response.json if isinstance(response.json, dict) else {})
                return True
            if not await self._may_repeat(response):
                return False
        return False

    async def _put(self, txn: _Ready) -> Response:
        """PUT send in the form of the path that the destination knows."""
        for prefix in (self._prefix, STABLE if self._prefix == UNSTABLE else UNSTABLE):
            version = "/v2" if prefix == STABLE else ""
            path = f"{prefix}{version}/send" + quote_path(txn.txn_id)
            response = await self._client.request(
                "PUT",
                self.destination,
                path,
                content=txn.body,
                timeout=REQUEST_SECONDS,
                max_response=MAX_ANSWER,
            )
            if response.status not in (404, 405) or _errcode(response) not in ("M_UNRECOGNIZED", ""):
                self._prefix = prefix
                return response
        return response

    async def _may_repeat(self, response: Response) -> bool:
        """A refusal: whether to repeat at once; otherwise the destination backs off."""
        if (
            response.status == 400
            and _errcode(response) == "M_BAD_STATE"
            and self._bad_states < MAX_BAD_STATES
        ):
            # Our own transaction of before a crash is still in flight there.
            self._bad_states += 1
            await asyncio.sleep(BAD_STATE_SECONDS * self._bad_states * (0.5 + random.random()))
            return True
        wait = response.json.get("retry_after_ms") if isinstance(response.json, dict) else None
        asked = wait if response.status == 429 and type(wait) is int and wait > 0 else 0
        if 0 < asked <= SHORT_WAIT_MS and self._waits < MAX_WAITS:
            # We were too fast: the destination has not failed, and others need not wait longer.
            self._waits += 1
            await asyncio.sleep(asked / 1000 * (1 + random.random() / 4))
            return True
        reason = f"status {response.status} {_errcode(response)}".strip()
        await self._back_off(reason, asked, refused=400 <= response.status < 500 and response.status != 429)
        return False

    async def _back_off(self, reason: str, asked_ms: int, *, refused: bool = False) -> None:
        failures = self._lease.failures + 1
        pause = min(FIRST_BACKOFF_MS << min(failures - 1, 20), MAX_BACKOFF_MS) * (0.75 + random.random() / 2)
        pause = min(max(pause, asked_ms), MAX_BACKOFF_MS)
        self.retry_at = self._clock() + int(pause)
        # One that is down is none of our business. One that keeps refusing needs a human: the draft
        # lets nothing else follow what it does not take.
        tell = log.warning if refused and failures >= WARN_AFTER_REFUSALS else log.info
        event = "destination_refuses" if refused else "destination_failed"
        tell(event, destination=self.destination, reason=reason, failures=failures, ms=int(pause))
        await destinations.failed(
            self._db,
            self.destination,
            self._lease.fence,
            failures,
            self.retry_at,
            self._clock(),
            told(reason, MAX_REASON),
        )

    async def _settle(self, txn: _Ready, answer: dict[str, Any]) -> None:
        """Record that it was taken. LPDUs are answered first: if we die in between, the same
        transaction gets the same answer again."""
        contents = txn.contents
        accepted, failed = _lpdu_answers(contents, answer)
        if accepted or failed:
            await self._answers(self.destination, accepted, failed)
        if _refuses_events(contents, answer):
            self._on_refused(self.destination)
        if not await outbound.settle(
            self._db, self.destination, self._lease.fence, txn.txn_id, _taken(contents), self._clock()
        ):
            raise LeaseLost
        if self._lease.failures or self._lease.failing:
            await destinations.succeeded(self._db, self.destination)
        self._bad_states = self._waits = 0
        self._lease = replace(self._lease, failures=0, failing=False)


def _taken(contents: Contents) -> Settlement:
    return Settlement(contents.ranges, contents.lpdus, contents.edus, RESEND_LPDU_MS, MAX_BACKOFF_MS)


def _errcode(response: Response) -> str:
    return told(response.json.get("errcode") if isinstance(response.json, dict) else None, MAX_ERRCODE)


def _lpdu_answers(contents: Contents, answer: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """What the hub says of the LPDUs it was sent; anything else it says is ignored."""
    accepted, failed = answer.get("org.lmserver.accepted"), answer.get("failed_pdus")
    taken: dict[str, str] = {}
    refused: dict[str, str] = {}
    for _, lpdu_id in contents.lpdus:
        event_id = accepted.get(lpdu_id) if isinstance(accepted, dict) else None
        if isinstance(event_id, str) and ids.is_event_id(event_id):
            taken[lpdu_id] = event_id
        elif isinstance(failed, dict) and lpdu_id in failed:
            detail = failed[lpdu_id]
            reason = detail.get("error") if isinstance(detail, dict) else None
            refused[lpdu_id] = told(reason, MAX_REASON) or "refused by the hub"
    return taken, refused


def _refuses_events(contents: Contents, answer: dict[str, Any]) -> bool:
    """Whether events of rooms that we order were refused: our list may not be what it was."""
    failed = answer.get("failed_pdus")
    return isinstance(failed, dict) and bool(failed.keys() - {lpdu_id for _, lpdu_id in contents.lpdus})
