"""Following a rotation of our own key while the server runs, and after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from lmserver.config import ConfigError
from lmserver.federation_client import key_news, resigning
from lmserver.own_keys import OwnKeys
from lmserver.storage import room_state
from lmserver.storage.database import Database, DatabaseUnavailable

FILE_SECONDS: Final = 1.0
BEING_STORED_SECONDS: Final = 5.0
"""What was signed just before a rotation has reached the database by then."""
TOLD_MS: Final = 12 * 3600 * 1000
"""So long others may believe in a key that has leaked since: as long as we say that keys are valid."""
MAX_TOLD: Final = 10_000

log = structlog.get_logger(__name__)


class KeyKeeper:
    """Keeps `keys`, and what depends on them, as the key file says."""

    def __init__(
        self, keys: OwnKeys, db: Database, client: key_news.Requests, clock: Callable[[], int]
    ) -> None:
        self._keys = keys
        self._db = db
        self._client = client
        self._clock = clock
        self._telling: asyncio.Task[object] | None = None

    async def begin(self) -> None:
        """Before anything is sent: catch up with a rotation while we were away."""
        await self._apply()

    async def watch(self) -> None:
        """Notice a rotation within a second, until cancelled."""
        try:
            while True:
                await asyncio.sleep(FILE_SECONDS)
                try:
                    if self._keys.follow(self._clock()):
                        await self._rotated()
                except (ConfigError, OSError) as error:
                    log.error("signing_key_not_followed", error=str(error))
                except DatabaseUnavailable:
                    log.error("waiting_events_not_signed_again")
        finally:
            if self._telling is not None:
                self._telling.cancel()

    async def _rotated(self) -> None:
        log.info("signing_key_rotated", key_id=self._keys.signing.key_id)
        await self._apply()
        await asyncio.sleep(BEING_STORED_SECONDS)
        await resigning.sign_waiting(self._db, self._keys.signing, list(self._keys.old))

    async def _apply(self) -> None:
        since = self._clock() - TOLD_MS
        if any(old.leaked and old.expired_ts > since for old in self._keys.old.values()):
            ours = self._keys.signing.server_name
            servers = await room_state.joined_servers(self._db, ours, MAX_TOLD)
            if self._telling is not None:
                self._telling.cancel()
            self._telling = asyncio.create_task(key_news.tell(self._client, servers), name="leaked key")
        signed = await resigning.sign_waiting(self._db, self._keys.signing, list(self._keys.old))
        if signed:
            log.info("waiting_events_signed_again", events=signed)
