"""What is known of each medium; the bytes are files named by their SHA-256 (`media/files.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmserver.storage.database import Executor


@dataclass(frozen=True, slots=True)
class Content:
    """A medium that is here whole: `sha256` is 32 bytes, `size` in bytes, `filename` for people.
    One that is `quarantined` by an operator is given to nobody."""

    sha256: bytes
    size: int
    content_type: str
    filename: str | None
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class LocalMedium:
    """`content` is None while it is announced and not uploaded."""

    media_id: str
    user_id: str
    created_ts: int
    used_ts: int
    content: Content | None


@dataclass(frozen=True, slots=True)
class CachedMedium:
    """A copy of another server's medium; `size` with its thumbnails."""

    server: str
    media_id: str
    sha256: bytes
    size: int


def _content(row: Any) -> Content:
    return Content(
        bytes(row["sha256"]), row["size"], row["content_type"], row["filename"], row["quarantined"]
    )


def _local(row: Any) -> LocalMedium:
    content = None if row["sha256"] is None else _content(row)
    return LocalMedium(row["media_id"], row["user_id"], row["created_ts"], row["used_ts"], content)


# -- media of our users -----------------------------------------------------------------------------


async def announce(db: Executor, media_id: str, user_id: str, now_ms: int) -> None:
    """A media ID whose content comes later."""
    await db.execute(
        "INSERT INTO local_media (media_id, user_id, created_ts, used_ts) VALUES ($1, $2, $3, $3)",
        media_id,
        user_id,
        now_ms,
    )


async def pending(db: Executor, user_id: str, since_ms: int) -> int:
    """How many of the user's announced media still wait for their content."""
    found: int = await db.fetchval(
        "SELECT count(*) FROM local_media WHERE user_id = $1 AND sha256 IS NULL AND created_ts >= $2",
        user_id,
        since_ms,
    )
    return found


async def used_bytes(db: Executor, user_id: str) -> int:
    """The bytes of everything the user has uploaded."""
    found: int = await db.fetchval(
        "SELECT coalesce(sum(size), 0)::bigint FROM local_media WHERE user_id = $1", user_id
    )
    return found


async def fill(db: Executor, media_id: str, content: Content) -> bool:
    """Give an announced medium its content; False when it has one already, or is gone."""
    done = await db.execute(
        "UPDATE local_media SET sha256 = $2, size = $3, content_type = $4, filename = $5"
        " WHERE media_id = $1 AND sha256 IS NULL",
        media_id,
        content.sha256,
        content.size,
        content.content_type,
        content.filename,
    )
    return done == "UPDATE 1"


async def local(db: Executor, media_id: str) -> LocalMedium | None:
    row = await db.fetchrow(
        "SELECT media_id, user_id, created_ts, used_ts, sha256, size, content_type, filename, quarantined"
        " FROM local_media WHERE media_id = $1",
        media_id,
    )
    return None if row is None else _local(row)


async def touch_local(db: Executor, media_id: str, now_ms: int) -> None:
    """It was used."""
    await db.execute("UPDATE local_media SET used_ts = $2 WHERE media_id = $1", media_id, now_ms)


async def delete_local(db: Executor, media_id: str) -> LocalMedium | None:
    """Forget one of our media; what it was, None for one that is not there. Its file may be another's too."""
    row = await db.fetchrow(
        "DELETE FROM local_media WHERE media_id = $1 RETURNING media_id, user_id, created_ts, used_ts,"
        " sha256, size, content_type, filename, quarantined",
        media_id,
    )
    return None if row is None else _local(row)


async def list_local(
    db: Executor, user_id: str | None, limit: int, after: tuple[int, str] = (0, "")
) -> list[LocalMedium]:
    """What a user, or anybody, has uploaded, the oldest first, from behind `after`: the `created_ts` and
    `media_id` of the last one seen."""
    rows = await db.fetch(
        "SELECT media_id, user_id, created_ts, used_ts, sha256, size, content_type, filename, quarantined"
        " FROM local_media WHERE ($1::text IS NULL OR user_id = $1) AND sha256 IS NOT NULL"
        " AND (created_ts, media_id) > ($2, $3) ORDER BY created_ts, media_id LIMIT $4",
        user_id,
        *after,
        limit,
    )
    return [_local(row) for row in rows]


