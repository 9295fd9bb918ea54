"""`python -m tests.kit.schema` writes lmserver/storage/schema.sql anew after a migration."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from lmserver.storage.database import Database
from lmserver.storage.schema import dump
from tests.kit.postgres import running_cluster

TARGET = Path(__file__).resolve().parent.parent.parent / "lmserver/storage/schema.sql"


async def main() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with running_cluster(Path(folder)) as cluster, cluster.database() as dsn:
            db = await Database.connect(dsn)
            TARGET.write_text(await dump(db), encoding="utf-8")
            await db.close()


if __name__ == "__main__":
    asyncio.run(main())
