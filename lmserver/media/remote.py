"""Media of other servers: fetched whole, checked, kept in a bounded cache
(SS API §Content Repository).

Nothing is served before all of it has come. However many ask for a medium at once, one fetch is
made; a server may be slow, but only so many fetches wait for it and each has an end.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from lmserver.federation_client.client import FederationClient, quote_path
from lmserver.federation_client.errors import FederationError, RemoteError, ResponseTooLarge
from lmserver.federation_client.single_flight import SingleFlight
from lmserver.federation_client.streaming import StreamedResponse
from lmserver.media import outcomes
from lmserver.media.files import MediaFiles
from lmserver.media.multipart import BadMultipart, Reader, boundary_of
from lmserver.media.naming import name_in, safe_name, safe_type
from lmserver.storage import media
from lmserver.storage.database import Database
from lmserver.storage.media import Content
from lmserver.web.slots import Busy, Slots

log = structlog.get_logger(__name__)

FETCH_SECONDS = 300.0
FRAME_BYTES = 64 * 1024
"""What multipart may add to a file."""

FETCHES = 32
FETCHES_FOR_EACH_SERVER = 4
WAITING_FOR_EACH_SERVER = 96
WAITING = 1000
WAIT_SECONDS = 60.0
FAILURE_SECONDS = 30.0
MAX_FAILURES = 10_000
USED_AGAIN_MS = 3600 * 1000
EVICTED_AT_ONCE = 100
HEADER_SECONDS = 30.0


class RemoteMedia:
    """`max_size` is bytes for each medium, `cache_size` bytes for all of them; one that nobody asks for is
    kept `keep_ms`, or as long as there is room for it."""

    def __init__(
        self,
        db: Database,
        client: FederationClient,
        files: MediaFiles,
        max_size: int,
        cache_size: int,
        clock: Callable[[], int],
        keep_ms: int | None = None,
    ) -> None:
        self._keep_ms = keep_ms
        self._db = db
        self._client = client
        self._files = files
        self._max_size = max_size
        self._cache_size = cache_size
        self._clock = clock
        self._flights: SingleFlight[Content] = SingleFlight()
        self._slots = Slots()
        self._failures: OrderedDict[tuple[str, str], tuple[float, outcomes.MediaError]] = OrderedDict()
        self._unchecked = cache_size

    async def find(self, server: str, media_id: str, wait_seconds: float) -> Content:
        """The medium, from the cache or its server.

        Raises NotFound, NotYetUploaded, TooLarge, Unavailable or DiskFull.
        """
        found = await media.cached(self._db, server, media_id)
        if found is not None and found.quarantined:
            raise outcomes.NotFound("Media not found")
        if found is not None and await self._files.has(found.sha256, found.size):
            now = self._clock()
            await media.touch(self._db, server, media_id, now, now - USED_AGAIN_MS)
            return found
        self._check_failures(server, media_id)
        return await self._flights.run(
            f"{server}/{media_id}", lambda: self._fetch(server, media_id, wait_seconds)
        )

    async def tidy(self) -> None:
        """Remove copies kept long enough, files that nobody finished, and those whose row a crash has
        prevented: the cache is counted by its rows."""
        if self._keep_ms is not None:
            await self.purge_unused(self._clock() - self._keep_ms)
        await self._files.tidy()
        await self._files.sweep(lambda hashes: media.not_cached(self._db, hashes))

    async def thumbnail_made(self, server: str, media_id: str, size: int) -> None:
        """A thumbnail of so many bytes stands beside the copy: it is part of the cache."""
        await media.add_thumbnail(self._db, server, media_id, size)
        await self._evict(size)

    async def purge_unused(self, before_ms: int) -> int:
        """Delete the copies that nobody has asked for since; how many there were."""
        count = 0
        while unused := await media.cached_unused_since(self._db, before_ms, EVICTED_AT_ONCE):
            for medium in unused:
                await self.delete(medium.server, medium.media_id)
            count += len(unused)
        return count

    async def delete(self, server: str, media_id: str) -> bool:
        """Delete a copy, its row first: a crash leaves a file for `tidy`. It is fetched again when
        somebody asks for it."""
        sha256 = await media.forget(self._db, server, media_id)
        if sha256 is not None:
            await self._files.delete(sha256, self._unused)
        return sha256 is not None

    async def close(self) -> None:
        """End the fetches."""
        await self._flights.close()

    # -- fetching ----------------------------------------------------------------------------------

    async def _fetch(self, server: str, media_id: str, wait_seconds: float) -> Content:
        try:
            async with self._turn(server), asyncio.timeout(FETCH_SECONDS):
                content = await self._ask(server, media_id, wait_seconds)
        except Busy:
            raise outcomes.Unavailable("Too many media of this server are being fetched") from None
        except (FederationError, BadMultipart, TimeoutError) as error:
            failure = _outcome(error)
            log.info("media_not_fetched", server=server, reason=str(error)[:200], kind=type(failure).__name__)
            self._remember(server, media_id, failure)
            raise failure from error
        await self._evict(content.size)
        return content

    @asynccontextmanager
    async def _turn(self, server: str) -> AsyncIterator[None]:
        """So many fetches at once, so many of them from one server. Raises Busy."""
        each, waiting = FETCHES_FOR_EACH_SERVER, WAITING_FOR_EACH_SERVER
        async with (
            self._slots.hold(server, each, waiting, WAIT_SECONDS),
            self._slots.hold("", FETCHES, WAITING, WAIT_SECONDS),
        ):
            yield

    async def _ask(self, server: str, media_id: str, wait_seconds: float) -> Content:
        query = {"timeout_ms": str(int(wait_seconds * 1000))}
        path = "/_matrix/federation/v1/media/download" + quote_path(media_id)
        timeout = HEADER_SECONDS + wait_seconds
        try:
            async with self._client.stream(server, path, query=query, timeout=timeout) as response:
                return await self._multipart(server, media_id, response)
        except RemoteError as error:
            if not error.unknown_endpoint:
                raise
        # Before Matrix 1.11 servers asked for media as clients did (CS API §Content repository).
        path = "/_matrix/media/v3/download" + quote_path(server, media_id)
        query["allow_remote"] = "false"
        async with self._client.stream(server, path, query=query, timeout=timeout) as response:
            return await self._plain(server, media_id, response)

    async def _multipart(self, server: str, media_id: str, response: StreamedResponse) -> Content:
        boundary = boundary_of(response.content_type)
        reader = Reader(boundary, response.chunks(self._max_size + FRAME_BYTES))
        headers = await reader.second_part()
        location = headers.get("location")
        if location is not None:
            async with self._client.stream_url(location, plain=self._client.is_plain(server)) as elsewhere:
                return await self._plain(server, media_id, elsewhere)
        name = name_in(headers.get("content-disposition"))
        return await self._keep(server, media_id, reader.content(), headers.get("content-type"), name)

    async def _plain(self, server: str, media_id: str, response: StreamedResponse) -> Content:
        body, name = response.chunks(self._max_size), name_in(response.disposition)
        return await self._keep(server, media_id, body, response.content_type, name)

    async def _keep(
        self, server: str, media_id: str, body: AsyncIterator[bytes], type_: str | None, name: str | None
    ) -> Content:
        """The body as a file and a row; neither unless all of it has come."""
        async with self._files.writing() as file:
            async for chunk in body:
                await file.write(chunk)
                if file.size > self._max_size:
                    raise ResponseTooLarge("response is too large")

            async def record(sha256: bytes) -> Content:
                content = Content(sha256, file.size, safe_type(type_), safe_name(name))
                await media.cache(self._db, server, media_id, content, self._clock())
                return content

            return await file.keep(record)

    # -- what failed a moment ago ------------------------------------------------------------------

    def _check_failures(self, server: str, media_id: str) -> None:
        until, failure = self._failures.get((server, media_id), (0.0, None))
        if failure is not None and until > asyncio.get_running_loop().time():
            raise type(failure)(str(failure))

    def _remember(self, server: str, media_id: str, failure: outcomes.MediaError) -> None:
        if isinstance(failure, outcomes.NotYetUploaded):
            return
        until = asyncio.get_running_loop().time() + FAILURE_SECONDS
        self._failures[server, media_id] = (until, failure)
        self._failures.move_to_end((server, media_id))
        if len(self._failures) > MAX_FAILURES:
            self._failures.popitem(last=False)

    # -- the cache's size --------------------------------------------------------------------------

    async def _evict(self, added: int) -> None:
        """Remove what was used longest ago while the cache is too large. The sum over all of it is
        taken once in every sixteenth of the cache's size."""
        self._unchecked += added
        if self._unchecked * 16 < self._cache_size:
            return
        self._unchecked = 0
        excess = await media.cached_bytes(self._db) - self._cache_size
        while excess > 0 and (oldest := await media.least_used(self._db, EVICTED_AT_ONCE)):
            for medium in oldest:
                if excess > 0:
                    await self.delete(medium.server, medium.media_id)
                    excess -= medium.size

    async def _unused(self, sha256: bytes) -> bool:
        return bool(await media.not_cached(self._db, [sha256]))


def _outcome(error: Exception) -> outcomes.MediaError:
    if isinstance(error, RemoteError):
        if error.errcode == "M_NOT_YET_UPLOADED":
            return outcomes.NotYetUploaded("The media has not been uploaded yet")
        if error.errcode == "M_TOO_LARGE":
            return outcomes.TooLarge("The media is too large to be fetched")
        if error.status == 404:
            return outcomes.NotFound("Media not found")
    if isinstance(error, ResponseTooLarge):
        return outcomes.TooLarge("The media is too large to be fetched")
    return outcomes.Unavailable("The media cannot be fetched from its server")
