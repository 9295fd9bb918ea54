"""`lmserver key-conflicts`: key IDs of other servers that were published with two keys."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

from lmserver.config import Config
from lmserver.protocol import unpadded_base64
from lmserver.server import open_database
from lmserver.storage import key_conflicts
from lmserver.storage.key_conflicts import KeyConflict

MOST = 1000


def run(config: Config) -> int:
    """Print the newest, a line for each; 0 also when there are some."""
    return asyncio.run(_list(config))


async def _list(config: Config) -> int:
    async with open_database(config, lambda text: print(text, file=sys.stderr), beside=True) as db:
        found = await key_conflicts.all_conflicts(db, MOST)
    for conflict in found:
        print(_text(conflict))
    if not found:
        print("No key ID was ever published with another key.")
    return 0


def _text(conflict: KeyConflict) -> str:
    first, last = (
        datetime.fromtimestamp(ts / 1000, UTC).isoformat(timespec="seconds")
        for ts in (conflict.first_seen, conflict.last_seen)
    )
    key = unpadded_base64.encode(conflict.key)
    return (
        f"{last} {conflict.server} {conflict.key_id}: not used: {key}"
        f" told by {conflict.told_by} {conflict.times} times since {first}"
    )
