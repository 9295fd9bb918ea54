"""Every medium that may be asked for: ours, and those of other servers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import structlog

from lmserver.media import naming, outcomes
from lmserver.media.files import MediaFiles
from lmserver.media.local import LocalMedia
from lmserver.media.remote import RemoteMedia
from lmserver.storage.media import Content

log = structlog.get_logger(__name__)

MAX_THUMBNAIL = 8 * 1024 * 1024

# Images are not decoded here: decoders are where attacks on media go. What a client may be given
# as a thumbnail is the image itself (CS API §Thumbnails: it may be larger than was asked for).
STILL = frozenset(("image/jpeg", "image/png"))
MOVING = frozenset(("image/gif", "image/webp", "image/apng"))


@dataclass(frozen=True, slots=True)
class Medium:
    """A medium and its bytes. `body` opens the file when it is first asked for a block."""

    content: Content
    body: AsyncGenerator[bytes, None]


class Library:
    """Finds media; the two kinds have folders of their own, because copies may be deleted."""

    def __init__(
        self,
        our_name: str,
        local: LocalMedia,
        local_files: MediaFiles,
        remote: RemoteMedia,
        remote_files: MediaFiles,
    ) -> None:
        self._our_name = our_name
        self._local = local
        self._local_files = local_files
        self._remote = remote
        self._remote_files = remote_files

    async def open(self, server: str, media_id: str, wait_seconds: float) -> Medium:
        """Any medium. Raises NotFound, NotYetUploaded, TooLarge, Unavailable or DiskFull."""
        if server == self._our_name:
            return await self.open_local(media_id, wait_seconds)
        content = await self._remote.find(server, media_id, wait_seconds)
        return Medium(content, self._remote_files.read(content.sha256, content.size))

    async def open_local(self, media_id: str, wait_seconds: float) -> Medium:
        """One of ours. Raises NotFound or NotYetUploaded."""
        content = await self._local.find(media_id, wait_seconds)
        if not await self._local_files.has(content.sha256, content.size):
            log.error("media_file_missing", media_id=media_id, sha256=content.sha256.hex())
            raise outcomes.NotFound("Media not found")
        return Medium(content, self._local_files.read(content.sha256, content.size))


def as_thumbnail(medium: Medium, *, animated: bool) -> Medium:
    """The medium, when it can be its own thumbnail. Raises NoThumbnail or TooLarge.

    `animated` is false only when the asker must not get a moving image.
    """
    kind = naming.essence(medium.content.content_type)
    if kind not in STILL and not (animated and kind in MOVING):
        raise outcomes.NoThumbnail("Cannot generate thumbnails for the requested content")
    if medium.content.size > MAX_THUMBNAIL:
        raise outcomes.TooLarge("Content is too large to thumbnail")
    return medium
