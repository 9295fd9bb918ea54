"""Media from an operator's side: listed, hidden, kept from being hidden, deleted."""

from __future__ import annotations

from lmserver.media.library import Library
from lmserver.storage import media
from lmserver.storage.database import Database
from lmserver.storage.media import LocalMedium

DELETED_AT_ONCE = 1000


class MediaAdministration:
    """`server` is ours for uploads of our users, another for the copies of its media."""

    def __init__(self, db: Database, our_name: str, library: Library) -> None:
        self._db = db
        self._our_name = our_name
        self._library = library

    async def of_user(
        self, user_id: str, start: int, limit: int
    ) -> tuple[list[tuple[LocalMedium, bool]], int]:
        """One page of what a user has uploaded, the newest first, each with whether it is protected; and how
        much there is."""
        found = await media.page_of_user(self._db, user_id, start, limit)
        return found, await media.count_of_user(self._db, user_id)

    async def hide(self, server: str, media_id: str, *, hidden: bool) -> bool:
        """Hide a medium from everybody, or show it again; False for one that is not here or protected."""
        if server == self._our_name:
            return await media.quarantine_local(self._db, media_id, hidden=hidden)
        return await media.quarantine_cached(self._db, server, media_id, hidden=hidden)

    async def is_known(self, server: str, media_id: str) -> bool:
        if server == self._our_name:
            return await media.local(self._db, media_id) is not None
        return await media.cached(self._db, server, media_id) is not None

    async def hide_of_user(self, user_id: str) -> int:
        """Hide what a user has uploaded; how much that was."""
        return await media.quarantine_of_user(self._db, user_id)

    async def protect(self, media_id: str, *, protected: bool) -> bool:
        """False for one that is not there."""
        return await media.protect(self._db, media_id, protected=protected)

    async def delete(self, server: str, media_id: str) -> bool:
        """False for one that is not here."""
        return await self._library.delete(server, media_id)

    async def delete_unused(self, before_ms: int, larger_than: int, *, keep_avatars: bool) -> list[str]:
        """Delete uploads that nobody has asked for since, at most DELETED_AT_ONCE; their IDs."""
        found = await media.local_to_delete(
            self._db, before_ms, larger_than, self._our_name, DELETED_AT_ONCE, keep_avatars=keep_avatars
        )
        return [media_id for media_id in found if await self.delete(self._our_name, media_id)]

    async def delete_of_user(self, user_id: str, start: int, limit: int) -> list[str]:
        """Delete one page of what a user has uploaded; the IDs."""
        found = [medium.media_id for medium, _ in await media.page_of_user(self._db, user_id, start, limit)]
        return [media_id for media_id in found if await self.delete(self._our_name, media_id)]

    async def purge_copies(self, before_ms: int) -> int:
        """Delete copies of other servers' media that nobody has asked for since; how many."""
        return await self._library.purge_copies(before_ms)
