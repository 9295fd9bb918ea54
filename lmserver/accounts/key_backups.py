"""Backups of room keys (CS API §Server-side key backups): versions, and which key is the better one.

A client that has lost its devices gets its history back from here, so a key is replaced only by a
better one, and only in the version that is the current one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from lmserver.storage import key_backups as storage
from lmserver.storage.cross_signing import lock_user
from lmserver.storage.database import Connection, Database
from lmserver.storage.key_backups import BackedUpKey, Backup

MAX_VERSIONS = 1_000
MAX_KEYS = 500_000
"""Of a user, in all versions together."""
PAGE = 500


class NoBackup(Exception):
    """The user has no such version, or none at all."""


class WrongVersion(Exception):
    """Keys go into the current version, which is another one."""

    def __init__(self, current: int) -> None:
        super().__init__(current)
        self.current = current


class OtherAlgorithm(Exception):
    """The algorithm of a version never changes."""


class BackupFull(Exception):
    """More versions or keys than anybody needs."""


class KeyBackups:
    """Users' backups."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(self, user_id: str, algorithm: str, auth_data: bytes) -> int:
        """A new current version. Raises BackupFull."""

        async def work(db: Connection) -> int:
            await lock_user(db, user_id)
            versions, _ = await storage.total(db, user_id)
            if versions >= MAX_VERSIONS:
                raise BackupFull
            return await storage.create(db, user_id, algorithm, auth_data)

        return await self._db.run(work)

    async def get(self, user_id: str, version: int | None) -> Backup:
        """A version, or the current one. Raises NoBackup."""
        if version is None:
            found = await storage.current(self._db, user_id)
        else:
            found = await storage.get(self._db, user_id, version)
        if found is None:
            raise NoBackup
        return found

    async def update(self, user_id: str, version: int, algorithm: str, auth_data: bytes) -> None:
        """Raises NoBackup, OtherAlgorithm."""
        if (await self.get(user_id, version)).algorithm != algorithm:
            raise OtherAlgorithm
        await storage.set_auth_data(self._db, user_id, version, auth_data)

    async def delete(self, user_id: str, version: int) -> None:
        """Deleting what was deleted is no error. Raises NoBackup for what never was."""
        if not await self._db.run(lambda db: storage.delete(db, user_id, version)):
            raise NoBackup

    # -- keys -----------------------------------------------------------------------------------

    async def put_keys(self, user_id: str, version: int, keys: Sequence[BackedUpKey]) -> Backup:
        """Store keys, no two of one session, where they are better than what is there. Raises
        NoBackup, WrongVersion, BackupFull."""

        async def work(db: Connection) -> Backup:
            current = await storage.current(db, user_id)
            if current is None:
                raise NoBackup
            if current.version != version:
                raise WrongVersion(current.version)
            backup = await storage.lock(db, user_id, version)
            if backup is None:
                raise NoBackup
            new, changed = await storage.put_keys(db, user_id, version, keys) if keys else (0, 0)
            if not changed:
                return backup
            if new and (await storage.total(db, user_id))[1] + new > MAX_KEYS:
                raise BackupFull
            return await storage.keys_changed(db, user_id, version, new)

        return await self._db.run(work)

    async def delete_keys(
        self, user_id: str, version: int, room_id: str | None = None, session_id: str | None = None
    ) -> Backup:
        """Keys of a session, of a room, or all of a version. Raises NoBackup."""

        async def work(db: Connection) -> Backup:
            backup = await storage.lock(db, user_id, version)
            if backup is None:
                raise NoBackup
            deleted = await storage.delete_keys(db, user_id, version, room_id, session_id)
            return await storage.keys_changed(db, user_id, version, -deleted) if deleted else backup

        return await self._db.run(work)

    async def key(self, user_id: str, version: int, room_id: str, session_id: str) -> BackedUpKey | None:
        """Raises NoBackup."""
        await self.get(user_id, version)
        return await storage.key(self._db, user_id, version, room_id, session_id)

    async def keys(self, user_id: str, version: int, room_id: str | None) -> AsyncIterator[BackedUpKey]:
        """Keys of a room or of all rooms, by room and session, a page at a time: there may be very many."""
        after = ("", "")
        while True:
            if room_id is None:
                page = await storage.keys_after(self._db, user_id, version, after, PAGE)
            else:
                page = await storage.room_keys_after(self._db, user_id, version, room_id, after[1], PAGE)
            for key in page:
                yield key
            if len(page) < PAGE:
                return
            after = (page[-1].room_id, page[-1].session_id)
