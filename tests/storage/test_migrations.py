"""The schema: what the migrations make, forwards and back, and the shape it must keep."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import asyncpg
import pytest
from alembic import command
from alembic.config import Config

from lmserver.storage import migrations
from lmserver.storage.database import Database
from lmserver.storage.schema import dump
from tests.kit.postgres import Cluster

ROOT = Path(__file__).resolve().parent.parent.parent
SCHEMA = ROOT / "lmserver/storage/schema.sql"

# The column a table would be distributed by; every unique index has to contain it.
DISTRIBUTED_BY = {
    "access_tokens": "token_hash",
    "account_data": "user_id",
    "accounts": "user_id",
    "appservice_interests": "service",
    "appservice_invites": "service",
    "appservice_rooms": "service",
    "appservice_transactions": "service",
    "appservice_users": "user_id",
    "backed_up_keys": "user_id",
    "claimed_keys": "user_id",
    "client_transactions": "scope",
    "cross_signing_keys": "user_id",
    "dehydrated_devices": "user_id",
    "departures": "user_id",
    "destinations": "destination",
    "device_keys": "user_id",
    "device_list_changes": "user_id",
    "devices": "user_id",
    "directory_users": "user_id",
    "events": "room_id",
    "erasures": "room_id",
    "evidence": "room_id",
    "external_ids": "subject",
    "fallback_keys": "user_id",
    "filters": "user_id",
    "forgotten_rooms": "user_id",
    "inbound_leases": "origin",
    "inbound_transactions": "origin",
    "interactive_auth_sessions": "session_hash",
    "key_backups": "user_id",
    "key_conflicts": "server",
    "key_servers": "server",
    "key_signatures": "target_user_id",
    "local_media": "media_id",
    "login_tokens": "token_hash",
    "one_time_keys": "user_id",
    "openid_tokens": "token_hash",
    "notice_rooms": "user_id",
    "outbound_edus": "destination",
    "outbound_lpdus": "room_id",
    "outbound_ranges": "destination",
    "outbound_transactions": "destination",
    "outside_memberships": "user_id",
    "outside_rooms": "room_id",
    "profile_fields": "user_id",
    "published_rooms": "room_id",
    "push_rules": "user_id",
    "receipts": "room_id",
    "redactions": "room_id",
    "refresh_tokens": "token_hash",
    "registration_tokens": "token",
    "remote_media": "server",
    "reports": "id",
    "restore_guard": "id",
    "room_aliases": "alias",
    "pushers": "user_id",
    "push_rooms": "room_id",
    "push_queue": "user_id",
    "event_relations": "room_id",
    "threads": "room_id",
    "blocked_rooms": "room_id",
    "blocked_servers": "server",
    "room_purges": "room_id",
    "room_gaps": "room_id",
    "room_state": "room_id",
    "rooms": "room_id",
    "server_key_documents": "server",
    "server_keys": "server",
    "sliding_connections": "user_id",
    "sliding_positions": "user_id",
    "sliding_rooms": "user_id",
    "sso_sessions": "state_hash",
    "to_device_messages": "user_id",
    "to_device_received": "origin",
    "to_device_transactions": "user_id",
    "unread_tallies": "user_id",
    "url_previews": "key",
}


def revisions() -> list[str]:
    names = sorted((ROOT / "migrations/versions").glob("*.py"))
    return [name.name.split("_")[0] for name in names]


def test_revisions_are_numbered_without_a_gap() -> None:
    assert revisions()[-1] == migrations.head()
    assert revisions() == [f"{n:04}" for n in range(1, len(revisions()) + 1)]


async def test_schema_sql_is_what_the_migrations_make(db: Database) -> None:
    assert await dump(db) == SCHEMA.read_text(encoding="utf-8")


async def test_every_unique_index_contains_the_distribution_column(db: Database) -> None:
    rows = await db.fetch("SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'")
    unique = [(r["tablename"], r["indexdef"]) for r in rows if "CREATE UNIQUE" in r["indexdef"]]
    assert len(unique) > 20
    for table, definition in unique:
        if table != "alembic_version":
            columns = re.search(r"\((.*?)\)", definition)
            assert columns is not None
            assert DISTRIBUTED_BY[table] in columns[1], definition


def test_nothing_the_correctness_path_must_not_have() -> None:
    """No LISTEN, advisory lock, trigger or temp table: then other engines can take over."""
    forbidden = re.compile(r"\b(LISTEN|NOTIFY|pg_advisory|CREATE TRIGGER|CREATE TEMP)")
    files = [*(ROOT / "migrations/versions").glob("*.py"), *(ROOT / "lmserver/storage").glob("*.py")]
    assert len(files) > 15
    for path in files:
        code = "\n".join(re.findall(r'"([^"\n]*)"', path.read_text(encoding="utf-8")))
        assert not forbidden.search(code), path


@pytest.fixture
async def empty(cluster: Cluster) -> str:
    name = "lmtest_empty"
    connection = await asyncpg.connect(cluster.admin_dsn)
    await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return cluster.dsn(name)


async def test_two_servers_may_start_at_once_on_an_empty_database(empty: str) -> None:
    assert await migrations.current(empty) is None
    script = "import asyncio, sys; from lmserver.storage import migrations as m; asyncio.run(m.upgrade(sys.argv[1], print))"
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", script, empty) for _ in range(3)]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    assert await migrations.current(empty) == migrations.head()


async def test_a_newer_database_is_refused_with_the_way_out(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    with pytest.raises(migrations.MigrationError, match="newer lmserver"):
        await migrations.upgrade(database_url, lambda text: None)


def _back_to(dsn: str, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations.migrations_folder()))
    config.attributes["dsn"] = dsn
    command.downgrade(config, revision)


async def test_state_outlives_other_indexes_forwards_and_back(database_url: str) -> None:
    """An entry replaced twice, at the edges of what the index of changes holds together."""
    db = await asyncpg.connect(database_url)
    try:
        newest = await _shape(db)
        lives = [("!r:x", "t", "", f"$e{first}", None, first, last)
                 for first, last in [(255, 256), (256, 2**40), (2**40, None)]]  # fmt: skip
        await asyncio.to_thread(_back_to, database_url, "0049")
        assert await _shape(db) != newest
        await db.executemany("INSERT INTO room_state VALUES ($1, $2, $3, $4, $5, $6, $7)", lives)
        await migrations.upgrade(database_url, lambda text: None)
        assert await _shape(db) == newest
        assert [tuple(row) for row in await db.fetch("SELECT * FROM room_state")] == lives
        with pytest.raises(asyncpg.UniqueViolationError):
            await db.execute("INSERT INTO room_state VALUES ('!r:x', 't', '', '$f', NULL, 9, NULL)")
        await asyncio.to_thread(_back_to, database_url, "0049")
        assert [tuple(row) for row in await db.fetch("SELECT * FROM room_state")] == lives
    finally:
        await db.close()


async def _shape(db: asyncpg.Connection) -> list[str]:
    rows = await db.fetch("SELECT indexdef FROM pg_indexes WHERE tablename = 'room_state' ORDER BY indexname")
    return [row["indexdef"] for row in rows]
