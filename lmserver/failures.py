"""What the layers below the endpoints raise when they cannot serve a request now, and the answer to it."""

from __future__ import annotations

from lmserver.rooms.outcomes import RoomBusy
from lmserver.rooms.own_lpdus import HubSilent
from lmserver.storage.database import DatabaseUnavailable
from lmserver.web.errors import ApiError

FAILURES: dict[type[Exception], ApiError] = {
    DatabaseUnavailable: ApiError(503, "M_UNKNOWN", "Try again in a moment", {"retry_after_ms": 2000}),
    RoomBusy: ApiError(
        429, "M_LIMIT_EXCEEDED", "Too many events wait for the room", {"retry_after_ms": 1000}
    ),
    HubSilent: ApiError(504, "M_UNKNOWN", "The room's hub has not answered yet"),
}
