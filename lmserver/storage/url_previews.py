"""Previews of web pages, each kept for a while; so many, with images of so many bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class Preview:
    """`content` is None for a page there is no preview of; `media_id` is that of its image, one of ours."""

    content: dict[str, Any] | None
    media_id: str | None
    image_size: int


async def get(db: Executor, key: bytes, now_ms: int) -> Preview | None:
    """The preview kept under a key, unless it has expired."""
    row = await db.fetchrow(
        "SELECT content, media_id, image_size FROM url_previews WHERE key = $1 AND expires_ts > $2",
        key,
        now_ms,
    )
    if row is None:
        return None
    content = None if row["content"] is None else json.loads(row["content"])
    return Preview(content, row["media_id"], row["image_size"])


async def put(db: Executor, key: bytes, preview: Preview, expires_ts: int) -> str | None:
    """Keep a preview in place of the last one, whose image is returned: nobody refers to it any more."""
    content = None if preview.content is None else json.dumps(preview.content)
    old: str | None = await db.fetchval("SELECT media_id FROM url_previews WHERE key = $1", key)
    await db.execute(
        "INSERT INTO url_previews (key, content, media_id, image_size, expires_ts)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (key) DO UPDATE SET content = excluded.content,"
        " media_id = excluded.media_id, image_size = excluded.image_size, expires_ts = excluded.expires_ts",
        key,
        content,
        preview.media_id,
        preview.image_size,
        expires_ts,
    )
    return old


async def usage(db: Executor) -> tuple[int, int]:
    """How many previews there are, and the bytes of their images."""
    row = await db.fetchrow(
        "SELECT count(*) AS n, coalesce(sum(image_size), 0)::bigint AS b FROM url_previews"
    )
    return row["n"], row["b"]


async def drop_oldest(db: Executor, limit: int, expired_before_ms: int | None = None) -> list[Preview]:
    """Forget the previews that expire first, or that had expired; whose images nobody refers to then."""
    rows = await db.fetch(
        "DELETE FROM url_previews WHERE key IN (SELECT key FROM url_previews"
        " WHERE $2::bigint IS NULL OR expires_ts < $2 ORDER BY expires_ts LIMIT $1)"
        " RETURNING media_id, image_size",
        limit,
        expired_before_ms,
    )
    return [Preview(None, row["media_id"], row["image_size"]) for row in rows]


async def unreferenced_images(db: Executor, before_ms: int, limit: int) -> list[str]:
    """The server's own media, older than this, that no preview refers to: a crash came between."""
    rows = await db.fetch(
        "SELECT media_id FROM local_media AS m WHERE user_id = '' AND created_ts < $1"
        " AND NOT EXISTS (SELECT FROM url_previews AS p WHERE p.media_id = m.media_id) LIMIT $2",
        before_ms,
        limit,
    )
    return [row["media_id"] for row in rows]
