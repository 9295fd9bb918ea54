"""Thumbnails: a few sizes of each image, made when first asked for and kept beside its file
(CS API §Thumbnails)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from lmserver.federation_client.single_flight import SingleFlight
from lmserver.media import outcomes
from lmserver.media.files import DiskFull, MediaFiles
from lmserver.media.workers import JobRefused, Workers
from lmserver.storage.media import Content

log = structlog.get_logger(__name__)

MAX_SOURCE = 50_000_000
"""Bytes of an image that is given to a decoder."""

MAX_SIDE = 1 << 16


@dataclass(frozen=True, slots=True)
class Size:
    """Pixels: the image within them, or `crop`ped to them."""

    width: int
    height: int
    crop: bool


CROPPED = (Size(32, 32, True), Size(96, 96, True))
SCALED = (Size(320, 240, False), Size(640, 480, False), Size(800, 600, False))


def snapped(width: int, height: int, *, crop: bool) -> Size:
    """The size made for who asks for this one: the smallest that covers it, or the largest there is."""
    sizes = CROPPED + SCALED if crop else SCALED
    return next((s for s in sizes if s.width >= width and s.height >= height), SCALED[-1])


def thumbnail_query(query: Mapping[str, str]) -> tuple[Size, bool]:
    """The size, and whether it should move, that a request asks for. Raises ValueError."""
    sides = []
    for name in ("width", "height"):
        value = query.get(name, "")
        if not (value.isascii() and value.isdigit() and len(value) < 8 and 0 < int(value) <= MAX_SIDE):
            raise ValueError(f"{name} is a number of pixels")
        sides.append(int(value))
    method, animated = query.get("method", "scale"), query.get("animated", "false")
    if method not in ("scale", "crop"):
        raise ValueError("method is scale or crop")
    if animated not in ("true", "false"):
        raise ValueError("animated is true or false")
    return snapped(sides[0], sides[1], crop=method == "crop"), animated == "true"


class Thumbnails:
    """Makes and keeps them. However many ask for one at once, it is made once."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._flights: SingleFlight[bytes] = SingleFlight()

    async def get(
        self,
        files: MediaFiles,
        source: Content,
        size: Size,
        *,
        animated: bool,
        made: Callable[[int], Awaitable[None]] | None = None,
    ) -> tuple[bytes, str]:
        """The thumbnail and its Content-Type. `made` is told the bytes of one that was not there before.

        Raises NoThumbnail, TooLarge, or WorkersBusy when it cannot be made just now.
        """
        if source.size > MAX_SOURCE:
            raise outcomes.TooLarge("Content is too large to thumbnail")
        suffix = f"{size.width}x{size.height}-{'crop' if size.crop else 'scale'}{'-moving' * animated}"
        data = await files.derived(source.sha256, suffix)
        if data is None:
            data = await self._flights.run(
                f"{files.path_of(source.sha256)}.{suffix}",
                lambda: self._make(files, source.sha256, suffix, size, animated, made),
            )
        if not data:
            raise outcomes.NoThumbnail("Cannot generate thumbnails for the requested content")
        return data, _type_of(data)

    async def close(self) -> None:
        """End what is being made, and the processes that make it."""
        await self._flights.close()
        await self._workers.close()

    async def _make(
        self,
        files: MediaFiles,
        sha256: bytes,
        suffix: str,
        size: Size,
        animated: bool,
        made: Callable[[int], Awaitable[None]] | None,
    ) -> bytes:
        """Nothing at all is kept for what cannot be decoded, so that it is tried once."""
        try:
            data = await self._workers.run(
                "thumbnail",
                files.path_of(sha256),
                width=size.width,
                height=size.height,
                crop=size.crop,
                animated=animated,
            )
        except JobRefused:
            data = b""
        try:
            await files.keep_derived(sha256, suffix, data)
            if made is not None:
                await made(len(data))
        except DiskFull:
            log.warning("thumbnail_not_kept", sha256=sha256.hex())
        return data


async def blocks(data: bytes) -> AsyncGenerator[bytes, None]:
    """A body of one block."""
    yield data


def _type_of(data: bytes) -> str:
    """Of what our own encoders wrote."""
    if data.startswith(b"\xff\xd8"):
        return "image/jpeg"
    return "image/webp" if data.startswith(b"RIFF") else "image/png"
