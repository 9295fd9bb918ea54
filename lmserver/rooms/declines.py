"""Leaves their hub could not be told of: invites declined and knocks taken back while it was away.

They are not sent as other events of ours are, unchanged until somebody takes them: the user may be
invited again, knock or join before the hub is back, and an old leave must not undo that. What
remains to be told stands in the membership itself, so whatever replaces that cancels it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

from lmserver.federation_client.errors import FederationError, RemoteError
from lmserver.federation_client.room_api import RoomApi
from lmserver.protocol import canonical_json
from lmserver.protocol.events import Lpdu, parse_lpdu
from lmserver.protocol.room_versions import room_version
from lmserver.rooms.background import repeat
from lmserver.storage import outside
from lmserver.storage.database import Database
from lmserver.storage.outside import Untold

POLL_SECONDS: Final = 5.0
TELL_SECONDS: Final = 10.0
"""A user who declines an invite waits no longer for a hub that does not answer."""
FIRST_PAUSE_MS: Final = 5_000
MAX_PAUSE_MS: Final = 3_600_000
MAX_TRIES: Final = 100
"""About four days, after which a pending invite is the hub's own business."""
BATCH: Final = 50
CLAIM_MS: Final = 300_000


class Answer(Enum):
    """What a hub made of a leave: settled it (took it, or has no way to take any), refused it, or
    gave no answer of its own."""

    SETTLED = "settled"
    REFUSED = "refused"
    NONE = "none"


class Declines:
    """Tells hubs, when they are back, who has left."""

    def __init__(self, db: Database, api: RoomApi, clock: Callable[[], int]) -> None:
        self._db = db
        self._api = api
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled."""
        await repeat("declines", POLL_SECONDS, self.check)

    async def check(self) -> int:
        """Tell everything that is due; returns how many that were."""
        now = self._clock()
        due = await outside.claim_untold(self._db, now, now + CLAIM_MS, BATCH)
        by_hub: dict[str, list[Untold]] = {}
        for leave in due:
            by_hub.setdefault(leave.hub_server, []).append(leave)
        await asyncio.gather(*(self._tell_hub(waiting) for waiting in by_hub.values()))
        return len(due)

    async def _tell_hub(self, waiting: Sequence[Untold]) -> None:
        """One after the other; a hub that is away is away for all."""
        away = False
        for leave in waiting:
            if not away:
                fields = canonical_json.parse_object(leave.lpdu)
                answer = await tell(self._api, parse_lpdu(fields, room_version(leave.room_version)))
                away = answer is Answer.NONE
            if away and leave.tries < MAX_TRIES:
                pause = min(FIRST_PAUSE_MS << min(leave.tries, 20), MAX_PAUSE_MS)
                await outside.tell_later(self._db, leave, self._clock() + pause)
            else:
                await outside.told(self._db, leave)


async def tell(api: RoomApi, leave: Lpdu) -> Answer:
    """Tell the hub that the LPDU names, by make and send."""
    hub = leave.hub_server or ""
    try:
        async with asyncio.timeout(TELL_SECONDS):
            await api.make_membership(hub, "leave", leave.room_id, leave.sender, ())
            await api.send_leave(hub, leave.version.id, leave.event_id, leave.fields)
    except RemoteError as error:
        if error.unknown_endpoint:
            return Answer.SETTLED
        # Not 401: it had not got our keys, perhaps.
        return Answer.REFUSED if error.status in (400, 403, 404, 405) else Answer.NONE
    except (FederationError, TimeoutError):
        return Answer.NONE
    return Answer.SETTLED