async def local_unused_since(db: Executor, before_ms: int, limit: int) -> list[LocalMedium]:
    """Ours that nobody has asked for since, those used longest ago first; hidden ones are kept."""
    rows = await db.fetch(
        "SELECT media_id, user_id, created_ts, used_ts, sha256, size, content_type, filename, quarantined"
        " FROM local_media WHERE sha256 IS NOT NULL AND used_ts < $1 AND NOT quarantined"
        " ORDER BY used_ts LIMIT $2",
        before_ms,
        limit,
    )
    return [_local(row) for row in rows]


async def not_local(db: Executor, hashes: list[bytes]) -> list[bytes]:
    """Those of the hashes that none of our media has."""
    rows = await db.fetch(
        "SELECT h FROM unnest($1::bytea[]) AS h"
        " WHERE NOT EXISTS (SELECT FROM local_media AS m WHERE m.sha256 = h)",
        hashes,
    )
    return [bytes(row["h"]) for row in rows]


async def quarantine_local(db: Executor, media_id: str, *, hidden: bool) -> bool:
    """Hide one of our media from everybody, or show it again; False for one that is not there, or that is
    protected from being hidden."""
    done = await db.execute(
        "UPDATE local_media SET quarantined = $2 WHERE media_id = $1 AND NOT ($2 AND protected)",
        media_id,
        hidden,
    )
    return done == "UPDATE 1"


async def quarantine_of_user(db: Executor, user_id: str) -> int:
    """Hide everything a user has uploaded that is not protected; how much that was."""
    done = await db.execute(
        "UPDATE local_media SET quarantined = true WHERE user_id = $1 AND sha256 IS NOT NULL"
        " AND NOT protected AND NOT quarantined",
        user_id,
    )
    return int(done.rsplit(" ", 1)[1])


async def protect(db: Executor, media_id: str, *, protected: bool) -> bool:
    """Keep one of our media from being hidden, or no longer; False for one that is not there."""
    done = await db.execute("UPDATE local_media SET protected = $2 WHERE media_id = $1", media_id, protected)
    return done == "UPDATE 1"


async def is_protected(db: Executor, media_id: str) -> bool:
    return await db.fetchval("SELECT protected FROM local_media WHERE media_id = $1", media_id) is True


async def page_of_user(db: Executor, user_id: str, start: int, limit: int) -> list[tuple[LocalMedium, bool]]:
    """What a user has uploaded, the newest first, with whether it is protected."""
    rows = await db.fetch(
        "SELECT media_id, user_id, created_ts, used_ts, sha256, size, content_type, filename, quarantined,"
        " protected FROM local_media WHERE user_id = $1 AND sha256 IS NOT NULL"
        " ORDER BY created_ts DESC, media_id OFFSET $2 LIMIT $3",
        user_id,
        start,
        limit,
    )
    return [(_local(row), row["protected"]) for row in rows]


async def count_of_user(db: Executor, user_id: str) -> int:
    found: int = await db.fetchval(
        "SELECT count(*) FROM local_media WHERE user_id = $1 AND sha256 IS NOT NULL", user_id
    )
    return found


async def local_to_delete(
    db: Executor, before_ms: int, larger_than: int, our_name: str, limit: int, *, keep_avatars: bool
) -> list[str]:
    """IDs of ours that nobody has asked for since and that are larger than so many bytes, the ones used
    longest ago first; with `keep_avatars` none that is a user's avatar."""
    rows = await db.fetch(
        "SELECT media_id FROM local_media AS m WHERE sha256 IS NOT NULL AND used_ts < $1 AND size > $2"
        " AND NOT ($3 AND EXISTS (SELECT FROM accounts AS a"
        " WHERE a.avatar_url = 'mxc://' || $4 || '/' || m.media_id)) ORDER BY used_ts LIMIT $5",
        before_ms,
        larger_than,
        keep_avatars,
        our_name,
        limit,
    )
    return [row["media_id"] for row in rows]


async def purge_pending(db: Executor, before_ms: int) -> None:
    """Forget what was announced and never uploaded."""
    await db.execute("DELETE FROM local_media WHERE sha256 IS NULL AND created_ts < $1", before_ms)


# -- copies of other servers' media -----------------------------------------------------------------


async def cached(db: Executor, server: str, media_id: str) -> Content | None:
    row = await db.fetchrow(
        "SELECT sha256, size, content_type, filename, quarantined FROM remote_media"
        " WHERE server = $1 AND media_id = $2",
        server,
        media_id,
    )
    return None if row is None else _content(row)


