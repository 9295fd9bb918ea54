"""Client transaction IDs: the same request of a device gives the same event, for ever.

A row is written in the transaction that appends the event (hub) or queues the LPDU
(participant), so a retry after any crash finds what the first try did. Every message has one for
days: user, device and room stand in it as one short hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import orjson

from lmserver.storage.database import Executor

SCOPE_BYTES: Final = 12
"""96 bits of SHA-256: who finds two of their own scopes that are equal has spoiled their own retries."""
_MARK: Final = "\x1f"
"""Around the event that a transaction redacts."""


@dataclass(frozen=True, slots=True)
class TransactionKey:
    """Transaction IDs are scoped to a device and an endpoint (Matrix CS API §Transaction identifiers): here,
    to what is sent to a room, or to the redaction of one event of it."""

    user_id: str
    device_id: str
    txn_id: str
    redacts: str | None = None

    @property
    def stored(self) -> str:
        """The text that is kept: nothing more than the ID for messages, of which there are many."""
        return self.txn_id if self.redacts is None else f"{_MARK}{self.redacts}{_MARK}{self.txn_id}"


@dataclass(frozen=True, slots=True)
class KnownTransaction:
    """What a transaction ID stands for: an event, or an LPDU the hub has not answered yet."""

    event_id: str | None
    lpdu_id: str | None


def scope(key: TransactionKey, room_id: str) -> bytes:
    """What a device's transaction IDs in a room stand under."""
    return _scope(key.user_id, key.device_id, room_id)


def _scope(user_id: str, device_id: str, room_id: str) -> bytes:
    return sha256(orjson.dumps([user_id, device_id, room_id])).digest()[:SCOPE_BYTES]


async def known(
    db: Executor, room_id: str, keys: Sequence[TransactionKey]
) -> dict[TransactionKey, KnownTransaction]:
    by_place = {(scope(k, room_id), k.stored): k for k in keys}
    rows = await db.fetch(
        "SELECT t.scope, t.txn_id, t.event_id, t.lpdu_id FROM unnest($1::bytea[], $2::text[])"
        " AS k (scope, txn_id) JOIN client_transactions AS t ON t.scope = k.scope AND t.txn_id = k.txn_id",
        [place for place, _ in by_place],
        [txn_id for _, txn_id in by_place],
    )
    return {by_place[r["scope"], r["txn_id"]]: KnownTransaction(r["event_id"], r["lpdu_id"]) for r in rows}


async def remember(
    db: Executor, room_id: str, rows: Sequence[tuple[TransactionKey, str | None, str | None]], now_ms: int
) -> None:
    """Store (key, event ID, LPDU ID) rows; raises UniqueViolation when a key is there already."""
    await db.execute(
        "INSERT INTO client_transactions (scope, txn_id, event_id, lpdu_id, created_ts)"
        " SELECT n.*, $1::bigint FROM unnest($2::bytea[], $3::text[], $4::text[], $5::text[]) AS n",
        now_ms,
        [scope(k, room_id) for k, _, _ in rows],
        [k.stored for k, _, _ in rows],
        [event_id for _, event_id, _ in rows],
        [lpdu_id for _, _, lpdu_id in rows],
    )


async def settle(db: Executor, lpdu_id: str, event_id: str) -> None:
    """The LPDU of a transaction has become an event."""
    await db.execute("UPDATE client_transactions SET event_id = $2 WHERE lpdu_id = $1", lpdu_id, event_id)


async def unsettle(db: Executor, lpdu_id: str) -> None:
    """The event its transaction was told of is none after all: a retry learns what became of it."""
    await db.execute("UPDATE client_transactions SET event_id = NULL WHERE lpdu_id = $1", lpdu_id)


async def transaction_ids(
    db: Executor, user_id: str, device_id: str, events: Mapping[str, str]
) -> dict[str, str]:
    """Event ID to transaction ID for those of the events (ID to room) that this device sent: the
    client's local echo."""
    rows = await db.fetch(
        "SELECT event_id, txn_id FROM client_transactions"
        " WHERE scope = ANY($1::bytea[]) AND event_id = ANY($2::text[])",
        [_scope(user_id, device_id, room_id) for room_id in set(events.values())],
        list(events),
    )
    return {r["event_id"]: r["txn_id"].rpartition(_MARK)[2] for r in rows}


async def forget_devices(
    db: Executor, user_id: str, device_ids: Iterable[str], room_ids: Sequence[str]
) -> None:
    """Transactions of devices that are no more, in the user's rooms: a new device of the same ID
    starts anew."""
    await db.execute(
        "DELETE FROM client_transactions WHERE scope = ANY($1::bytea[])",
        [_scope(user_id, device_id, room_id) for device_id in device_ids for room_id in room_ids],
    )


async def purge(db: Executor, before_ms: int) -> None:
    """Forget transactions older than a client would retry, but not those still on their way."""
    await db.execute(
        "DELETE FROM client_transactions AS t WHERE t.created_ts < $1"
        " AND (t.event_id IS NOT NULL"
        " OR NOT EXISTS (SELECT 1 FROM outbound_lpdus AS o WHERE o.lpdu_id = t.lpdu_id))",
        before_ms,
    )
