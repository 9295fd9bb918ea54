"""What an operator is told when the server cannot start: one line that says what to do."""

from __future__ import annotations

import asyncio
import secrets
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmserver import server
from lmserver.cli import main
from lmserver.commands import conflicts
from lmserver.config import parse_config
from lmserver.storage import accounts
from lmserver.storage.database import Database, UnsafeDatabase
from lmserver.storage.migrations import MigrationError
from tests.kit.processes import free_port, lmserver


def written(folder: Path, **sections: Any) -> str:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({"server_name": "us.test", **sections}), encoding="utf-8")
    return str(path)


async def test_an_address_that_is_taken_is_named(database_url: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = written(
            tmp_path,
            database={"url": database_url},
            client={"port": free_port()},
            federation={"host": "127.0.0.1", "port": port},
            logging={"level": "error"},
        )
        done = await asyncio.to_thread(lmserver, "run", "--config", config)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"configuration: federation.host, federation.port: cannot listen at 127.0.0.1, port {port}: "
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["run", "verify", "migrate", "evidence"])
def test_a_database_that_is_down_is_told(command: str, tmp_path: Path) -> None:
    url = f"postgresql://lmserver@127.0.0.1:{free_port()}/lmserver"
    config = written(tmp_path, database={"url": url}, logging={"level": "error"})
    main(["generate-key", str(tmp_path / "lmserver-data/signing.key")])
    done = lmserver(command, "--config", config)
    assert done.returncode == 1
    assert done.stderr.startswith("database: cannot connect: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["postgresql://localhost:notaport/x", "postgresql://u@/nosuch?host=/nosuch"])
def test_a_database_url_that_leads_nowhere_is_told(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key-conflicts", "--config", written(tmp_path, database={"url": url})]) == 1
    assert capsys.readouterr().err.startswith("database: cannot connect: ")


async def test_the_database_of_another_server_is_refused(
    database_url: str, db: Database, tmp_path: Path
) -> None:
    """Ours would sign, in its own name, what follows in the other's rooms."""
    config = parse_config({"server_name": "us.test", "database": {"url": database_url}}, tmp_path)
    await accounts.create(db, "@a:us.test", "", None, False, 0)
    assert await asyncio.to_thread(conflicts.run, config) == 0
    await db.execute("UPDATE accounts SET user_id = '@a:them.test'")
    with pytest.raises(UnsafeDatabase, match="belongs to them.test, and server_name is us.test"):
        await asyncio.to_thread(conflicts.run, config)
    # Before its schema is made a newer one.
    await db.execute("UPDATE alembic_version SET version_num = '0051'")
    with pytest.raises(UnsafeDatabase, match="belongs to them.test"):
        await asyncio.to_thread(server.migrate, config, lambda _: None)


@pytest.mark.parametrize(
    ("revision", "advice"), [("0001", "lmserver migrate"), ("9999", "the newer lmserver")]
)
async def test_a_command_that_only_reads_refuses_another_schema(
    revision: str, advice: str, database_url: str, db: Database, tmp_path: Path
) -> None:
    config = parse_config({"server_name": "us.test", "database": {"url": database_url}}, tmp_path)
    await db.execute("UPDATE alembic_version SET version_num = $1", revision)
    with pytest.raises(MigrationError, match=advice):
        await asyncio.to_thread(conflicts.run, config)


async def test_a_database_user_who_may_make_no_tables_is_told(
    database_url: str, db: Database, tmp_path: Path
) -> None:
    role = "limited_" + secrets.token_hex(4)
    await db.execute("DROP SCHEMA public CASCADE")
    await db.execute("CREATE SCHEMA public")
    await db.execute(f"CREATE ROLE {role} LOGIN")
    await db.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
    try:
        user = await db.fetchval("SELECT current_user")
        url = database_url.replace(f"//{user}", f"//{role}", 1)
        config = parse_config({"server_name": "us.test", "database": {"url": url}}, tmp_path)
        with pytest.raises(MigrationError, match="permission denied"):
            await asyncio.to_thread(server.migrate, config, lambda _: None)
    finally:
        await db.execute(f"DROP OWNED BY {role}")
        await db.execute(f"DROP ROLE {role}")


def test_files_that_are_wrong_are_told_before_anything_is_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("nothing")
    federation = {"ca_file": "file", "tls_certificate": "none.crt", "tls_private_key": "none.key"}
    config = written(tmp_path, data_dir="file/data", federation=federation, logging={"level": "error"})
    for command in ("check-config", "run"):
        assert main([command, "--config", config]) == 1
        told = capsys.readouterr().err.splitlines()
        assert [line.split(": ")[1] for line in told] == [
            "data_dir", "federation.ca_file", "federation.tls_certificate"
        ], told  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "file"]


def test_a_file_that_cannot_be_made_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("nothing")
    assert main(["generate-key", str(tmp_path / "file/signing.key")]) == 1
    told = capsys.readouterr().err
    assert str(tmp_path / "file") in told and told.count("\n") == 1
