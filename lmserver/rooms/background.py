"""Work that goes on beside the requests, found by reading the database again and again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from lmserver.storage.database import DatabaseUnavailable

log = structlog.get_logger(__name__)


async def repeat(name: str, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    """Do `work` about every `seconds` until cancelled; no failure ends it."""
    while True:
        try:
            await work()
        except DatabaseUnavailable:
            log.warning("background_work_waits_for_the_database", work=name)
        except Exception as error:  # what everything falls back on must not end
            log.error("background_work_failed", work=name, exc_info=error)
        await asyncio.sleep(seconds * (0.75 + random.random() / 2))
