"""Setting and removing pushers (CS API §Push Notifications, POST /pushers/set)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import orjson

from lmserver.protocol.canonical_json import JsonObject
from lmserver.storage import pushers
from lmserver.storage.database import Connection, Database
from lmserver.storage.pushers import Pusher, PusherKey

MAX_PUSHERS: Final = 50
"""Pushers of one user."""


class TooManyPushers(Exception):
    """The user has as many as anybody needs."""


class Followers(Protocol):
    """Who looks at rooms for users with pushers."""

    async def pushers_changed(self, user_id: str) -> None: ...


class Pushers:
    """One user's pushers; `shown` are their members as clients set and see them."""

    def __init__(self, db: Database, followers: Followers, clock: Callable[[], int]) -> None:
        self._db = db
        self._followers = followers
        self._clock = clock

    async def all(self, user_id: str) -> list[JsonObject]:
        return [orjson.loads(pusher.shown) for pusher in await pushers.of_user(self._db, user_id)]

    async def put(
        self, user_id: str, device_id: str, shown: dict[str, Any], url: str, *, append: bool
    ) -> None:
        """Add or replace; unless `append`, the same application and key of other users end, because the
        device has changed hands. Raises TooManyPushers."""
        key = PusherKey(user_id, shown["app_id"], shown["pushkey"])
        pusher = Pusher(key, orjson.dumps(shown), url, self._clock(), 0, 0)

        async def work(db: Connection) -> list[str]:
            known = [p.key for p in await pushers.of_user(db, user_id)]
            if key not in known and len(known) >= MAX_PUSHERS:
                raise TooManyPushers
            ended = [] if append else await pushers.others_of_key(db, key)
            for other in ended:
                await pushers.remove(db, other)
            await pushers.put(db, pusher, device_id)
            await pushers.follow_rooms(db, user_id)
            return [user_id, *(other.user_id for other in ended)]

        for changed in await self._db.run(work):
            await self._followers.pushers_changed(changed)

    async def remove(self, user_id: str, app_id: str, pushkey: str) -> None:
        key = PusherKey(user_id, app_id, pushkey)
        await self._db.run(lambda db: pushers.remove(db, key))
        await self._followers.pushers_changed(user_id)
