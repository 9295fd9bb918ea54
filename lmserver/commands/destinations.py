"""`lmserver destinations` and `skip-transaction`: servers that take nothing, and what an operator may do.

The draft lets no transaction follow one that was not taken, so a server that refuses one for ever
gets nothing more. Whether to give that transaction up is a human's decision.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from lmserver.config import Config
from lmserver.federation_client.transaction_builder import Contents
from lmserver.server import open_database
from lmserver.storage import destinations, lpdus, outbound
from lmserver.storage.database import Connection, Database
from lmserver.storage.outbound import Settlement

MAX_SHOWN = 1000
GIVEN_UP = "the hub refuses the transaction; given up by the operator"


def show(config: Config) -> int:
    """1 when there are any."""

    async def work(db: Database) -> int:
        found = await destinations.failing(db, MAX_SHOWN)
        for server in found:
            waiting = await outbound.transaction(db, server.destination)
            print(
                f"{server.destination} since {_time(server.failing_since)}, tried {server.failures} times,"
                f" next {_time(server.retry_at)}: {server.last_failure}"
                f" [transaction {'none' if waiting is None else waiting.txn_id}]"
            )
        _tell(f"{len(found)} servers take nothing")
        return 1 if found else 0

    return _with_database(config, work)


def skip(config: Config, server: str) -> int:
    """Give up the transaction that a server does not take; 1 when there is none."""

    async def work(db: Database) -> int:
        events = await db.run(lambda connection: skip_transaction(connection, server))
        if events is None:
            _tell(f"nothing is being sent to {server}")
            return 1
        print(f"given up a transaction with {events} events; {server} is tried again with the next")
        return 0

    return _with_database(config, work)


async def skip_transaction(db: Connection, server: str) -> int | None:
    """Forget the stored transaction as if it had been taken; how many events it had. The server's own
    gap filling may still bring it the room events; our users' events in it are refused to them."""
    fence = await destinations.seize(db, server)
    stored = await outbound.transaction(db, server)
    if fence is None or stored is None:
        return None
    contents = Contents.decode(stored.contents)
    settlement = Settlement(contents.ranges, contents.lpdus, contents.edus, 0, 0)
    await outbound.settle(db, server, fence, stored.txn_id, settlement, 0)
    for room_id, lpdu_id in contents.lpdus:
        await lpdus.refused(db, room_id, lpdu_id, GIVEN_UP)
    await destinations.succeeded(db, server)
    if stored.body is None:
        return len(await outbound.events_in(db, contents.spans))
    return stored.body.count(b'"origin_server_ts":')


def _with_database(config: Config, work: Callable[[Database], Awaitable[int]]) -> int:
    async def run() -> int:
        async with open_database(config, _tell, migrate=True, beside=True) as db:
            return await work(db)

    return asyncio.run(run())


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
