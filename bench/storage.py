"""What grows: database bytes for each message and each change of state, and sends in a large room."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from hashlib import sha256
from statistics import median
from urllib.parse import quote, unquote

import asyncpg

from bench.http import Http
from bench.local_send import Room, Sends
from bench.servers import Measured

LARGE, SMALL = 5_000, 5
CHANGES = 1_000
AT_ONCE = 20


@dataclass(frozen=True)
class Growth:
    """Bytes of all tables and indexes for each event, and of the event itself."""

    bytes_each: float
    own_bytes: float

    @property
    def ratio(self) -> float:
        return self.bytes_each / self.own_bytes


@dataclass(frozen=True)
class LargeRoom:
    """The same senders in a room of SMALL and of LARGE members, in turns."""

    small: list[Sends]
    large: list[Sends]

    @property
    def kept(self) -> float:
        return median([s.per_second for s in self.large]) / median([s.per_second for s in self.small])


async def _database_bytes(db: asyncpg.Connection) -> int:
    await db.execute("VACUUM")
    total: int = await db.fetchval(
        "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    return total


async def _grown(db: asyncpg.Connection, type_: str, before: int, events_before: int) -> Growth:
    events = await db.fetchval("SELECT count(*) FROM events") - events_before
    own = await db.fetchval(
        "SELECT avg(length(pdu)) FROM (SELECT pdu FROM events WHERE type = $1 ORDER BY received_ts DESC LIMIT $2) AS e",
        type_,
        events,
    )
    return Growth((await _database_bytes(db) - before) / events, float(own))


async def messages(dsn: str, room: Room, clients: int, seconds: float) -> Growth:
    """Plain messages, found by search, each with its transaction."""
    db = await asyncpg.connect(dsn)
    try:
        before, events = await _database_bytes(db), await db.fetchval("SELECT count(*) FROM events")
        await room.send(clients, seconds)
        return await _grown(db, "m.room.message", before, events)
    finally:
        await db.close()


async def changes(dsn: str, room: Room) -> Growth:
    """CHANGES changes of one state entry: each keeps the one before."""
    db = await asyncpg.connect(dsn)
    try:
        before, events = await _database_bytes(db), await db.fetchval("SELECT count(*) FROM events")
        for number in range(CHANGES):
            path = f"/rooms/{room.room}/state/org.lmserver.bench/"
            await room.call(
                room.tokens[0], "PUT", path, {"text": f"change {number} of some length, as apps make them"}
            )
        return await _grown(db, "org.lmserver.bench", before, events)
    finally:
        await db.close()


async def _users(dsn: str, server: Measured, count: int) -> list[str]:
    """Access tokens of users that are put in the database: to hash thousands of passwords takes minutes."""
    tag = secrets.token_hex(3)
    users = [f"@many{tag}{number}:{server.name}" for number in range(count)]
    tokens = [secrets.token_urlsafe(32) for _ in users]
    db = await asyncpg.connect(dsn)
    try:
        await db.execute(
            "INSERT INTO accounts (user_id, password_hash, created_ts) SELECT unnest($1::text[]), '', 0",
            users,
        )
        await db.execute("INSERT INTO devices (user_id, device_id) SELECT unnest($1::text[]), 'D'", users)
        await db.execute(
            "INSERT INTO access_tokens (token_hash, user_id, device_id, created_ts)"
            " SELECT t, u, 'D', 0 FROM unnest($1::bytea[], $2::text[]) AS n (t, u)",
            [sha256(token.encode()).digest() for token in tokens],
            users,
        )
    finally:
        await db.close()
    return tokens


async def _room(server: Measured, http: Http, tokens: list[str]) -> Room:
    room = Room(server, http)
    room.tokens = tokens
    created = await room.call(tokens[0], "POST", "/createRoom", {"preset": "public_chat"})
    room.room = quote(created["room_id"])
    for start in range(1, len(tokens), AT_ONCE):
        joining = tokens[start : start + AT_ONCE]
        await asyncio.gather(*(room.call(token, "POST", f"/join/{room.room}", {}) for token in joining))
    joined = await room.call(tokens[0], "GET", f"/rooms/{room.room}/joined_members", None)
    if len(joined["joined"]) != len(tokens):
        raise RuntimeError(f"{unquote(room.room)} has {len(joined['joined'])} members, not {len(tokens)}")
    return room


async def large_room(dsn: str, server: Measured, repetitions: int, seconds: float) -> LargeRoom:
    found = LargeRoom([], [])
    async with Http() as http:
        tokens = await _users(dsn, server, LARGE)
        small = await _room(server, http, tokens[:SMALL])
        large = await _room(server, http, tokens)
        for room in (small, large):
            await room.send(SMALL, 1.0)
        for _ in range(repetitions):
            found.small.append(await small.send(SMALL, seconds))
            found.large.append(await large.send(SMALL, seconds))
    return found
