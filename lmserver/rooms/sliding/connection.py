"""What a connection has been sent, and the `pos` it is known by.

A `pos` names a stored position of the connection and how far the streams were read then. Rooms in
the client's windows are "live": everything until the `pos` was sent, so an answer that changes no
window and no config writes nothing. A room that leaves them is noted with how far it had been sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from lmserver.rooms.sliding.request import Pattern, Required, SlidingRequest
from lmserver.storage import sliding_sync as storage
from lmserver.storage.database import Connection as Transaction
from lmserver.storage.database import Database
from lmserver.storage.sliding_sync import PositionRow

LIVE: Final = -1
MAX_CONNECTIONS: Final = 10
"""Connections of one device; the ones used longest ago give way."""
MAX_VOCABULARY: Final = 2_000
MAX_VOCABULARY_BYTES: Final = 256 * 1024
"""Different elements of required_state that a connection has ever named."""
TOUCH_MS: Final = 3_600_000
_POS: Final = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})\.([0-9]{1,18})\.([0-9]{1,18})")


class UnknownPos(Exception):
    """No such position, or no longer: the client begins anew (400 M_UNKNOWN_POS)."""


@dataclass(frozen=True, slots=True)
class Pos:
    """A stored position, and where the streams were: events, what lives in memory, restores."""

    position: int
    stream: int
    typing: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.position}.{self.stream}.{self.typing}.{self.epoch}"


def parse_pos(text: str) -> Pos:
    """Raises UnknownPos: whatever is no token of ours was given by nobody we know."""
    match = _POS.fullmatch(text)
    if match is None:
        raise UnknownPos
    return Pos(*(int(part) for part in match.groups()))


@dataclass(frozen=True, slots=True)
class Sent:
    """What was last sent of a room. `seen`, `receipts` and `account_data` are stream positions, LIVE,
    or None for never; `members` are users whose member events were sent lazily, oldest first."""

    seen: int
    membership: str
    is_dm: bool = False
    timeline_limit: int = 0
    required: Required = frozenset()
    members: tuple[str, ...] = ()
    receipts: int | None = None
    account_data: int | None = None

    def left_behind(self, since: int) -> Sent:
        """The same once the room is in no window: sent as far as the stream was read before."""
        return replace(
            self,
            seen=since if self.seen == LIVE else self.seen,
            receipts=since if self.receipts == LIVE else self.receipts,
            account_data=since if self.account_data == LIVE else self.account_data,
        )


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """The connection as it was at a position; `number` None when it is new."""

    number: int | None = None
    request: bytes = b""
    extensions: frozenset[str] = frozenset()
    rooms: Mapping[str, Sent] = field(default_factory=dict)
    vocabulary: tuple[Pattern, ...] = ()


class Connections:
    """Loads and stores connections."""

    def __init__(self, db: Database, clock: Callable[[], int]) -> None:
        self._db = db
        self._clock = clock

    async def load(self, user_id: str, device_id: str, conn_id: str, pos: Pos) -> ConnectionState:
        """The connection at a position; raises UnknownPos."""
        row = await storage.connection(self._db, user_id, device_id, conn_id)
        if row is None:
            raise UnknownPos
        position = await storage.position(self._db, user_id, row.connection, pos.position)
        if position is None:
            raise UnknownPos
        if self._clock() - row.used_ts > TOUCH_MS:
            await storage.touch(self._db, user_id, row.connection, self._clock())
        vocabulary = tuple(_pattern(p) for p in orjson.loads(row.patterns))
        sent = await storage.rooms(self._db, user_id, row.connection, pos.position)
        return ConnectionState(
            row.connection,
            position.request,
            frozenset(position.extensions),
            {room_id: _decode(data, vocabulary) for room_id, data in sent.items()},
            vocabulary,
        )

    async def store(
        self,
        user_id: str,
        device_id: str,
        request: SlidingRequest,
        before: ConnectionState,
        pos: Pos | None,
        rooms: Mapping[str, Sent],
    ) -> int:
        """The position of what follows `pos` (None: of a new connection): a new one when anything is
        other than before. Raises UnknownPos when `pos` has been given up meanwhile."""
        changed = {room_id: sent for room_id, sent in rooms.items() if before.rooms.get(room_id) != sent}
        extensions = frozenset(request.extensions)
        if (
            pos is not None
            and not changed
            and (request.digest, extensions) == (before.request, before.extensions)
        ):
            return pos.position
        row = PositionRow(request.digest, tuple(sorted(extensions)))
        device = (user_id, device_id, request.conn_id)

        async def work(db: Transaction) -> int:
            number, vocabulary = await self._begin(db, device, pos)
            numbers = {pattern: n for n, pattern in enumerate(vocabulary)}
            encoded = {room_id: _encode(sent, numbers) for room_id, sent in changed.items()}
            patterns = orjson.dumps([tuple(pattern) for pattern in numbers])
            if len(numbers) > MAX_VOCABULARY or len(patterns) > MAX_VOCABULARY_BYTES:
                raise UnknownPos
            return await storage.add_position(db, user_id, number, row, encoded, patterns, self._clock())

        return await self._db.run(work)

    async def _begin(
        self, db: Transaction, device: tuple[str, str, str], pos: Pos | None
    ) -> tuple[int, list[Pattern]]:
        """The connection, ready for the position after `pos`, and its vocabulary."""
        if pos is None:
            number = await storage.create(db, *device, self._clock())
            surplus = await storage.names_beyond(db, *device[:2], MAX_CONNECTIONS)
            await storage.drop(db, *device[:2], surplus)
            return number, []
        row = await storage.connection(db, *device, lock=True)
        if row is None or await storage.position(db, device[0], row.connection, pos.position) is None:
            raise UnknownPos
        await storage.settle(db, device[0], row.connection, pos.position)
        return row.connection, [_pattern(p) for p in orjson.loads(row.patterns)]


def _pattern(value: Any) -> Pattern:
    type_, state_key, but = value
    return Pattern(type_, state_key, tuple((t, k) for t, k in but))


def _encode(sent: Sent, numbers: dict[Pattern, int]) -> bytes:
    """Compact JSON; new patterns are added to `numbers`."""
    patterns = [numbers.setdefault(p, len(numbers)) for p in sorted(sent.required, key=repr)]
    return orjson.dumps(
        [
            sent.seen, sent.membership, sent.is_dm, sent.timeline_limit, patterns, sent.members,
            sent.receipts, sent.account_data,
        ]
    )  # fmt: skip


def _decode(data: bytes, vocabulary: tuple[Pattern, ...]) -> Sent:
    seen, membership, is_dm, limit, patterns, members, receipts, account_data = orjson.loads(data)
    required = frozenset(vocabulary[n] for n in patterns)
    return Sent(seen, membership, is_dm, limit, required, tuple(members), receipts, account_data)
