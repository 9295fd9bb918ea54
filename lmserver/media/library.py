"""Every medium that may be asked for: ours, and those of other servers."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import structlog

from lmserver.media import naming, outcomes
from lmserver.media.files import MediaFiles
from lmserver.media.local import LocalMedia
from lmserver.media.remote import RemoteMedia
from lmserver.media.thumbnails import Size, Thumbnails, blocks
from lmserver.media.workers import WorkersBusy
from lmserver.storage.media import Content

log = structlog.get_logger(__name__)

MAX_THUMBNAIL = 1024 * 1024

# While no thumbnail can be made, an image of these that is small stands for it (CS API §Thumbnails: it
# may be larger than was asked for).
STILL = frozenset(("image/jpeg", "image/png"))


@dataclass(frozen=True, slots=True)
class Medium:
    """A medium and its bytes: `body` all of them, `part(start, end)` those up to `end`, not with it.
    Either opens the file when it is first asked for a block."""

    content: Content
    body: AsyncGenerator[bytes, None]
    part: Callable[[int, int], AsyncGenerator[bytes, None]]


def _of_file(files: MediaFiles, content: Content) -> Medium:
    sha256, size = content.sha256, content.size
    return Medium(content, files.read(sha256, size), partial(files.read_part, sha256, size))


class Library:
    """Finds media; the two kinds have folders of their own, because copies may be deleted."""

    def __init__(
        self,
        our_name: str,
        local: LocalMedia,
        local_files: MediaFiles,
        remote: RemoteMedia,
        remote_files: MediaFiles,
        thumbnails: Thumbnails,
    ) -> None:
        self._our_name = our_name
        self._local = local
        self._local_files = local_files
        self._remote = remote
        self._remote_files = remote_files
        self._thumbnails = thumbnails

    async def open(self, server: str, media_id: str, wait_seconds: float) -> Medium:
        """Any medium. Raises NotFound, NotYetUploaded, TooLarge, Unavailable or DiskFull."""
        if server == self._our_name:
            return await self.open_local(media_id, wait_seconds)
        content = await self._remote.find(server, media_id, wait_seconds)
        return _of_file(self._remote_files, content)

    async def open_local(self, media_id: str, wait_seconds: float) -> Medium:
        """One of ours. Raises NotFound or NotYetUploaded."""
        content = await self._local.find(media_id, wait_seconds)
        if not await self._local_files.has(content.sha256, content.size):
            log.error("media_file_missing", media_id=media_id, sha256=content.sha256.hex())
            raise outcomes.NotFound("Media not found")
        return _of_file(self._local_files, content)

    async def thumbnail(
        self, server: str, media_id: str, wait_seconds: float, size: Size, *, animated: bool
    ) -> Medium:
        """An image in one of a few sizes; `animated` may move. Made here whoever's the image is: another
        server's thumbnail would have to be decoded as well.

        Raises what `open` does, and NoThumbnail.
        """
        if server == self._our_name:
            return await self.local_thumbnail(media_id, wait_seconds, size, animated=animated)
        content = await self._remote.find(server, media_id, wait_seconds)

        async def made(size: int) -> None:
            await self._remote.thumbnail_made(server, media_id, size)

        return await self._thumbnail(self._remote_files, content, size, animated, made)

    async def local_thumbnail(
        self, media_id: str, wait_seconds: float, size: Size, *, animated: bool
    ) -> Medium:
        """Of one of ours. Raises NotFound, NotYetUploaded, NoThumbnail or TooLarge."""
        content = (await self.open_local(media_id, wait_seconds)).content
        return await self._thumbnail(self._local_files, content, size, animated, None)

    async def delete(self, server: str, media_id: str) -> bool:
        """Delete one of ours, or the copy of another server's; False for one that is not here."""
        if server == self._our_name:
            return await self._local.delete(media_id)
        return await self._remote.delete(server, media_id)

    async def purge_copies(self, before_ms: int) -> int:
        """Delete copies of other servers' media that nobody has asked for since; how many."""
        return await self._remote.purge_unused(before_ms)

    async def _thumbnail(
        self,
        files: MediaFiles,
        source: Content,
        size: Size,
        animated: bool,
        made: Callable[[int], Awaitable[None]] | None,
    ) -> Medium:
        try:
            data, kind = await self._thumbnails.get(files, source, size, animated=animated, made=made)
        except WorkersBusy:
            if naming.essence(source.content_type) in STILL and source.size <= MAX_THUMBNAIL:
                return _of_file(files, source)
            raise outcomes.NoThumbnail("No thumbnail can be made of this now") from None
        content = Content(hashlib.sha256(data).digest(), len(data), kind, None)
        return Medium(content, blocks(data), lambda start, end: blocks(data[start:end]))
