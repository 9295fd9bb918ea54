"""Alembic's environment: lmserver hands in the DSN and owns the connection (storage/migrations.py)."""

from __future__ import annotations

from typing import Any

from alembic import context

from lmserver.storage.migrations import run_with_connection


def _run(connection: Any) -> None:
    context.configure(connection=connection, transactional_ddl=True)
    context.run_migrations()


run_with_connection(context.config.attributes["dsn"], _run)
