"""What commands on the database share: opening it, and speaking to whoever called them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from lmserver.config import Config
from lmserver.server import open_database
from lmserver.storage.database import Database

BY: Final = "the command line"
MAX_SHOWN: Final = 1000


def with_database(config: Config, work: Callable[[Database], Awaitable[int]]) -> int:
    """Run `work` on the database, beside a server or without one; its exit status."""

    async def run() -> int:
        async with open_database(config, tell, migrate=True, beside=True) as db:
            return await work(db)

    return asyncio.run(run())


def when(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def tell(text: str) -> None:
    """To people, beside the output."""
    print(text, file=sys.stderr, flush=True)


def failed(text: str) -> int:
    """Say what went wrong; the exit status."""
    tell(text)
    return 1
