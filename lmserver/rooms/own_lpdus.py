"""Our users' events in rooms whose hub is another server.

A client's send needs an event ID, and only the hub can give one: the LPDU is stored with the
client's transaction ID, sent until the hub answers, and the client waits for the answer a
bounded time. A retry with the same transaction ID waits for, and gets, the same event.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from lmserver.protocol import ids
from lmserver.protocol.auth_rules import authorize
from lmserver.protocol.errors import AuthRejected, InvalidJson
from lmserver.protocol.events import EventDraft, Lpdu
from lmserver.protocol.participant import build_lpdu
from lmserver.protocol.room_view import RoomView
from lmserver.protocol.signatures import SigningKey
from lmserver.rooms.lpdu_answers import LpduAnswers, Waiter
from lmserver.rooms.outcomes import Accepted, ClientTxn, Outcome, Rejected, RoomBusy
from lmserver.storage import client_transactions, lpdus
from lmserver.storage.database import Connection, Database, UniqueViolation

ANSWER_SECONDS = 15.0
PLACE_SECONDS = 3.0
"""A state event is answered when our own state has it, or after this: what a user does next is
judged by our state, and a client that was told "invited" expects it to be so."""
MAX_MOMENTS = 24
"""Equal events of one moment would be one LPDU: each but the first is sent as of some milliseconds later,
few if they are few."""
FIRST_ECHO_CHECK_MS = 30_000
"""After the hub has named the event, its echo is looked for from then on."""
SILENCE_CHECK_MS = 3_600_000
GIVEN_UP = "M_UNKNOWN"
"""The errcode of an event that was given up."""


class HubSilent(Exception):
    """The hub has not answered in time; the LPDU stays queued and is sent until it does."""


class OwnLpdus:
    """Makes, stores and follows the LPDUs of our users."""

    def __init__(
        self,
        db: Database,
        key: SigningKey,
        answers: LpduAnswers,
        wake: Callable[[Iterable[str]], None],
        clock: Callable[[], int],
        *,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._db = db
        self._key = key
        self._answers = answers
        self._wake = wake
        self._clock = clock
        self._answer_seconds = answer_seconds

    async def send(self, draft: EventDraft, view: RoomView, txn: ClientTxn | None) -> Outcome:
        """Queue one event for the hub and wait for its answer.

        Raises HubSilent after the time is up; the event may still come to stand in the room. RoomBusy for
        more equal events of one moment than there are moments to tell them apart by.
        """
        for attempt in range(MAX_MOMENTS):
            if txn is not None:
                known = await self._known(draft.room_id, txn)
                if known is not None:
                    return await self._follow(draft.room_id, known)
            try:
                authorize(draft, view)
                at = draft.origin_server_ts + (random.randint(1, 2**attempt) if attempt else 0)
                lpdu = build_lpdu(replace(draft, origin_server_ts=at), view.version, view.hub, self._key)
            except AuthRejected as error:
                return Rejected("M_FORBIDDEN", error.reason, error.rule)
            except InvalidJson as error:  # later than any time there is
                return Rejected("M_BAD_JSON", str(error))
            with self._answers.waiting(lpdu.event_id) as waiter:
                try:
                    await self._db.run(partial(self._queue, lpdu=lpdu, hub=view.hub, txn=txn))
                except UniqueViolation:
                    continue
                return await self._answer(lpdu, view.hub, waiter)
        raise RoomBusy(draft.room_id)

    async def _answer(self, lpdu: Lpdu, hub: str, waiter: Waiter) -> Outcome:
        self._wake([hub])
        outcome = await self._wait(lpdu.room_id, lpdu.event_id, waiter)
        if isinstance(outcome, Accepted) and lpdu.state_key is not None:
            await _placed(waiter)
        return outcome

    async def _queue(self, db: Connection, lpdu: Lpdu, hub: str, txn: ClientTxn | None) -> None:
        if txn is not None:
            await client_transactions.remember(db, lpdu.room_id, [(txn, None, lpdu.event_id)], self._clock())
        await lpdus.queue(
            db,
            room_id=lpdu.room_id,
            lpdu_id=lpdu.event_id,
            lpdu_hash=lpdu.lpdu_hash or "",
            destination=hub,
            lpdu=lpdu.canonical,
            user_id=lpdu.sender,
            device_id=None if txn is None else txn.device_id,
            txn_id=None if txn is None else txn.txn_id,
            now_ms=self._clock(),
            check_at=self._clock() + SILENCE_CHECK_MS,
        )

    async def _known(self, room_id: str, txn: ClientTxn) -> client_transactions.KnownTransaction | None:
        return (await client_transactions.known(self._db, room_id, [txn])).get(txn)

    async def _follow(self, room_id: str, known: client_transactions.KnownTransaction) -> Outcome:
        """A retry of something sent before: its answer, now or when it comes."""
        if known.event_id is not None:
            return Accepted(known.event_id, None)
        lpdu_id = known.lpdu_id or ""
        with self._answers.waiting(lpdu_id) as waiter:
            stored = await self._stored_answer(room_id, lpdu_id)
            return stored if stored is not None else await self._wait(room_id, lpdu_id, waiter)

    async def _stored_answer(self, room_id: str, lpdu_id: str) -> Outcome | None:
        queued = await lpdus.get(self._db, room_id, lpdu_id)
        if queued is None:
            return Rejected(GIVEN_UP, "the event was given up")
        if queued.status in ("accepted", "placed") and queued.pdu_event_id is not None:
            return Accepted(queued.pdu_event_id, None)
        if queued.status == "rejected":
            return Rejected("M_FORBIDDEN", queued.reason or "refused by the hub")
        if queued.status == "given_up":
            return Rejected(GIVEN_UP, queued.reason or "the event was given up")
        return None

    async def _wait(self, room_id: str, lpdu_id: str, waiter: Waiter) -> Outcome:
        try:
            return await asyncio.wait_for(asyncio.shield(waiter.answer), self._answer_seconds)
        except TimeoutError:
            # Another process may have had the answer; the database knows.
            stored = await self._stored_answer(room_id, lpdu_id)
            if stored is not None:
                return stored
            raise HubSilent(room_id) from None

    async def answered(self, hub: str, accepted: Mapping[str, str], failed: Mapping[str, str]) -> None:
        """The hub's `send` response: LPDU ID to event ID, and LPDU ID to reason.

        IDs that were never queued for this hub are ignored, and event IDs that are none.
        """
        accepted = {lpdu_id: named for lpdu_id, named in accepted.items() if ids.is_event_id(named)}
        failed = {lpdu_id: reason.replace("\0", " ") for lpdu_id, reason in failed.items()}
        settled = await self._db.run(lambda db: self._store_answers(db, hub, accepted, failed))
        for lpdu_id, outcome in settled.items():
            self._answers.settle(lpdu_id, outcome, placed=False)

    async def _store_answers(
        self, db: Connection, hub: str, accepted: Mapping[str, str], failed: Mapping[str, str]
    ) -> dict[str, Outcome]:
        """What of it was news; an LPDU that was settled before stays as it is."""
        rooms = await lpdus.rooms_of(db, hub, [*accepted, *failed])
        settled: dict[str, Outcome] = {}
        check_at = self._clock() + FIRST_ECHO_CHECK_MS
        # In the order in which echoes take them too, or the two would wait for each other.
        for lpdu_id, room_id in sorted(rooms.items()):
            event_id = accepted.get(lpdu_id)
            if event_id is None:
                reason = failed[lpdu_id]
                if await lpdus.refused(db, room_id, lpdu_id, reason[:255]):
                    settled[lpdu_id] = Rejected("M_FORBIDDEN", reason)
            elif await lpdus.named(db, room_id, lpdu_id, event_id, check_at):
                await client_transactions.settle(db, lpdu_id, event_id)
                settled[lpdu_id] = Accepted(event_id, None)
        return settled


async def _placed(waiter: Waiter) -> None:
    """Wait for the echo, within reason: the event stands at the hub either way."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(waiter.placed.wait(), PLACE_SECONDS)
