"""What one transaction to a server holds, and what its 200 acknowledges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from lmserver.protocol import canonical_json
from lmserver.storage import outbound
from lmserver.storage.database import Executor
from lmserver.storage.outbound import StoredTransaction

MAX_PDUS = 50
MAX_EDUS = 100
MAX_BYTES = 90_000
"""One known peer refuses bodies over 100 kB; a single larger event goes alone."""


@dataclass(frozen=True, slots=True)
class Contents:
    """`ranges` are (room, range, position); `lpdus` the IDs whose answers are expected."""

    ranges: list[tuple[str, int, int]]
    lpdus: list[str]
    edus: list[int]

    def encode(self) -> bytes:
        return orjson.dumps({"ranges": self.ranges, "lpdus": self.lpdus, "edus": self.edus})

    @classmethod
    def decode(cls, data: bytes) -> Contents:
        fields = orjson.loads(data)
        return cls([(r, f, p) for r, f, p in fields["ranges"]], fields["lpdus"], fields["edus"])


async def build(db: Executor, destination: str, txn_id: str) -> StoredTransaction | None:
    """The next transaction for a destination, or None when nothing waits.

    LPDUs first: a client of ours waits for each of them.
    """
    lpdus = await outbound.pending_lpdus(db, destination, MAX_PDUS)
    chosen = _fitting([p.lpdu for p in lpdus], MAX_PDUS, MAX_BYTES)
    pdus: list[bytes] = [p.lpdu for p in lpdus[:chosen]]
    size = sum(map(len, pdus))
    ranges: dict[tuple[str, int], int] = {}
    if chosen == len(lpdus) and len(pdus) < MAX_PDUS:
        found = await outbound.pending_pdus(db, destination, MAX_PDUS - len(pdus))
        count = _fitting([p.pdu for p in found], MAX_PDUS - len(pdus), MAX_BYTES - size, at_least=not pdus)
        for pending in found[:count]:
            ranges[pending.room_id, pending.from_position] = pending.position
            pdus.append(pending.pdu)
        size += sum(len(p.pdu) for p in found[:count])
    edus = await outbound.pending_edus(db, destination, MAX_EDUS)
    edu_count = _fitting([e.edu for e in edus], MAX_EDUS, MAX_BYTES - size, at_least=not pdus)
    if not pdus and not edu_count:
        return None
    contents = Contents(
        [(room_id, start, position) for (room_id, start), position in ranges.items()],
        [p.lpdu_id for p in lpdus[:chosen]],
        [e.seq for e in edus[:edu_count]],
    )
    return StoredTransaction(txn_id, _body(pdus, [e.edu for e in edus[:edu_count]]), contents.encode())


def _fitting(items: Sequence[bytes], most: int, space: int, *, at_least: bool = True) -> int:
    """How many fit; the first always does if `at_least`."""
    used = 0
    for number, item in enumerate(items[:most]):
        used += len(item) + 1
        if used > space and (number or not at_least):
            return number
    return min(len(items), most)


def _body(pdus: Sequence[bytes], edus: Sequence[bytes]) -> bytes:
    """Canonical JSON put together from canonical pieces: keys in order, no copy of any event."""
    return b'{"edus":[' + b",".join(edus) + b'],"pdus":[' + b",".join(pdus) + b"]}"


def parse_body(body: bytes) -> dict[str, Any]:
    """The content to sign, from the stored bytes."""
    return canonical_json.parse_object(body)
