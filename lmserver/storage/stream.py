"""Stream positions: what has been committed for good, across all rooms.

A position N means "every transaction with an ID below N is finished and seen". A bare sequence
cannot be followed: a number drawn early and committed late would be skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lmserver.storage.database import Executor
from lmserver.storage.receipts import Receipt
from lmserver.storage.room_log import StoredEvent

MAX_ROWS: Final = 500
"""Rows of one kind in one reading."""
NOTHING_YET: Final = 2**62
"""Beyond any position: reading from it finds nothing."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event a room's list was extended by; `member` is whose membership it sets, if anybody's."""

    stored: StoredEvent
    type: str
    state_key: str | None
    sender: str

    @property
    def stream_xid(self) -> int:
        return self.stored.stream_xid

    @property
    def member(self) -> str | None:
        return self.state_key if self.type == "m.room.member" else None


@dataclass(frozen=True, slots=True)
class NewReceipt:
    receipt: Receipt
    stream_xid: int


@dataclass(frozen=True, slots=True)
class UserChange:
    """`kind`: account_data (push rules too), outside (a membership in a room we are not in), inbox
    (messages for `device_id`), devices (the user's device list) or signatures (which the user made)."""

    kind: str
    user_id: str
    device_id: str
    stream_xid: int


Change = NewEvent | NewReceipt | UserChange


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything below `settled` has been committed, all commits so far are below `upcoming`;
    another `epoch` means that positions of before mean nothing now. `changes` are those below
    `settled`; `complete` is false when there were too many to read."""

    settled: int
    upcoming: int
    epoch: int
    changes: Sequence[Change] = field(default=())
    complete: bool = True


async def settled(db: Executor) -> int:
    """The position up to which nothing can still appear: rows with stream_xid below it are final."""
    position: int = await db.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
    return position


_CHANGES = """
SELECT 'bounds' AS kind, pg_snapshot_xmin(s)::text::bigint AS stream_xid,
 pg_snapshot_xmax(s)::text::bigint AS at, coalesce((SELECT epoch FROM restore_guard), 0) AS ts,
 '' AS room_id, '' AS user_id, '' AS one, '' AS two, '' AS three,
 NULL::bytea AS pdu, NULL AS failed, NULL AS redacted FROM pg_current_snapshot() AS s
UNION ALL (SELECT 'event', stream_xid::text::bigint, position, received_ts, room_id, sender, event_id,
 type, state_key, pdu, soft_failed, redacted_by FROM events
 WHERE stream_xid >= $1::text::xid8 AND position IS NOT NULL AND NOT backfilled
 ORDER BY events.stream_xid LIMIT $2)
UNION ALL (SELECT 'receipt', stream_xid::text::bigint, position, ts, room_id, user_id, receipt_type,
 thread_id, event_id, NULL, NULL, NULL FROM receipts WHERE stream_xid >= $1::text::xid8
 ORDER BY receipts.stream_xid LIMIT $2)
UNION ALL (SELECT 'account_data', stream_xid::text::bigint, 0, 0, '', user_id, '', '', '', NULL, NULL, NULL
 FROM account_data WHERE stream_xid >= $1::text::xid8 ORDER BY account_data.stream_xid LIMIT $2)
UNION ALL (SELECT 'account_data', stream_xid::text::bigint, 0, 0, '', user_id, '', '', '', NULL, NULL, NULL
 FROM push_rules WHERE stream_xid >= $1::text::xid8 ORDER BY push_rules.stream_xid LIMIT $2)
UNION ALL (SELECT 'outside', stream_xid::text::bigint, 0, 0, '', user_id, '', '', '', NULL, NULL, NULL
 FROM outside_memberships WHERE stream_xid >= $1::text::xid8
 ORDER BY outside_memberships.stream_xid LIMIT $2)
UNION ALL (SELECT 'inbox', stream_xid::text::bigint, 0, 0, '', user_id, device_id, '', '', NULL, NULL, NULL
 FROM to_device_messages WHERE stream_xid >= $1::text::xid8
 ORDER BY to_device_messages.stream_xid LIMIT $2)
UNION ALL (SELECT 'devices', stream_xid::text::bigint, 0, 0, '', user_id, '', '', '', NULL, NULL, NULL
 FROM device_list_changes WHERE stream_xid >= $1::text::xid8
 ORDER BY device_list_changes.stream_xid LIMIT $2)
UNION ALL (SELECT 'signatures', stream_xid::text::bigint, 0, 0, '', signer_user_id, '', '', '', NULL, NULL,
 NULL FROM key_signatures WHERE stream_xid >= $1::text::xid8 ORDER BY key_signatures.stream_xid LIMIT $2)
"""


async def changes(db: Executor, since: int) -> Reading:
    """What was committed from a position on, of every kind that /sync tells of, and how far it goes:
    one statement, so that both are of one moment."""
    rows = await db.fetch(_CHANGES, str(since), MAX_ROWS)
    bounds = next(r for r in rows if r["kind"] == "bounds")
    counts: dict[str, int] = {}
    found: list[Change] = []
    for row in rows:
        kind = row["kind"]
        counts[kind] = counts.get(kind, 0) + 1
        if kind != "bounds" and row["stream_xid"] < bounds["stream_xid"]:
            found.append(_change(kind, row))
    complete = max(counts.values()) < MAX_ROWS
    return Reading(bounds["stream_xid"], bounds["at"], bounds["ts"], found, complete)


def _change(kind: str, r: Any) -> Change:
    xid = r["stream_xid"]
    if kind == "event":
        stored = StoredEvent(
            r["room_id"], r["one"], r["at"], r["pdu"], r["failed"], r["redacted"], r["ts"], xid
        )  # fmt: skip
        return NewEvent(stored, r["two"], r["three"], r["user_id"])
    if kind == "receipt":
        receipt = Receipt(
            r["room_id"], r["user_id"], r["one"], r["two"], r["three"], r["at"], r["ts"]
        )  # fmt: skip
        return NewReceipt(receipt, xid)
    return UserChange(kind, r["user_id"], r["one"], xid)
