"""`lmserver evidence`: what rooms' hubs did that the protocol forbids, with the bytes that prove it."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime

from lmserver.config import Config
from lmserver.rooms.evidence import KINDS, case_as_json
from lmserver.server import open_database
from lmserver.storage import evidence
from lmserver.storage.evidence import StoredEvidence


def run(config: Config, room_id: str | None, *, as_json: bool) -> int:
    """Print every case, oldest first in each room; with `as_json` one JSON object for each line."""
    return asyncio.run(_list(config, room_id, as_json))


async def _list(config: Config, room_id: str | None, as_json: bool) -> int:
    found = 0
    async with open_database(config, lambda text: print(text, file=sys.stderr), beside=True) as db:
        for room in await evidence.rooms(db) if room_id is None else [room_id]:
            for case in await evidence.of_room(db, room):
                found += 1
                print(json.dumps(case_as_json(case)) if as_json else _text(case), flush=True)
    if not found and not as_json:
        print("Nothing is held against any hub.")
    return 0


def _text(case: StoredEvidence) -> str:
    when = datetime.fromtimestamp(case.created_ts / 1000, UTC).isoformat(timespec="seconds")
    what = KINDS.get(case.kind, case.kind)
    hub = case.hub_server or "(unknown hub)"
    return f"{when} {case.room_id} {hub} {what} [{case.kind}: {case.detail}] {case.event_id}"
