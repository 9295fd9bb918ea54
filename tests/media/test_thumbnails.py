"""Thumbnails: few sizes, no metadata, decoded where it hurts nobody (attack M3)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image, features

from lmserver.media import outcomes, workers
from lmserver.media.files import MediaFiles
from lmserver.media.thumbnails import Size, Thumbnails, snapped
from lmserver.media.workers import Workers, WorkersBusy
from lmserver.storage.media import Content
from tests.kit.images import encoded, gif_claiming, moving, opened, png_claiming, saved, shape
from tests.kit.waiting import HANGS

SMALL = Size(320, 240, crop=False)
SQUARE = Size(96, 96, crop=True)


class Shop:
    """Thumbnails of what is put in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = MediaFiles(folder)
        self.workers = Workers()
        self.thumbnails = Thumbnails(self.workers)

    async def put(self, data: bytes) -> Content:
        async def record(sha256: bytes) -> Content:
            return Content(sha256, len(data), "image/png", None)

        async with self.files.writing() as file:
            await file.write(data)
            return await file.keep(record)

    async def of(self, data: bytes, size: Size = SMALL, *, animated: bool = False) -> bytes:
        source = await self.put(data)
        found, kind = await self.thumbnails.get(self.files, source, size, animated=animated)
        assert kind == f"image/{(opened(found).format or '').lower()}"
        return found


@pytest.fixture
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    for limit in ("JOB_SECONDS", "WAIT_SECONDS"):  # how fast pictures are read says nothing of the code
        monkeypatch.setattr(workers, limit, HANGS)
    made = Shop(tmp_path)
    yield made
    await made.thumbnails.close()


@pytest.mark.parametrize(
    ("asked", "crop", "given"),
    [
        ((1, 1), True, (32, 32, True)), ((33, 20), True, (96, 96, True)), ((97, 97), True, (320, 240, False)),
        ((1, 1), False, (320, 240, False)), ((320, 241), False, (640, 480, False)),
        ((641, 1), False, (800, 600, False)), ((60000, 60000), True, (800, 600, False)),
    ],
)  # fmt: skip
def test_only_a_few_sizes_are_made(asked: tuple[int, int], crop: bool, given: tuple[int, int, bool]) -> None:
    assert snapped(*asked, crop=crop) == Size(*given)


async def test_images_of_every_format_are_scaled_and_cropped(shop: Shop) -> None:
    kinds = ["PNG", "JPEG", "GIF", "WEBP", *(["AVIF"] if features.check("avif") else [])]
    for kind in kinds:
        data = encoded(1000, 500, kind)
        assert shape(await shop.of(data)) == ("JPEG", (320, 160)), kind
        assert shape(await shop.of(data, SQUARE)) == ("JPEG", (96, 96)), kind
    assert shape(await shop.of(encoded(40, 20))) == ("JPEG", (40, 20))
    assert shape(await shop.of(encoded(1, 9000))) == ("JPEG", (1, 240))
    clear = await shop.of(saved(Image.new("RGBA", (500, 500), (1, 2, 3, 0)), "PNG"))
    assert opened(clear).format == "PNG"
    assert opened(clear).getchannel("A").getextrema() == (0, 0)


async def test_a_thumbnail_stands_upright_and_says_nothing_of_its_origin(shop: Shop) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "SecretCamera"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    image = Image.new("RGB", (400, 100), "red")
    for kind in ("JPEG", "PNG", "WEBP"):
        data = saved(image, kind, exif=exif, icc_profile=b"SecretProfile")
        assert b"SecretCamera" in data
        small = await shop.of(data)
        assert opened(small).size == (60, 240), kind
        assert b"Secret" not in small
        assert not opened(small).getexif()


async def test_what_moves_does_so_only_when_asked(shop: Shop) -> None:
    for kind in ("GIF", "WEBP", "PNG"):
        data = moving(10, kind)
        assert shape(await shop.of(data)) == ("JPEG", (200, 100))
        small = opened(await shop.of(data, SQUARE, animated=True))
        assert (small.format, small.size, getattr(small, "n_frames", 1)) == ("WEBP", (96, 96), 10), kind
    assert shape(await shop.of(moving(250), animated=True)) == ("JPEG", (200, 100))  # too much of it
    assert shape(await shop.of(encoded(9, 9), animated=True)) == ("JPEG", (9, 9))


