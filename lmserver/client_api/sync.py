"""GET /sync over HTTP: the query, the filter, and nothing else (CS API §GET /sync)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from lmserver.client_api import room_requests as rooms
from lmserver.client_api.long_polls import LongPolls
from lmserver.protocol.canonical_json import JsonObject, parse
from lmserver.protocol.errors import ProtocolError
from lmserver.rooms.presence import STATES, Presence
from lmserver.rooms.sync.filters import BadFilter, SyncFilter, parse_sync_filter
from lmserver.rooms.sync.interval import SyncRequest
from lmserver.rooms.sync.sync import SyncService
from lmserver.rooms.sync.tokens import BadToken, SyncToken, parse_sync
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_param

MAX_FILTER = 64 * 1024
MAX_FILTER_ID = 64
MAX_FILTERS = 1_000
MAX_KEPT_FILTER = 2 * 1024
"""Inline filters kept parsed, and the longest that is."""
MAX_TIMEOUT_MS = 60_000

STATE_AFTER = {
    "use_state_after": "state_after",
    "org.matrix.msc4222.use_state_after": "org.matrix.msc4222.state_after",
}
"""Query parameters, and the sections they ask for."""

StoredFilter = Callable[[str, str], Awaitable[JsonObject | None]]
"""A filter a user stored: (user ID, filter ID)."""


class SyncEndpoints:
    """The long poll."""

    def __init__(
        self,
        service: SyncService,
        stored_filter: StoredFilter,
        presence: Presence,
        long_polls: LongPolls,
    ) -> None:
        self._service = service
        self._filters: OrderedDict[str, SyncFilter] = OrderedDict()
        self._presence = presence
        self._stored_filter = stored_filter
        self._long_polls = long_polls

    @endpoint("GET", "/_matrix/client/v3/sync", auth=Auth.USER, deadline=90)
    async def sync(self, request: Request) -> JsonObject:
        """What happened since `since`; waits up to `timeout` ms when nothing did.

        With `use_state_after` (MSC4222) the state is that at the end of the timeline, in a section of
        its own. Unknown parameters change nothing.
        """
        set_presence = request.query.get("set_presence", "online")
        if set_presence in STATES:
            await self._presence.syncing(request.requester.user_id, set_presence)
        wanted = SyncRequest(
            user_id=request.requester.user_id,
            device_id=request.requester.device_id or "",
            since=_since(request.query.get("since")),
            filter=await self._filter(request),
            timeout=rooms.number(request, "timeout", 0, most=MAX_TIMEOUT_MS) / 1000,
            full_state=request.query.get("full_state") == "true",
            state_after=tuple(
                section
                for parameter, section in STATE_AFTER.items()
                if request.query.get(parameter) == "true"
            ),
        )
        async with self._long_polls.while_logged_in(request):
            return await self._service.sync(wanted)

    async def _filter(self, request: Request) -> SyncFilter:
        """Inline JSON, or the ID of a filter the user has stored."""
        text = request.query.get("filter")
        if not text:
            return SyncFilter()
        if len(text) > MAX_FILTER:
            raise bad_param("filter is too large")
        try:
            if text.startswith("{"):
                return self._inline(text)
            if len(text) > MAX_FILTER_ID or not text.isprintable():
                raise bad_param("no such filter")
            stored = await self._stored_filter(request.requester.user_id, text)
            if stored is None:
                raise bad_param("no such filter")
            return parse_sync_filter(stored)
        except (ProtocolError, BadFilter, UnicodeEncodeError) as error:
            raise ApiError(400, "M_BAD_JSON", f"filter: {error}") from None

    def _inline(self, text: str) -> SyncFilter:
        """A filter in the query: every client of one kind sends the same, with each request."""
        known = self._filters.get(text)
        if known is None:
            known = parse_sync_filter(parse(text.encode()))
            if len(text) <= MAX_KEPT_FILTER:
                self._filters[text] = known
                if len(self._filters) > MAX_FILTERS:
                    self._filters.popitem(last=False)
        return known


def _since(text: str | None) -> SyncToken | None:
    if not text:
        return None
    try:
        return parse_sync(text)
    except BadToken:
        raise bad_param("since is not a token") from None
