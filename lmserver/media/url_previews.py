"""Previews of web pages (CS API §URL previews): fetched through the guard, read in a worker, kept a while.

Only HTML, of which the first megabyte is read, and images. One page and one image are fetched for a
preview; nothing a page names is followed otherwise, so nothing recurs (attack M5).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import aiohttp
import structlog

from lmserver.federation_client.errors import FederationError, Unreachable
from lmserver.federation_client.single_flight import SingleFlight
from lmserver.federation_client.streaming import StreamedResponse
from lmserver.federation_client.web_pages import WebPages, parsed
from lmserver.media import outcomes
from lmserver.media.files import DiskFull, MediaFiles, NewFile
from lmserver.media.local import LocalMedia
from lmserver.media.naming import essence
from lmserver.media.workers import JobRefused, Workers, WorkersBusy
from lmserver.storage import url_previews
from lmserver.storage.database import Database
from lmserver.storage.url_previews import Preview
from lmserver.web.slots import Busy, Slots

log = structlog.get_logger(__name__)

MAX_PAGE = 1 << 20
HTML = frozenset(("text/html", "application/xhtml+xml"))
KEEP_MS = 24 * 3600 * 1000
KEEP_FAILURE_MS = 5 * 60 * 1000
GRACE_MS = 7 * 24 * 3600 * 1000
"""Clients show an image for longer than its preview is kept."""

MAX_PREVIEWS = 20_000
DROPPED_AT_ONCE = 100
FETCHES = 16
WAITING = 64
WAIT_SECONDS = 20.0

_NOTHING = Preview({}, None, 0)
_FAILED = Preview(None, None, 0)


class UrlPreviews:
    """`max_image` and `cache_size` (of all images) are bytes, `timeout` seconds for page or image."""

    def __init__(
        self,
        db: Database,
        our_name: str,
        pages: WebPages,
        workers: Workers,
        local: LocalMedia,
        files: MediaFiles,
        clock: Callable[[], int],
        *,
        max_image: int,
        timeout: float,
        cache_size: int,
    ) -> None:
        self._db = db
        self._our_name = our_name
        self._pages = pages
        self._workers = workers
        self._local = local
        self._files = files
        self._clock = clock
        self._max_image = max_image
        self._timeout = timeout
        self._cache_size = cache_size
        self._flights: SingleFlight[Preview] = SingleFlight()
        self._slots = Slots()

    async def preview(self, url: str, language: str | None) -> dict[str, Any]:
        """The page's Open Graph properties; empty for what is neither page nor image. Raises NoPreview."""
        try:
            url = str(parsed(url))
        except Unreachable:
            raise outcomes.NoPreview("There is no preview of this URL") from None
        key = hashlib.sha256(json.dumps([url, language]).encode()).digest()
        kept = await url_previews.get(self._db, key, self._clock())
        if kept is None:
            kept = await self._flights.run(key.hex(), lambda: self._fetch_and_keep(key, url, language))
        if kept.content is None:
            raise outcomes.NoPreview("There is no preview of this URL")
        return kept.content

    async def tidy(self) -> None:
        """Forget what has expired, and its images after some grace."""
        before = self._clock() - GRACE_MS
        while await self._drop(before):
            pass
        while lost := await url_previews.unreferenced_images(self._db, before, DROPPED_AT_ONCE):
            for media_id in lost:
                await self._local.delete(media_id)

    async def close(self) -> None:
        """End the fetches."""
        await self._flights.close()
        await self._pages.close()

    async def _fetch_and_keep(self, key: bytes, url: str, language: str | None) -> Preview:
        try:
            async with self._slots.hold("", FETCHES, WAITING, WAIT_SECONDS):
                preview = await self._fetch(url, language)
            keep = KEEP_MS
        except (Busy, WorkersBusy, DiskFull):
            return _FAILED
        except (FederationError, JobRefused, TimeoutError, aiohttp.ClientError, ValueError) as error:
            # Why, is for our log alone: nobody scans a network through us (attack F12).
            log.info("no_url_preview", kind=type(error).__name__, detail=str(error)[:200])
            preview, keep = _FAILED, KEEP_FAILURE_MS
        replaced = await url_previews.put(self._db, key, preview, self._clock() + keep)
        if replaced is not None:
            await self._local.delete(replaced)
        await self._make_room()
        return preview

    async def _fetch(self, url: str, language: str | None) -> Preview:
        async with self._files.writing() as file:
            async with asyncio.timeout(self._timeout), self._pages.open(url, language) as (place, response):
                kind = essence(response.content_type)
                if kind.startswith("image/"):
                    return await self._image(response, {})
                if kind not in HTML:
                    return _NOTHING
                charset = response.content_type.lower().partition("charset=")[2].strip(" \"';")[:40]
                await _first_of(response, file)
            said = await self._described(file.path, charset)
        image = said.pop("og:image", "")
        if image:
            # A page without its image is a preview too.
            with suppress(FederationError, JobRefused, WorkersBusy, TimeoutError, aiohttp.ClientError,
                          ValueError, DiskFull):  # fmt: skip
                where = urljoin(place, image)
                async with asyncio.timeout(self._timeout), self._pages.open(where, language) as (_, response):
                    return await self._image(response, said)
        return Preview(said, None, 0)

    async def _described(self, path: Path, charset: str) -> dict[str, Any]:
        """What the page says of itself, as a worker reads it; the others are left to thumbnails."""
        async with self._slots.hold("read", 1, WAITING, WAIT_SECONDS):
            said = json.loads(await self._workers.run("describe", path, charset=charset))
        return {name: value for name, value in said.items() if isinstance(value, str)}

    async def _image(self, response: StreamedResponse, said: dict[str, Any]) -> Preview:
        """What was said, and the image, kept as a medium of ours."""
        measured: dict[str, Any] = {}

        async def measure(path: Path) -> str:
            measured.update(json.loads(await self._workers.run("measure", path)))
            return str(measured["type"])

        body: AsyncIterator[bytes] = response.chunks(self._max_image)
        media_id, size = await self._local.keep_image(body, measure)
        content = {
            **said,
            "og:image": f"mxc://{self._our_name}/{media_id}",
            "og:image:type": measured["type"],
            "og:image:width": measured["width"],
            "og:image:height": measured["height"],
            "matrix:image:size": size,
        }
        return Preview(content, media_id, size)

    async def _make_room(self) -> None:
        count, size = await url_previews.usage(self._db)
        while (count > MAX_PREVIEWS or size > self._cache_size) and (dropped := await self._drop(None)):
            count -= len(dropped)
            size -= sum(preview.image_size for preview in dropped)

    async def _drop(self, expired_before_ms: int | None) -> list[Preview]:
        """Forget some, and delete their images."""
        dropped = await url_previews.drop_oldest(self._db, DROPPED_AT_ONCE, expired_before_ms)
        for preview in dropped:
            if preview.media_id is not None:
                await self._local.delete(preview.media_id)
        return dropped


async def _first_of(response: StreamedResponse, file: NewFile) -> None:
    """The first MAX_PAGE bytes; the rest is not read."""
    async for chunk in response.chunks(2 * MAX_PAGE):
        await file.write(chunk[: MAX_PAGE - file.size])
        if file.size >= MAX_PAGE:
            break
    await file.flush()
