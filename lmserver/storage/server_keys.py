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
    """`expired_ts` is set for keys that the server calls old; it then counts instead of valid_until_ts."""

    key_id: str
    key: bytes
    valid_until_ts: int
    expired_ts: int | None


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
        "SELECT key_id, key, valid_until_ts, expired_ts FROM server_keys WHERE server = $1 ORDER BY key_id",
        name,
    )
    return [StoredKey(r["key_id"], bytes(r["key"]), r["valid_until_ts"], r["expired_ts"]) for r in rows]


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


async def store_keys(db: Executor, name: str, found: Sequence[StoredKey], now: int) -> set[str]:
    """Add or renew keys; the IDs that were taken. An ID known with other bytes is left as it is."""
    rows = await db.fetch(
        "INSERT INTO server_keys (server, key_id, key, valid_until_ts, expired_ts, first_seen)"
        " SELECT $1, f.key_id, f.key, f.valid_until_ts, f.expired_ts, $6"
        " FROM unnest($2::text[], $3::bytea[], $4::bigint[], $5::bigint[])"
        " AS f (key_id, key, valid_until_ts, expired_ts)"
        " WHERE (SELECT count(*) FROM server_keys k WHERE k.server = $1) < $7"
        " OR EXISTS (SELECT FROM server_keys k WHERE k.server = $1 AND k.key_id = f.key_id)"
        " ORDER BY f.key_id"
        " ON CONFLICT (server, key_id) DO UPDATE"
        " SET valid_until_ts = excluded.valid_until_ts, expired_ts = excluded.expired_ts"
        " WHERE server_keys.key = excluded.key RETURNING key_id",
        name,
        [k.key_id for k in found],
        [k.key for k in found],
        [k.valid_until_ts for k in found],
        [k.expired_ts for k in found],
        now,
        MAX_KEYS_PER_SERVER,
    )
    return {r["key_id"] for r in rows}


async def add_keys(db: Executor, name: str, found: Sequence[StoredKey], now: int) -> None:
    """Add keys told by a third party: what is known already is not touched."""
    await db.execute(
        "INSERT INTO server_keys (server, key_id, key, valid_until_ts, expired_ts, first_seen)"
        " SELECT $1, f.key_id, f.key, f.valid_until_ts, f.expired_ts, $6"
        " FROM unnest($2::text[], $3::bytea[], $4::bigint[], $5::bigint[])"
        " AS f (key_id, key, valid_until_ts, expired_ts)"
        " WHERE (SELECT count(*) FROM server_keys k WHERE k.server = $1) < $7"
        " ORDER BY f.key_id ON CONFLICT (server, key_id) DO NOTHING",
        name,
        [k.key_id for k in found],
        [k.key for k in found],
        [k.valid_until_ts for k in found],
        [k.expired_ts for k in found],
        now,
        MAX_KEYS_PER_SERVER,
    )


async def end_unlisted(db: Executor, name: str, listed: Sequence[str], until: int) -> None:
    """Keys that the server no longer lists stop counting for anything newer than `until`."""
    await db.execute(
        "UPDATE server_keys SET valid_until_ts = $3"
        " WHERE server = $1 AND key_id <> ALL ($2::text[]) AND expired_ts IS NULL AND valid_until_ts > $3",
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
