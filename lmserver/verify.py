"""`lmserver verify`: prove every room from its stored bytes, and say what is wrong where."""

from __future__ import annotations

import asyncio
import sys
import time

from lmserver.config import Config, load_signing_key
from lmserver.rooms.verifying import Verification
from lmserver.server import open_database


def run(config: Config) -> int:
    """0 when everything holds, 1 when anything is wrong."""
    return asyncio.run(_verify(config))


async def _verify(config: Config) -> int:
    key = load_signing_key(config.signing_key_path, config.server_name)
    started = time.monotonic()
    rooms = events = entries = wrong = 0
    async with open_database(config, _progress, beside=True) as db:
        verification = Verification(db, key.server_name, {key.key_id: key.verify_key})
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
