"""Which thread an event is in (CS API §Threading, §Threaded read receipts)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from lmserver.protocol import ids
from lmserver.storage import room_log
from lmserver.storage.database import Executor

MAIN: Final = "main"
"""The thread of what is in none, thread roots among it."""
MAX_HOPS: Final = 3
THREAD: Final = "m.thread"
BUNDLED: Final = ("m.replace", "m.reference", THREAD)
"""Relations that are told with the event they are about (§Aggregations of child events)."""


def relation(content: Mapping[str, Any]) -> tuple[str, str] | None:
    """(relation type, parent's ID) of a content, None where it relates to nothing."""
    relates = content.get("m.relates_to")
    if not isinstance(relates, dict):
        return None
    type_, parent = relates.get("rel_type"), relates.get("event_id")
    if not isinstance(type_, str) or not isinstance(parent, str) or not ids.is_event_id(parent):
        return None
    return type_, parent


async def thread_of(db: Executor, room_id: str, content: Mapping[str, Any]) -> str:
    """The thread's root, or MAIN; relations are followed for MAX_HOPS."""
    for _ in range(MAX_HOPS):
        found = relation(content)
        if found is None:
            return MAIN
        type_, parent = found
        if type_ == THREAD:
            return parent
        stored = await room_log.event(db, parent, room_id)
        if stored is None:
            return MAIN
        content = orjson.loads(stored.pdu)["content"]
    return MAIN
