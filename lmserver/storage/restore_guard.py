"""Noticing that the database is an older one than this server last saw (drill D15).

A counter lives in the database and in a file of the data directory. It moves while the server
works, in the database first, so a database whose counter is behind the file's has lost what came
after a backup, however it was restored. A promoted replica may have lost a tail without that; its
timeline tells. A process that is running notices a counter that goes back.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import structlog

from lmserver.storage import e2e_keys, holds
from lmserver.storage.database import Connection, Database, DatabaseUnavailable

FILE: Final = "restore-guard.json"
BUSY_SECONDS: Final = 1.0
IDLE_BEATS: Final = 10
"""An idle server moves the counter every tenth time, to show that it runs."""
ALIVE_SECONDS: Final = 30.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Mark:
    """The counter, and which line of which cluster it was seen on ("" where that is not told)."""

    beat: int
    cluster: str = ""
    timeline: str = ""


class RestoreGuard:
    """Judges the database at start, then keeps the counter moving."""

    def __init__(self, db: Database, data_dir: Path, our_name: str) -> None:
        self._db = db
        self._path = data_dir / FILE
        self._our_name = our_name
        self._mark = Mark(0)
        self._busy = False

    def note_change(self) -> None:
        """Something was committed: the counter has to move soon."""
        self._busy = True

    async def check(self) -> str | None:
        """Why the database counts as restored, or None.

        If it does, our rooms are held and keys that may have been handed out are gone when
        this returns. Raises DatabaseUnavailable.
        """
        known = await asyncio.to_thread(self._read)
        found, idle_seconds = await self._found()
        reason = judge(known, found, idle_seconds)
        beat = await self._restored(reason, known) if reason is not None else await self._beat()
        await self._keep(Mark(beat, found.cluster, found.timeline))
        return reason

    async def mark_restored(self, reason: str) -> None:
        """Treat the database as restored, as its operator says it is."""
        await self._restored(reason, await asyncio.to_thread(self._read))

    async def run(self, on_restored: Callable[[], Awaitable[None]]) -> None:
        """Move the counter until cancelled; `on_restored` when it is found to have gone back."""
        idle = 0
        while True:
            await asyncio.sleep(BUSY_SECONDS)
            idle += 1
            if not self._busy and idle < IDLE_BEATS:
                continue
            self._busy, idle = False, 0
            try:
                beat = await self._beat()
                if beat <= self._mark.beat:
                    beat = await self._restored("the database went back while the server ran", self._mark)
                    await on_restored()
                await self._keep(Mark(beat, self._mark.cluster, self._mark.timeline))
            except DatabaseUnavailable:
                self._busy = True
            except OSError as error:
                log.error("restore_guard_not_written", error=str(error))

    async def _found(self) -> tuple[Mark, float]:
        """What the database says, and how many seconds ago its counter moved."""
        row = await self._db.fetchrow(
            "SELECT beat, extract(epoch FROM now() - beaten_at)::float8 AS idle FROM restore_guard"
        )
        cluster, timeline = await self._line()
        return (
            (Mark(0, cluster, timeline), 0.0)
            if row is None
            else (Mark(row["beat"], cluster, timeline), row["idle"])
        )

    async def _line(self) -> tuple[str, str]:
        """Cluster and timeline; a managed PostgreSQL may not tell."""
        try:
            row = await self._db.fetchrow(
                "SELECT (SELECT system_identifier FROM pg_control_system())::text AS cluster,"
                " left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline"
            )
        except asyncpg.PostgresError:
            return "", ""
        return row["cluster"], row["timeline"]

    async def _beat(self) -> int:
        beat: int = await self._db.fetchval(
            "INSERT INTO restore_guard (beat) VALUES (1) ON CONFLICT (id) DO UPDATE"
            " SET beat = restore_guard.beat + 1, beaten_at = now() RETURNING beat"
        )
        return beat

    async def _restored(self, reason: str, known: Mark | None) -> int:
        """Hold what must not be extended and drop what must not be used twice, in one transaction
        with the counter, which then is ahead of every file's."""
        least = 0 if known is None else known.beat

        async def work(db: Connection) -> tuple[int, int, int]:
            rooms = await holds.hold_all(db, self._our_name)
            keys = await e2e_keys.drop_one_time_keys(db)
            beat: int = await db.fetchval(
                "INSERT INTO restore_guard (beat, epoch) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE"
                " SET beat = greatest(restore_guard.beat, $1) + 1, epoch = $2, beaten_at = now()"
                " RETURNING beat",
                least,
                secrets.randbits(48),
            )
            return rooms, keys, beat

        rooms, keys, beat = await self._db.run(work)
        log.error("database_restored", reason=reason, rooms_held=rooms, one_time_keys_dropped=keys)
        return beat

    # -- the file -------------------------------------------------------------------------------

    def _read(self) -> Mark | None:
        try:
            fields = json.loads(self._path.read_text(encoding="utf-8"))
            return Mark(int(fields["beat"]), str(fields["cluster"]), str(fields["timeline"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("restore_guard_unreadable", path=str(self._path))
            return None

    async def _keep(self, mark: Mark) -> None:
        self._mark = mark
        await asyncio.to_thread(self._write, mark)

    def _write(self, mark: Mark) -> None:
        """Durable before it counts: written beside, fsynced, renamed."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(f".{os.getpid()}")
        text = json.dumps({"beat": mark.beat, "cluster": mark.cluster, "timeline": mark.timeline})
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def judge(known: Mark | None, found: Mark, idle_seconds: float) -> str | None:
    """Why `found` is not the database that `known` was written for; None if it is."""
    if known is None:
        if found.beat == 0 or idle_seconds < ALIVE_SECONDS:
            return None  # new, or another process serves with it right now
        return "the database was in use, and this data directory does not know it"
    if found.beat < known.beat:
        return "the database is older than what this server last saw of it"
    if known.timeline and known.cluster == found.cluster and known.timeline != found.timeline:
        return "the database is on another timeline: a promoted replica or a recovery to a point in time"
    return None
