"""Images made small by Pillow: a few formats, so many pixels, no metadata.

What an image claims to be is read from its first bytes, before any decoder sees it.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from typing import BinaryIO

# Those Pillow would import when it needs them, and may not under the limits of a child.
from PIL import (
    GifImagePlugin,
    Image,
    ImageOps,
    ImageSequence,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

try:
    from PIL import AvifImagePlugin
except ImportError:  # a Pillow built without it
    HAS_AVIF = False
else:
    HAS_AVIF = True
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_PLUGINS = (
    GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin,
)  # fmt: skip

MAX_PIXELS = 50_000_000
MAX_SIDE = 65_500
MAX_FRAMES = 200
MAX_FRAME_PIXELS = 30_000_000
"""Of all frames of a moving thumbnail together."""

MAX_DECODED_PIXELS = 400_000_000
"""Of all frames of a moving image together, at its own size."""

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)


class Refused(Exception):
    """Not an image that we decode."""


def thumbnail(path: str, width: int, height: int, crop: bool, animated: bool) -> bytes:
    """The image in `width` times `height` pixels: within them, or `crop`ped to them; never enlarged.

    A JPEG, or a PNG of what has transparent parts, or a WebP of what moves if `animated` is asked
    for. Raises Refused.
    """
    with open(path, "rb") as file:
        try:
            image = _opened(file)
            if animated and getattr(image, "is_animated", False):
                moving = _moving(image, width, height, crop)
                if moving is not None:
                    return moving
                image.seek(0)
            return _still(image, width, height, crop)
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError, TypeError, KeyError) as error:
            raise Refused from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise Refused from error


def measure(path: str) -> bytes:
    """JSON of what the image is: `type`, `width`, `height`; only its header is decoded. Raises Refused."""
    with open(path, "rb") as file:
        try:
            image = _opened(file)
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError, TypeError, KeyError) as error:
            raise Refused from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise Refused from error
        kind = "JPEG" if image.format == "MPO" else image.format or ""
        found = {"type": f"image/{kind.lower()}", "width": image.width, "height": image.height}
    return json.dumps(found).encode()


def _opened(file: BinaryIO) -> Image.Image:
    """The image with its header read; its pixels are not decoded yet."""
    head = file.read(64)
    kind = _kind(head)
    claimed = _claimed_size(kind, head)
    if claimed is not None:
        _check_size(*claimed)
    file.seek(0)
    image = Image.open(file, formats=(kind,))
    _check_size(image.width, image.height)
    return image


def _kind(head: bytes) -> str:
    """The format, by its first bytes. Raises Refused for all but those on the list."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if HAS_AVIF and head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "AVIF"
    raise Refused


def _claimed_size(kind: str, head: bytes) -> tuple[int, int] | None:
    """Width and height, where they stand at the beginning of a file."""
    if kind == "PNG":
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if kind == "GIF":
        return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if kind == "WEBP" and head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    return None


def _check_size(width: int, height: int) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise Refused


def _still(image: Image.Image, width: int, height: int, crop: bool) -> bytes:
    image.draft("RGB", (2 * max(width, height),) * 2)  # a JPEG is decoded no larger than is needed
    turned = ImageOps.exif_transpose(_plain(image))
    small = _resized(turned, width, height, crop)
    out = io.BytesIO()
    if _has_alpha(small):
        small.save(out, "PNG", optimize=False)
    else:
        small.convert("RGB").save(out, "JPEG", quality=80)
    return out.getvalue()


def _moving(image: Image.Image, width: int, height: int, crop: bool) -> bytes | None:
    """All frames; None for so many that the first one has to do."""
    frames: list[Image.Image] = []
    times: list[int] = []
    pixels = 0
    for frame in _frames(image):
        small = _resized(frame.convert("RGBA"), width, height, crop)
        pixels += small.width * small.height
        if len(frames) >= MAX_FRAMES or pixels > MAX_FRAME_PIXELS:
            return None
        if image.width * image.height * (len(frames) + 1) > MAX_DECODED_PIXELS:
            return None
        frames.append(small)
        times.append(max(20, int(frame.info.get("duration", 100) or 100)))
    out = io.BytesIO()
    loop = image.info.get("loop", 1)
    frames[0].save(
        out, "WEBP", save_all=True, append_images=frames[1:], duration=times, loop=loop, quality=75, method=1
    )
    return out.getvalue()


def _frames(image: Image.Image) -> Iterator[Image.Image]:
    yield from ImageSequence.Iterator(image)


def _plain(image: Image.Image) -> Image.Image:
    """In a mode that can be resized well: RGB, or RGBA."""
    exif = image.getexif()
    plain = image.convert("RGBA" if _has_alpha(image) else "RGB")
    # The way up is all that is kept of the metadata, and only until it is applied.
    plain.info = {}
    plain.getexif()[0x0112] = exif.get(0x0112, 1)
    return plain


def _has_alpha(image: Image.Image) -> bool:
    return "A" in image.mode or "transparency" in image.info or image.mode in ("La", "PA")


def _resized(image: Image.Image, width: int, height: int, crop: bool) -> Image.Image:
    image.info = {}
    if crop:
        side = min(width / height, image.width / image.height)
        box = (min(width, image.width), min(height, image.height))
        return ImageOps.fit(image, box, Image.Resampling.LANCZOS) if side > 0 else image
    image.thumbnail((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return image


__all__ = ["HAS_AVIF", "Refused", "measure", "thumbnail"]
