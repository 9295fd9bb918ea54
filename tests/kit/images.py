"""Images for tests: what Pillow makes, and what it would never make."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def encoded(width: int, height: int, kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """A picture with a slope in it, so that every part of it differs."""
    image = Image.linear_gradient("L").resize((width, height)).convert(mode)
    return saved(image, kind, **options)


def moving(frames: int, kind: str = "GIF", size: tuple[int, int] = (200, 100)) -> bytes:
    images = [Image.new("RGB", size, (255 * n // frames, n % 2 * 255, 0)) for n in range(frames)]
    return saved(images[0], kind, save_all=True, append_images=images[1:], duration=50, loop=0)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def shape(data: bytes) -> tuple[str | None, tuple[int, int]]:
    """Format and size."""
    image = opened(data)
    return image.format, image.size


def png_claiming(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG of a few bytes that says it is this large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value))
        for name, value in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def gif_claiming(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff" + (
        b"," + struct.pack("<HHHH", 0, 0, width, height) + b"\0\x02\x02\x44\x01\0;"
    )  # fmt: skip
