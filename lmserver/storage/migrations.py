"""Bringing a database to this version's schema, by alembic.

Alembic and SQLAlchemy are imported only when there is something to do: a server that starts on a
current database pays one small query.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg


class MigrationError(Exception):
    """The schema cannot be brought to this version; the text says why and what to do."""


async def current(dsn: str) -> str | None:
    """The database's revision; None for an empty one. Raises MigrationError."""
    connection = await asyncpg.connect(dsn, timeout=30)
    try:
        if not await connection.fetchval("SELECT to_regclass('public.alembic_version') IS NOT NULL"):
            return None
        revision: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
        return revision
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(f"the schema cannot be read: {error}") from error
    finally:
        await connection.close()


async def upgrade(dsn: str, progress: Callable[[str], None]) -> None:
    """Bring the database to the newest revision; raises MigrationError."""
    found, newest = await current(dsn), head()
    if found == newest:
        return
    if found is not None and found > newest:
        raise MigrationError(
            f"the database has schema {found}, this lmserver knows {newest}: install the newer lmserver again"
        )
    progress(f"Bringing the database schema from {found or 'nothing'} to {newest} ...")
    await asyncio.to_thread(_run_alembic, dsn)


async def check(dsn: str) -> None:
    """Raises MigrationError when the database has another schema than this version's."""
    found, newest = await current(dsn), head()
    if found != newest:
        raise MigrationError(
            f"the database has schema {found or 'none'}, this lmserver knows {newest}: run"
            f" {'the newer lmserver' if (found or '') > newest else '`lmserver migrate`'}"
        )


def _run_alembic(dsn: str) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy.exc import DBAPIError

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.attributes["dsn"] = dsn
    try:
        command.upgrade(config, "head")
    except DBAPIError as error:  # such as a user who may make no tables
        raise MigrationError(f"the schema cannot be made: {error.orig}") from error


def head() -> str:
    """The newest revision: its file's name says it, which needs no alembic."""
    return max(path.name for path in (migrations_folder() / "versions").glob("[0-9]*_*.py")).split("_")[0]


def migrations_folder() -> Path:
    """Where the revisions are: beside the package, in a checkout and in a wheel."""
    folder = Path(__file__).resolve().parent.parent.parent / "migrations"
    if not (folder / "env.py").exists():
        raise MigrationError(f"the migrations are missing: {folder}")
    return folder


def run_with_connection(dsn: str, work: Callable[[Any], None]) -> None:
    """Call `work` with an SQLAlchemy connection; for migrations/env.py.

    The whole upgrade is one transaction that holds the version table: of servers that start at
    once on an empty database, the others wait and find the work done.
    """
    from sqlalchemy import pool, text
    from sqlalchemy.exc import IntegrityError
    from sqlalchemy.ext.asyncio import create_async_engine

    async def connect() -> Any:
        return await asyncpg.connect(dsn, timeout=30)

    async def run() -> None:
        engine = create_async_engine("postgresql+asyncpg://", poolclass=pool.NullPool, async_creator=connect)
        async with engine.connect() as connection:
            await connection.execute(text("SET lock_timeout = '60s'"))
            await connection.commit()
            try:
                async with connection.begin():
                    await connection.execute(text(_CREATE_VERSION_TABLE))
            except IntegrityError:
                pass  # IF NOT EXISTS does not see a table that another server is just creating
            async with connection.begin():
                await connection.execute(text("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE"))
                await connection.run_sync(work)
        await engine.dispose()

    asyncio.run(run())


_CREATE_VERSION_TABLE = (
    "CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32) NOT NULL,"
    " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)
