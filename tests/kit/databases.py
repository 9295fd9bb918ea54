"""The embedded database of a server in its own process, for drills that look or reach into it."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import yaml

from lmserver.storage.embedded_postgres import EmbeddedPostgres
from tests.kit.processes import ServerProcess


def data_dir(server: ServerProcess) -> Path:
    return Path(yaml.safe_load(server.config.read_text(encoding="utf-8"))["data_dir"])


def dsn_of(server: ServerProcess) -> str:
    """Of the embedded database of a running server; a kill leaves it running."""
    dsn = EmbeddedPostgres(data_dir(server), lambda _: None).running_dsn()
    assert dsn is not None
    return dsn


async def execute(dsn: str, statement: str, *values: object) -> None:
    db = await asyncpg.connect(dsn)
    try:
        await db.execute(statement, *values)
    finally:
        await db.close()
