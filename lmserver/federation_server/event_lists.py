"""Events as other servers get them, one by one and as a room's state.

A state may have any number of entries, and whoever may set state sets them: it is read, and sent, in
pieces, so that an answer costs little memory and holds nobody up (attack R14).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Final

import orjson

from lmserver.protocol import canonical_json
from lmserver.protocol.redaction import redact
from lmserver.protocol.room_versions import RoomVersion
from lmserver.storage import room_log, room_state
from lmserver.storage.database import Executor
from lmserver.storage.room_log import StoredEvent
from lmserver.web.endpoint import Streamed

PIECE: Final = 250
"""Events read at a time."""
Show = Callable[[StoredEvent], bytes]


def wire(stored: StoredEvent, version: RoomVersion, *, hide: bool = False) -> bytes:
    """An event as other servers get it: the bytes as signed, or the redacted copy."""
    if stored.redacted_by is None and not hide:
        return stored.pdu
    return canonical_json.encode(redact(canonical_json.parse_object(stored.pdu), version))


def wire_list(events: Iterable[StoredEvent], version: RoomVersion) -> bytes:
    return b"[" + b",".join(wire(event, version) for event in events) + b"]"


async def state_pieces(
    db: Executor, room_id: str, position: int
) -> AsyncGenerator[Sequence[StoredEvent], None]:
    """The state before an event of a room whose hub we are, in list order."""
    after = (-1, "")
    while True:
        piece = await room_state.state_after(db, room_id, position, after, PIECE)
        if piece:
            yield [stored for _, stored in piece]
        if len(piece) < PIECE:
            return
        after = piece[-1][0], piece[-1][1].event_id


async def chain_ids(db: Executor, room_id: str, cited: set[str]) -> list[str]:
    """The auth events that were cited, and what those cite, recursively, each once, in list order."""
    found: dict[str, int] = {}
    wanted = cited
    while wanted:
        following: set[str] = set()
        for some in _in_pieces(sorted(wanted)):
            events = await room_log.events_by_id(db, room_id, some)
            found.update((e.event_id, -1 if e.position is None else e.position) for e in events)
            following |= cited_by(events)
        wanted = following - found.keys()
    return sorted(found, key=lambda event_id: (found[event_id], event_id))


def cited_by(events: Iterable[StoredEvent]) -> set[str]:
    """The auth events of these events."""
    return {event_id for event in events for event_id in orjson.loads(event.pdu)["auth_events"]}


def state_answer(
    db: Executor, room_id: str, position: int, beginning: bytes, name: str, show: Show, show_chain: Show
) -> Streamed:
    """A JSON object: `beginning`, which ends with a comma or is the bracket alone, the state before
    `position` under `name`, and its `auth_chain`."""

    async def body() -> AsyncGenerator[bytes, None]:
        yield beginning + b'"' + name.encode() + b'":['
        cited: set[str] = set()
        comma = b""
        async for piece in state_pieces(db, room_id, position):
            cited |= cited_by(piece)
            yield comma + b",".join(map(show, piece))
            comma = b","
        yield b'],"auth_chain":['
        comma = b""
        for some in _in_pieces(await chain_ids(db, room_id, cited)):
            events = {e.event_id: e for e in await room_log.events_by_id(db, room_id, some)}
            yield comma + b",".join(show_chain(events[event_id]) for event_id in some)
            comma = b","
        yield b"]}"

    return Streamed(body(), None, {"Content-Type": "application/json"})


def _in_pieces(event_ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (event_ids[start : start + PIECE] for start in range(0, len(event_ids), PIECE))
