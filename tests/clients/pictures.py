"""A picture to send: big enough to be shown smaller."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image, ImageDraw

SIZE = (640, 360)
SEA = 220


def lighthouse() -> str:
    """A PNG of a lighthouse by the sea, in Base64."""
    picture = Image.new("RGB", SIZE)
    draw = ImageDraw.Draw(picture)
    for y in range(SIZE[1]):
        sky, sea = (255 - y // 4, 190 - y // 5, 140 + y // 3), (30, 145 - y // 4, 203 - y // 3)
        draw.line([(0, y), (SIZE[0], y)], fill=sky if y < SEA else sea)
    draw.pieslice([150, SEA - 40, 230, SEA + 40], 180, 360, fill=(255, 226, 150))
    draw.polygon([(380, 360), (430, 270), (560, 262), (640, 330), (640, 360)], fill=(60, 62, 66))
    for stripe in range(5):
        upper, lower, top = 10 + 2 * stripe, 12 + 2 * stripe, 100 + 34 * stripe
        corners = [(500 - upper, top), (500 + upper, top), (500 + lower, top + 34), (500 - lower, top + 34)]
        draw.polygon(corners, fill=(244, 240, 232) if stripe % 2 else (196, 52, 44))
    draw.rectangle([486, 76, 514, 100], fill=(255, 240, 170))
    draw.polygon([(480, 76), (500, 56), (520, 76)], fill=(70, 40, 40))
    written = BytesIO()
    picture.save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()
