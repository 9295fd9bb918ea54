"""The hub's signatures of a whole turn, on two threads: signing is half of what a turn costs."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from lmserver.protocol.signatures import LaterSignatures

MIN_SHARED: Final = 8
"""Fewer are signed sooner than a thread has been woken."""


class Signing:
    """Makes signatures that wait; libsodium lets other threads run meanwhile."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sign")

    async def finish(self, later: LaterSignatures) -> None:
        """Make them all."""
        if len(later) < MIN_SHARED:
            later.finish(0, len(later))
            return
        half = len(later) // 2
        others = asyncio.get_running_loop().run_in_executor(self._pool, later.finish, 0, half)
        later.finish(half, len(later))
        await others

    def close(self) -> None:
        self._pool.shutdown(wait=False)
