"""Media of our users: announced, uploaded, found again (CS API §Content repository)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from lmserver.media import outcomes
from lmserver.media.files import MediaFiles
from lmserver.media.naming import safe_name, safe_type
from lmserver.storage import media
from lmserver.storage.database import Connection, Database
from lmserver.storage.media import Content

T = TypeVar("T")

PENDING_MS = 24 * 3600 * 1000
"""How long an announced medium waits for its content."""

USED_AGAIN_MS = 3600 * 1000
"""How exactly it is known when a medium was used last."""

MAX_PENDING = 50
DELETED_AT_ONCE = 100
MAX_WAIT_SECONDS = 20.0
DEFAULT_TIMEOUT_MS = "20000"


class LocalMedia:
    """Uploads. `quota` is bytes for each user, None for no end."""

    def __init__(self, db: Database, files: MediaFiles, quota: int | None, clock: Callable[[], int]) -> None:
        self._db = db
        self._files = files
        self._quota = quota
        self._clock = clock
        self._waiting: dict[str, list[asyncio.Event]] = {}

    async def announce(self, user_id: str) -> tuple[str, int]:
        """A media ID to upload to later, and when it ends (ms). Raises TooManyPending."""
        now = self._clock()
        if await media.pending(self._db, user_id, now - PENDING_MS) >= MAX_PENDING:
            raise outcomes.TooManyPending("Too many media wait for their upload")
        media_id = secrets.token_urlsafe(18)
        await media.announce(self._db, media_id, user_id, now)
        return media_id, now + PENDING_MS

    async def upload(
        self, user_id: str, body: AsyncIterator[bytes], content_type: str | None, filename: str | None
    ) -> str:
        """Store a medium and return its ID once file and row are durable.

        Raises QuotaReached, DiskFull and what `body` raises; nothing stays then.
        """
        media_id = secrets.token_urlsafe(18)

        async def record(db: Connection, content: Content) -> None:
            await self._check_quota(db, user_id, content.size)
            await media.announce(db, media_id, user_id, self._clock())
            await media.fill(db, media_id, content)

        await self._receive(user_id, body, content_type, filename, record)
        return media_id

    async def upload_to(
        self,
        media_id: str,
        user_id: str,
        body: AsyncIterator[bytes],
        content_type: str | None,
        filename: str | None,
    ) -> None:
        """The content of an announced medium. Raises also NotFound, NotYours or AlreadyUploaded."""
        found = await media.local(self._db, media_id)
        if found is None or (found.content is None and self._ended(found.created_ts)):
            raise outcomes.NotFound("Media not found")
        if found.user_id != user_id:
            raise outcomes.NotYours("Another user announced this")
        if found.content is not None:
            raise outcomes.AlreadyUploaded("The media is uploaded already")

        async def record(db: Connection, content: Content) -> bool:
            await self._check_quota(db, user_id, content.size)
            return await media.fill(db, media_id, content)

        if not await self._receive(user_id, body, content_type, filename, record):
            raise outcomes.AlreadyUploaded("The media is uploaded already")
        for event in self._waiting.get(media_id, ()):
            event.set()

    async def keep_image(
        self, body: AsyncIterator[bytes], measure: Callable[[Path], Awaitable[str]]
    ) -> tuple[str, int]:
        """A medium of the server's own (of no user), of the type that `measure` finds in the file; its ID and
        size. Raises DiskFull and what `body` and `measure` raise; nothing stays then."""
        media_id = secrets.token_urlsafe(18)
        async with self._files.writing() as file:
            async for chunk in body:
                await file.write(chunk)
            await file.flush()
            content_type = await measure(file.path)

            async def name(sha256: bytes) -> int:
                content = Content(sha256, file.size, content_type, None)
                await self._db.run(lambda db: self._record_own(db, media_id, content))
                return content.size

            return media_id, await file.keep(name)

    async def _record_own(self, db: Connection, media_id: str, content: Content) -> None:
        await media.announce(db, media_id, "", self._clock())
        await media.fill(db, media_id, content)

    async def find(self, media_id: str, wait_seconds: float) -> Content:
        """The medium; one that is announced is waited for. Raises NotFound or NotYetUploaded."""
        arrived = asyncio.Event()
        self._waiting.setdefault(media_id, []).append(arrived)
        try:
            found = await self._content(media_id)
            if found is None:
                await asyncio.wait_for(arrived.wait(), min(wait_seconds, MAX_WAIT_SECONDS))
                found = await self._content(media_id)
        except TimeoutError:
            found = None
        finally:
            self._waiting[media_id].remove(arrived)
            if not self._waiting[media_id]:
                del self._waiting[media_id]
        if found is None:
            raise outcomes.NotYetUploaded("The media has not been uploaded yet")
        return found

    async def delete(self, media_id: str) -> bool:
        """Delete a medium, its row first: a crash leaves a file for `tidy`. False when there is none."""
        gone = await media.delete_local(self._db, media_id)
        if gone is not None and gone.content is not None:
            await self._files.delete(gone.content.sha256, self._unused)
        return gone is not None

    async def purge_unused(self, before_ms: int) -> int:
        """Delete what nobody has asked for since; how much there was. Nothing does this by itself: what
        users upload, nobody else has."""
        count = 0
        while unused := await media.local_unused_since(self._db, before_ms, DELETED_AT_ONCE):
            for medium in unused:
                await self.delete(medium.media_id)
            count += len(unused)
        return count

    async def tidy(self) -> None:
        """Forget announcements that ended, files that nobody finished, and files that no row names."""
        await media.purge_pending(self._db, self._clock() - PENDING_MS)
        await self._files.tidy()
        await self._files.sweep(lambda hashes: media.not_local(self._db, hashes))

    async def _unused(self, sha256: bytes) -> bool:
        return bool(await media.not_local(self._db, [sha256]))

    def _ended(self, created_ts: int) -> bool:
        return created_ts < self._clock() - PENDING_MS

    async def _content(self, media_id: str) -> Content | None:
        found = await media.local(self._db, media_id)
        if found is None or (found.content is None and self._ended(found.created_ts)):
            raise outcomes.NotFound("Media not found")
        if found.content is not None:
            if found.content.quarantined:
                raise outcomes.NotFound("Media not found")
            if found.used_ts < self._clock() - USED_AGAIN_MS:
                await media.touch_local(self._db, media_id, self._clock())
        return found.content

    async def _receive(
        self,
        user_id: str,
        body: AsyncIterator[bytes],
        content_type: str | None,
        filename: str | None,
        record: Callable[[Connection, Content], Awaitable[T]],
    ) -> T:
        """The body as a durable file, then the row that names it."""
        used = 0 if self._quota is None else await media.used_bytes(self._db, user_id)
        async with self._files.writing() as file:
            async for chunk in body:
                await file.write(chunk)
                if self._quota is not None and used + file.size > self._quota:
                    raise outcomes.QuotaReached("You have uploaded as much as you may")

            async def name(sha256: bytes) -> T:
                content = Content(sha256, file.size, safe_type(content_type), safe_name(filename))
                return await self._db.run(lambda db: record(db, content))

            return await file.keep(name)

    async def _check_quota(self, db: Connection, user_id: str, size: int) -> None:
        """Once more beside the row: uploads of one user may have run at the same time."""
        if self._quota is not None and await media.used_bytes(db, user_id) + size > self._quota:
            raise outcomes.QuotaReached("You have uploaded as much as you may")


def wait_seconds(timeout_ms: str) -> float:
    """How long an asker would wait for an upload, as the query says it. Raises ValueError."""
    if not (timeout_ms.isascii() and timeout_ms.isdigit()):
        raise ValueError("timeout_ms is a whole number")
    return min(int(timeout_ms[:10]) / 1000, MAX_WAIT_SECONDS)
