"""`lmserver held-rooms`, `release-room` and `mark-restored`: what an operator decides after a restore."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence

from lmserver.config import Config
from lmserver.server import open_database
from lmserver.storage import holds
from lmserver.storage.database import Database
from lmserver.storage.restore_guard import RestoreGuard


def show(config: Config) -> int:
    """1 when there are any."""

    async def work(db: Database) -> int:
        rooms = await holds.held(db)
        for room in rooms:
            print(f"{room.room_id} {room.hold}")
        _tell(f"{len(rooms)} rooms held")
        return 1 if rooms else 0

    return _with_database(config, work)


def release(config: Config, room_ids: Sequence[str]) -> int:
    """These rooms, or all of them; 1 when one named was not held."""

    async def work(db: Database) -> int:
        missed = 0
        for room_id in room_ids or [room.room_id for room in await holds.held(db)]:
            if await holds.release(db, room_id, decided=True):
                print(f"{room_id} released")
            else:
                missed += 1
                _tell(f"{room_id} is not held")
        return 1 if missed else 0

    return _with_database(config, work)


def mark_restored(config: Config) -> int:
    """Hold what a restore would have held."""

    async def work(db: Database) -> int:
        guard = RestoreGuard(db, config.data_dir, config.server_name)
        await guard.mark_restored("the operator says so")
        print(f"{len(await holds.held(db))} rooms held")
        return 0

    return _with_database(config, work)


def _with_database(config: Config, work: Callable[[Database], Awaitable[int]]) -> int:
    async def run() -> int:
        async with open_database(config, _tell, migrate=True, beside=True) as db:
            return await work(db)

    return asyncio.run(run())


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
