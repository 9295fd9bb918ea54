"""`lmserver media`: media, from the shell."""

from __future__ import annotations

import re
from typing import Final

from lmserver.commands.shell import MAX_SHOWN, failed, tell, when, with_database
from lmserver.composition import clock_ms
from lmserver.config import Config
from lmserver.media.files import MediaFiles
from lmserver.media.local import LocalMedia
from lmserver.storage import media
from lmserver.storage.database import Database

DAY_MS: Final = 24 * 3600 * 1000
AT_ONCE: Final = 100
_MXC: Final = re.compile(r"mxc://([^/\s]{1,255})/([^/\s?#]{1,255})")


def run(config: Config, action: str, which: str | None, days: float | None, *, copies: bool) -> int:
    """1 when it cannot be done, 2 for a wrong call."""
    match = _MXC.fullmatch(which or "")
    if action not in ("list", "purge") and match is None:
        tell("a medium is named like mxc://example.org/abc")
        return 2
    if action == "purge" and days is None:
        tell("purge wants --days")
        return 2

    async def work(db: Database) -> int:
        local = LocalMedia(db, MediaFiles(config.data_dir / "media" / "local"), None, clock_ms)
        if action == "list":
            return await _list(db, config.server_name, which or "")
        if action == "purge":
            before = clock_ms() - int((days or 0) * DAY_MS)
            count = await (_purge_copies(db, before) if copies else local.purge_unused(before))
            print(f"{count} media deleted")
            return 0
        server, media_id = (match[1], match[2]) if match else ("", "")
        ours = server == config.server_name
        if action == "delete":
            # A copy loses its row; the server removes files that no row names.
            done = (
                await local.delete(media_id) if ours else await media.forget(db, server, media_id) is not None
            )
        elif ours:
            done = await media.quarantine_local(db, media_id, hidden=action == "quarantine")
        else:
            done = await media.quarantine_cached(db, server, media_id, hidden=action == "quarantine")
        return 0 if done else failed("there is no such medium here, or it is protected")

    return with_database(config, work)


async def _list(db: Database, our_name: str, user: str) -> int:
    user_id = user if user.startswith("@") else f"@{user}:{our_name}"
    for medium, protected in await media.page_of_user(db, user_id, 0, MAX_SHOWN):
        content = medium.content
        if content is not None:
            marks = (" [hidden]" if content.quarantined else "") + (" [protected]" if protected else "")
            print(
                f"mxc://{our_name}/{medium.media_id} {content.size} bytes {content.content_type},"
                f" uploaded {when(medium.created_ts)}, used {when(medium.used_ts)}{marks}"
            )
    tell(f"{await media.count_of_user(db, user_id)} media of {user_id}")
    return 0


async def _purge_copies(db: Database, before_ms: int) -> int:
    count = 0
    while unused := await media.cached_unused_since(db, before_ms, AT_ONCE):
        for medium in unused:
            await media.forget(db, medium.server, medium.media_id)
        count += len(unused)
    return count
