"""`lmserver destinations`, `skip-transaction` and `destination`: other servers, and what an operator may do.

The draft lets no transaction follow one that was not taken, so a server that refuses one for ever
gets nothing more. Whether to give that transaction up is a human's decision.
"""

from __future__ import annotations

from lmserver.commands.shell import BY, MAX_SHOWN, failed, tell, when, with_database
from lmserver.composition import clock_ms
from lmserver.config import Config
from lmserver.federation_client.transaction_builder import Contents
from lmserver.protocol import ids
from lmserver.storage import blocked_servers, destination_list, destinations, lpdus, outbound
from lmserver.storage.database import Connection, Database
from lmserver.storage.destination_list import DestinationQuery
from lmserver.storage.list_page import ListPage
from lmserver.storage.outbound import Settlement

GIVEN_UP = "the hub refuses the transaction; given up by the operator"


def show(config: Config) -> int:
    """1 when there are any."""

    async def work(db: Database) -> int:
        found = await destinations.failing(db, MAX_SHOWN)
        for server in found:
            waiting = await outbound.transaction(db, server.destination)
            print(
                f"{server.destination} since {when(server.failing_since)}, tried {server.failures} times,"
                f" next {when(server.retry_at)}: {server.last_failure}"
                f" [transaction {'none' if waiting is None else waiting.txn_id}]"
            )
        tell(f"{len(found)} servers take nothing")
        return 1 if found else 0

    return with_database(config, work)


def skip(config: Config, server: str) -> int:
    """Give up the transaction that a server does not take; 1 when there is none."""

    async def work(db: Database) -> int:
        events = await db.run(lambda connection: skip_transaction(connection, server))
        if events is None:
            tell(f"nothing is being sent to {server}")
            return 1
        print(f"given up a transaction with {events} events; {server} is tried again with the next")
        return 0

    return with_database(config, work)


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


def run(config: Config, action: str, which: str | None, reason: str) -> int:
    """`lmserver destination`; 1 when it cannot be done."""

    async def work(db: Database) -> int:
        if action == "list":
            return await _list(db.patient(), which)
        if action == "blocked":
            return await _list_blocked(db, config)
        server = which or ""
        if not ids.is_server_name(server):
            return failed(f"{server} is no server name")
        match action:
            case "retry":
                if not await destination_list.exists(db, server):
                    return failed(f"nothing was ever sent to {server}")
                await destinations.alive(db, server)
                print(f"{server} is tried within seconds")
            case "block":
                await blocked_servers.add(db, server, BY, reason, clock_ms())
                print(f"{server} is blocked")
            case _:
                if not await blocked_servers.remove(db, server):
                    return failed(f"{server} is not blocked, or by the configuration")
                await destinations.alive(db, server)
                print(f"{server} is not blocked any more")
        return 0

    return with_database(config, work)


async def _list(db: Database, term: str | None) -> int:
    query = DestinationQuery(term)
    part = ListPage("failing_since", descending=True, limit=MAX_SHOWN)
    for d in await destination_list.page(db, query, part):
        state = f"fails since {when(d.failing_since)}" if d.failing_since else "takes what it gets"
        print(
            f"{d.destination} {state}; waiting: {d.events} events of {d.rooms} rooms, {d.messages} messages,"
            f" {d.edus} others"
        )
    tell(f"{await destination_list.count(db, query)} servers")
    return 0


async def _list_blocked(db: Database, config: Config) -> int:
    for name in sorted(config.federation.blocked_servers):
        print(f"{name} by the configuration")
    for blocked in await blocked_servers.listed(db, MAX_SHOWN):
        print(f"{blocked.server} by {blocked.blocked_by}, {when(blocked.created_ts)}: {blocked.reason}")
    return 0
