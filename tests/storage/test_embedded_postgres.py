"""The database of one's own: started, stopped, crashed, adopted."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from lmserver.storage.database import Database
from lmserver.storage.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError
from tests.kit.waiting import HANGS

CRASH = """
import asyncio, os, sys
from pathlib import Path
from lmserver.storage.embedded_postgres import EmbeddedPostgres
async def main():
    await EmbeddedPostgres(Path(sys.argv[1]), print).start()
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""


def silent(_: str) -> None:
    return


async def test_start_stop_start_keeps_data_and_closes_the_door(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path, silent)
    dsn = await server.start()
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE t (n int)")
    assert await connection.fetchval("SHOW listen_addresses") == ""
    assert await connection.fetchval("SHOW data_checksums") == "on"
    assert await connection.fetchval("SHOW server_encoding") == "UTF8"
    assert await connection.fetchval("SELECT datcollate FROM pg_database WHERE datname = 'lmserver'") == "C"
    await connection.close()
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    await server.stop()
    assert server.running_dsn() is None
    again = EmbeddedPostgres(tmp_path, silent)
    connection = await asyncpg.connect(await again.start())
    assert await connection.fetchval("SELECT count(*) FROM t") == 0
    await connection.close()
    await again.stop()


async def test_an_orphan_of_a_killed_server_is_adopted_and_a_second_server_refused(tmp_path: Path) -> None:
    crashed = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], check=False, timeout=4 * HANGS)
    assert crashed.returncode == -signal.SIGKILL
    told: list[str] = []
    server = EmbeddedPostgres(tmp_path, told.append)
    db = await Database.connect(await server.start())
    assert any("earlier run" in line for line in told)
    await db.check_safety()
    await db.close()
    with pytest.raises(EmbeddedPostgresError, match="another lmserver"):
        await EmbeddedPostgres(tmp_path, silent).start()
    assert EmbeddedPostgres(tmp_path, silent).running_dsn() is not None
    await server.stop()


async def test_data_of_another_major_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres/PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedPostgresError, match="made by PostgreSQL 9"):
        await EmbeddedPostgres(tmp_path, silent).start()


async def test_a_stale_pid_file_is_no_server(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path, silent)
    await server.start()
    await server.stop()
    (tmp_path / "postgres/postmaster.pid").write_text("999999999\n")
    again = EmbeddedPostgres(tmp_path, silent)
    await again.start()
    await again.stop()


async def test_a_long_data_directory_gets_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 90)
    server = EmbeddedPostgres(deep, silent)
    connection = await asyncpg.connect(await server.start())
    await connection.close()
    await server.stop()
