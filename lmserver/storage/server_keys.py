"""Every signing key of another server that we ever saw: old events must verify for ever.

A key ID keeps the bytes that it was first seen with; what a newer document says changes only how long it
counts. Whole documents are kept once per set of key IDs, to be served as a notary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmserver.storage.database import Executor

MAX_KEYS_PER_SERVER = 1000
MAX_DOCUMENTS_PER_SERVER = 20


@dataclass(frozen=True, slots=True)
class StoredKey:
    """`expired_ts` is set for keys that the server calls old; it then counts instead of the others.

    `direct`: the server itself told us, and `valid_until_ts` is what it said. `told_until` is until
    when a notary says that the key is good.
    """

    key_id: str
    key: bytes
    valid_until_ts: int
    expired_ts: int | None
    direct: bool = True
    told_until: int = 0


@dataclass(frozen=True, slots=True)
class KeyServer:
    """What a server's last document said besides its keys."""

    server: str
    linearized: bool
    fetched_ts: int


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """`key_set` names the set of key IDs in the document, `document` is its canonical bytes."""

    server: str
    key_set: str
    document: bytes
    valid_until_ts: int


async def server(db: Executor, name: str) -> KeyServer | None:
    """None for a server whose keys were never fetched from itself."""
    row = await db.fetchrow("SELECT server, linearized, fetched_ts FROM key_servers WHERE server = $1", name)
    return None if row is None else KeyServer(row["server"], row["linearized"], row["fetched_ts"])


async def linearized(db: Executor, names: Iterable[str]) -> list[str]:
    """Of these servers the ones whose last document says `m.linearized`."""
    rows = await db.fetch(
        "SELECT server FROM key_servers WHERE server = ANY($1::text[]) AND linearized ORDER BY server",
        list(names),
    )
    return [r["server"] for r in rows]


async def keys(db: Executor, name: str) -> list[StoredKey]:
    """Every key of the server, current and old."""
    rows = await db.fetch(
        "SELECT key_id, key, valid_until_ts, expired_ts, direct, told_until FROM server_keys"
        " WHERE server = $1 ORDER BY key_id",
        name,
    )
    return [StoredKey(*r.values()) for r in rows]


async def store_server(db: Executor, server_: KeyServer) -> None:
    """Remember the last document's flags; an older fetch never overwrites a newer one."""
    await db.execute(
        "INSERT INTO key_servers (server, linearized, fetched_ts) VALUES ($1, $2, $3)"
        " ON CONFLICT (server) DO UPDATE"
        " SET linearized = excluded.linearized, fetched_ts = excluded.fetched_ts"
        " WHERE key_servers.fetched_ts <= excluded.fetched_ts",
        server_.server,
        server_.linearized,
        server_.fetched_ts,
    )


async def store_keys(db: Executor, name: str, found: Sequence[StoredKey], now: int) -> None:
    """Add or renew keys. An ID known with other bytes is left as it is, unless only a notary had told
    us of it and now the server itself does. A notary makes a key that is known good for longer at most."""
    await db.execute(
        "INSERT INTO server_keys AS k"
        " (server, key_id, key, valid_until_ts, expired_ts, direct, told_until, first_seen)"
        " SELECT $1, f.*, $8 FROM unnest($2::text[], $3::bytea[], $4::bigint[], $5::bigint[], $6::bool[],"
        " $7::bigint[]) AS f (key_id, key, valid_until_ts, expired_ts, direct, told_until)"
        " WHERE (SELECT count(*) FROM server_keys n WHERE n.server = $1) < $9"
        " OR EXISTS (SELECT FROM server_keys n WHERE n.server = $1 AND n.key_id = f.key_id)"
        " ORDER BY f.key_id ON CONFLICT (server, key_id) DO UPDATE SET key = excluded.key,"
        " valid_until_ts = CASE WHEN excluded.direct THEN excluded.valid_until_ts ELSE k.valid_until_ts END,"
        " expired_ts = CASE WHEN k.direct > excluded.direct THEN k.expired_ts ELSE excluded.expired_ts END,"
        " told_until = CASE WHEN excluded.direct THEN 0 ELSE greatest(k.told_until, excluded.told_until) END,"
        " direct = k.direct OR excluded.direct"
        " WHERE k.key = excluded.key OR (excluded.direct AND NOT k.direct)",
        name,
        [k.key_id for k in found],
        [k.key for k in found],
        [k.valid_until_ts for k in found],
        [k.expired_ts for k in found],
        [k.direct for k in found],
        [k.told_until for k in found],
        now,
        MAX_KEYS_PER_SERVER,
    )


async def end_unlisted(db: Executor, name: str, listed: Sequence[str], until: int) -> None:
    """Keys that the server no longer lists stop counting for anything newer than `until`."""
    await db.execute(
        "UPDATE server_keys"
        " SET valid_until_ts = least(valid_until_ts, $3), told_until = least(told_until, $3)"
        " WHERE server = $1 AND key_id <> ALL ($2::text[]) AND expired_ts IS NULL"
        " AND greatest(valid_until_ts, told_until) > $3",
        name,
        list(listed),
        until,
    )


async def store_document(db: Executor, document: StoredDocument, now: int) -> None:
    """Keep the newest document of each set of key IDs, and of those the newest few."""
    await db.execute(
        "INSERT INTO server_key_documents (server, key_set, document, valid_until_ts, fetched_ts)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (server, key_set) DO UPDATE"
        " SET document = excluded.document, valid_until_ts = excluded.valid_until_ts,"
        " fetched_ts = excluded.fetched_ts",
        document.server,
        document.key_set,
        document.document,
        document.valid_until_ts,
        now,
    )
    await db.execute(
        "DELETE FROM server_key_documents WHERE server = $1 AND key_set NOT IN (SELECT key_set"
        " FROM server_key_documents WHERE server = $1 ORDER BY fetched_ts DESC, key_set LIMIT $2)",
        document.server,
        MAX_DOCUMENTS_PER_SERVER,
    )


async def newest_documents(db: Executor, names: Sequence[str], limit: int) -> list[StoredDocument]:
    """Kept documents of these servers: the newest of each first, then the second newest of each ..."""
    rows = await db.fetch(
        "SELECT server, key_set, document, valid_until_ts FROM (SELECT *, row_number()"
        " OVER (PARTITION BY server ORDER BY fetched_ts DESC, key_set) AS rank FROM server_key_documents"
        " WHERE server = ANY ($1::text[])) AS d ORDER BY rank, server LIMIT $2",
        list(names),
        limit,
    )
    return [
        StoredDocument(r["server"], r["key_set"], bytes(r["document"]), r["valid_until_ts"]) for r in rows
    ]


async def count(db: Executor) -> int:
    """Servers that we have keys of."""
    found: int = await db.fetchval("SELECT count(*) FROM key_servers")
    return found
