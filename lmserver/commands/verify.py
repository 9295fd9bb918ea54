"""`lmserver verify`: prove every room from its stored bytes, and say what is wrong where."""

from __future__ import annotations

import asyncio
import sys
import time

from lmserver import own_keys
from lmserver.config import Config
from lmserver.rooms.verifying import Verification
from lmserver.server import open_database


def run(config: Config) -> int:
    """0 when everything holds, 1 when anything is wrong."""
    return asyncio.run(_verify(config))


async def _verify(config: Config) -> int:
    keys = own_keys.load(config.signing_key_path, config.server_name)
    ours = {key_id: old.key for key_id, old in keys.old.items()}
    ours[keys.signing.key_id] = keys.signing.verify_key
    started = time.monotonic()
    rooms = events = entries = wrong = 0
    async with open_database(config, _progress, beside=True) as db:
        verification = Verification(db.patient(), config.server_name, ours)
        async for report in verification.rooms(_progress):
            rooms += 1
            events += report.events
            entries += report.state_entries
            wrong += len(report.problems)
            for problem in report.problems:
                print(f"WRONG {problem}", flush=True)
    seconds = time.monotonic() - started
    verdict = "all hold" if not wrong else f"{wrong} wrong"
    print(f"{rooms} rooms, {events} events, {entries} state entries: {verdict} ({seconds:.1f} s)")
    return 1 if wrong else 0


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