async def cache(db: Executor, server: str, media_id: str, content: Content, now_ms: int) -> None:
    """Remember a copy; the newest stands."""
    await db.execute(
        "INSERT INTO remote_media (server, media_id, sha256, size, content_type, filename, used_ts)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (server, media_id) DO UPDATE SET"
        " sha256 = excluded.sha256, size = excluded.size, content_type = excluded.content_type,"
        " filename = excluded.filename, used_ts = excluded.used_ts",
        server,
        media_id,
        content.sha256,
        content.size,
        content.content_type,
        content.filename,
        now_ms,
    )


async def touch(db: Executor, server: str, media_id: str, now_ms: int, unless_since_ms: int) -> None:
    """It was used; written only when the last note is older than `unless_since_ms`."""
    await db.execute(
        "UPDATE remote_media SET used_ts = $3 WHERE server = $1 AND media_id = $2 AND used_ts < $4",
        server,
        media_id,
        now_ms,
        unless_since_ms,
    )


async def quarantine_cached(db: Executor, server: str, media_id: str, *, hidden: bool) -> bool:
    """Hide a copy from everybody, or show it again; False for one that is not here. While it is hidden
    it is neither fetched again nor evicted."""
    done = await db.execute(
        "UPDATE remote_media SET quarantined = $3 WHERE server = $1 AND media_id = $2",
        server,
        media_id,
        hidden,
    )
    return done == "UPDATE 1"


async def add_thumbnail(db: Executor, server: str, media_id: str, size: int) -> None:
    """A thumbnail of so many bytes was made of the copy."""
    await db.execute(
        "UPDATE remote_media SET thumbnails_size = thumbnails_size + $3 WHERE server = $1 AND media_id = $2",
        server,
        media_id,
        size,
    )


async def cached_bytes(db: Executor) -> int:
    """What all copies take, with their thumbnails."""
    found: int = await db.fetchval(
        "SELECT coalesce(sum(size + thumbnails_size), 0)::bigint FROM remote_media"
    )
    return found


async def least_used(db: Executor, limit: int) -> list[CachedMedium]:
    rows = await db.fetch(
        "SELECT server, media_id, sha256, size + thumbnails_size AS size FROM remote_media"
        " WHERE NOT quarantined ORDER BY used_ts LIMIT $1",
        limit,
    )
    return [_cached(row) for row in rows]


async def cached_unused_since(db: Executor, before_ms: int, limit: int) -> list[CachedMedium]:
    """Copies that nobody has asked for since, those used longest ago first; hidden ones are kept."""
    rows = await db.fetch(
        "SELECT server, media_id, sha256, size + thumbnails_size AS size FROM remote_media"
        " WHERE used_ts < $1 AND NOT quarantined ORDER BY used_ts LIMIT $2",
        before_ms,
        limit,
    )
    return [_cached(row) for row in rows]


async def list_cached(
    db: Executor, server: str, limit: int, after: str = ""
) -> list[tuple[CachedMedium, Content]]:
    """The copies of a server's media, in the order of their IDs, from behind `after`."""
    rows = await db.fetch(
        "SELECT server, media_id, sha256, size, content_type, filename, quarantined FROM remote_media"
        " WHERE server = $1 AND media_id > $2 ORDER BY media_id LIMIT $3",
        server,
        after,
        limit,
    )
    return [(_cached(row), _content(row)) for row in rows]


async def not_cached(db: Executor, hashes: list[bytes]) -> list[bytes]:
    """Those of the hashes that no copy has."""
    rows = await db.fetch(
        "SELECT h FROM unnest($1::bytea[]) AS h"
        " WHERE NOT EXISTS (SELECT FROM remote_media AS m WHERE m.sha256 = h)",
        hashes,
    )
    return [bytes(row["h"]) for row in rows]


async def forget(db: Executor, server: str, media_id: str) -> bytes | None:
    """Forget a copy; the hash of its file, which may be another's too, or None."""
    sha256 = await db.fetchval(
        "DELETE FROM remote_media WHERE server = $1 AND media_id = $2 RETURNING sha256", server, media_id
    )
    return None if sha256 is None else bytes(sha256)


def _cached(row: Any) -> CachedMedium:
    return CachedMedium(row["server"], row["media_id"], bytes(row["sha256"]), row["size"])