REFUSED = {
    "huge PNG": png_claiming(60_000, 60_000),
    "huge PNG that inflates": png_claiming(50_000, 50_000, bytes(50_000_000)),
    "long PNG": png_claiming(2_000_000_000, 1),
    "PNG without pixels": png_claiming(0, 0),
    "PNG with too few": png_claiming(100, 100, b"\0" * 10),
    "huge GIF": gif_claiming(65_535, 65_535),
    "huge JPEG": encoded(8, 8, "JPEG").replace(b"\0\x08\0\x08", b"\xff\xff\xff\xff", 1),
    "huge WebP": b"RIFF\x30\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xfe\xff\xff\xfe\xff\xff" + bytes(40),
    "half a PNG": encoded(500, 500)[:200],
    "half a JPEG": encoded(500, 500, "JPEG")[:900],
    "half a GIF": encoded(500, 500, "GIF")[:850],
    "half a WebP": encoded(500, 500, "WEBP")[:200],
    "PSD": b"8BPS\0\x01" + bytes(100),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "TIFF": saved(Image.new("RGB", (9, 9)), "TIFF"),
    "BMP": saved(Image.new("RGB", (9, 9)), "BMP"),
    "ICO": saved(Image.new("RGB", (16, 16)), "ICO"),
    "TGA": saved(Image.new("RGB", (9, 9)), "TGA"),
    "PDF": saved(Image.new("RGB", (9, 9)), "PDF"),
    "text": b"not really an image",
    "nothing": b"",
}


async def test_m3_bombs_and_other_formats_are_refused_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Huge dimensions, what is cut short, and what is not on the list; it is not tried again."""
    results = await asyncio.gather(*map(shop.of, REFUSED.values()), return_exceptions=True)
    wrong = [
        name for name, r in zip(REFUSED, results, strict=True) if not isinstance(r, outcomes.NoThumbnail)
    ]
    assert not wrong

    async def never(*_: object, **__: object) -> bytes:
        raise AssertionError("tried again")

    with monkeypatch.context() as patch:
        patch.setattr(shop.workers, "run", never)
        for data in REFUSED.values():
            with pytest.raises(outcomes.NoThumbnail):
                await shop.of(data)
    assert shape(await shop.of(encoded(9, 9))) == ("JPEG", (9, 9))
    with pytest.raises(outcomes.TooLarge):
        await shop.thumbnails.get(
            shop.files, Content(bytes(32), 50_000_001, "image/png", None), SMALL, animated=False
        )


async def test_m3_a_decoder_that_takes_all_memory_takes_nothing_along(shop: Shop) -> None:
    """An image within the limit of pixels that needs more memory than its process may have."""
    flat = saved(Image.new("RGB", (7000, 7000)), "WEBP", lossless=True, method=0)
    results = await asyncio.gather(
        shop.of(flat), *(shop.of(encoded(50 + n, 50)) for n in range(5)), return_exceptions=True
    )
    assert isinstance(results[0], outcomes.NoThumbnail | bytes)
    assert all(isinstance(result, bytes) for result in results[1:])


async def test_m3_a_decoder_that_takes_too_long_is_killed_alone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = saved(Image.effect_noise((4000, 4000), 90), "PNG", compress_level=1)
    quick = encoded(60, 60)
    await shop.of(quick, SQUARE)
    [first] = shop.workers._idle
    with monkeypatch.context() as patch:
        patch.setattr(workers, "JOB_SECONDS", 0.05)
        with pytest.raises(WorkersBusy):
            await shop.of(slow)
    assert first.returncode == -9
    assert not shop.workers._idle
    assert not list(shop.folder.glob("*/*/*.*x*"))[1:]  # nothing is remembered of it
    assert shape(await shop.of(quick)) == ("JPEG", (60, 60))
    assert len(shop.workers._idle) == 1


async def test_m3_only_so_many_wait_for_a_decoder(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WAITING", 2)
    jobs = [shop.of(encoded(900 + n, 900)) for n in range(8)]
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["WorkersBusy"] * 4 + ["bytes"] * 4
    assert len(shop.workers._idle) <= workers.PROCESSES


async def test_a_thumbnail_is_made_once_and_goes_with_its_file(shop: Shop) -> None:
    data = encoded(500, 500)
    assert len({*await asyncio.gather(*(shop.of(data) for _ in range(20)))}) == 1
    [kept] = shop.folder.glob("*/*/*.*")
    good = kept.read_bytes()
    kept.write_bytes(good[:-1])  # what has rotted is made again
    assert await shop.of(data) == good[32:]
    assert kept.read_bytes() == good
    source = await shop.put(data)

    async def unused(_: bytes) -> bool:
        return True

    await shop.files.delete(source.sha256, unused)
    assert not [path for path in shop.folder.rglob("*") if path.is_file()]
    left = kept.with_name("0" * 64 + ".320x240-scale")
    left.write_bytes(b"x")
    await shop.files.tidy()
    assert not left.exists()


async def test_workers_are_there_only_while_there_is_work(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not shop.workers._idle
    await shop.of(encoded(9, 9))
    [process] = shop.workers._idle
    monkeypatch.setattr(workers, "IDLE_SECONDS", 0.05)
    await shop.of(encoded(8, 8))
    assert await asyncio.wait_for(process.wait(), HANGS) == 0
    monkeypatch.setattr(workers, "IDLE_SECONDS", 2 * HANGS)
    os.environ["SECRET"] = "not for decoders"
    await shop.of(encoded(10, 10))
    [process] = shop.workers._idle
    assert b"SECRET" not in Path(f"/proc/{process.pid}/environ").read_bytes()
