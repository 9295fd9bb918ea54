"""Running PostgreSQL as root's better half where user namespaces are forbidden."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from lmserver.storage import unprivileged
from lmserver.storage.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError, find_binaries

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another identity")


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No user namespaces; accounts keep their things in a reachable folder of the test."""
    monkeypatch.setattr(unprivileged, "_namespace", lambda: None)
    made = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    made.chmod(0o755)
    monkeypatch.setattr(unprivileged, "PLACES", made)
    yield made
    subprocess.run(["rm", "-rf", str(made)], check=True)


def locked_home(tmp_path: Path) -> Path:
    """A data directory under a home that nobody else may enter."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    home.chmod(0o700)
    return home / "data"


async def written(server: EmbeddedPostgres) -> int:
    connection = await asyncpg.connect(await server.start())
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS t (n int)")
        await connection.execute("INSERT INTO t VALUES (1)")
        found: int = await connection.fetchval("SELECT count(*) FROM t")
        return found
    finally:
        await connection.close()


@needs_root
async def test_where_namespaces_are_forbidden_an_account_runs_it_out_of_a_locked_home(
    tmp_path: Path, forbidden: Path
) -> None:
    told: list[str] = []
    data = locked_home(tmp_path)
    first = EmbeddedPostgres(data, told.append)
    assert await written(first) == 1
    [place] = forbidden.iterdir()
    owner = pwd.getpwuid((place / "postgres/PG_VERSION").stat().st_uid).pw_name
    assert owner in ("postgres", "nobody")
    pid = (place / "postgres/postmaster.pid").read_text().splitlines()[0]
    assert Path(f"/proc/{pid}").stat().st_uid == pwd.getpwnam(owner).pw_uid
    assert (place / "run").stat().st_mode & 0o077 == 0
    await first.stop()
    again = EmbeddedPostgres(data, told.append)
    assert await written(again) == 2
    await again.stop()
    assert sum("Copying" in line for line in told) <= 1


@needs_root
async def test_a_cluster_keeps_the_way_it_was_made_in(
    tmp_path: Path, forbidden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = locked_home(tmp_path)
    first = EmbeddedPostgres(data, lambda _: None)
    assert await written(first) == 1
    await first.stop()
    monkeypatch.setattr(unprivileged, "_namespace", lambda: ("namespaces", "are", "allowed", "again"))
    again = EmbeddedPostgres(data, lambda _: None)
    assert await written(again) == 2
    await again.stop()


@needs_root
async def test_a_cluster_of_a_namespace_is_handed_to_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    made.chmod(0o755)
    try:
        first = EmbeddedPostgres(made / "data", lambda _: None)
        (made / "data").mkdir(exist_ok=True)
        (made / "data").chmod(0o755)
        assert await written(first) == 1
        await first.stop()
        monkeypatch.setattr(unprivileged, "_namespace", lambda: None)
        monkeypatch.setattr(unprivileged, "PLACES", made / "places")
        again = EmbeddedPostgres(made / "data", lambda _: None)
        assert await written(again) == 2
        await again.stop()
    finally:
        subprocess.run(["rm", "-rf", str(made)], check=True)


@needs_root
async def test_a_cluster_the_account_cannot_reach_is_not_begun_anew_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = locked_home(tmp_path)
    first = EmbeddedPostgres(data, lambda _: None)
    assert await written(first) == 1
    await first.stop()
    monkeypatch.setattr(unprivileged, "_namespace", lambda: None)
    with pytest.raises(EmbeddedPostgresError, match="move the data directory"):
        EmbeddedPostgres(data, lambda _: None)


@needs_root
def test_where_neither_way_goes_the_message_says_what_to_do(
    tmp_path: Path, forbidden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unprivileged, "_ACCOUNTS", ("no-such-account",))
    with pytest.raises(EmbeddedPostgresError, match=r"run lmserver as another user, or set database\.url"):
        EmbeddedPostgres(tmp_path, lambda _: None)


def test_who_is_not_root_runs_it_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    ground = unprivileged.choose(find_binaries(), tmp_path, lambda _: None)
    assert ground.command(["postgres"]) == ["postgres"]
    assert ground.identity == {}
    assert ground.home == tmp_path
