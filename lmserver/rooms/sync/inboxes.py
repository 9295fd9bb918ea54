"""Messages to devices, without asking for those that are known not to be there."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from lmserver.protocol.canonical_json import JsonObject
from lmserver.rooms.sync.feeds import MAX_MESSAGES, Feeds
from lmserver.rooms.sync.journal import Journal

MAX_DEVICES: Final = 20_000


class Inboxes:
    """Remembers of each device up to which stream position nothing waits for it."""

    def __init__(self, feeds: Feeds, journal: Journal) -> None:
        self._feeds = feeds
        self._journal = journal
        self._empty: OrderedDict[tuple[str, str], int] = OrderedDict()
        journal.on_another_database(self._empty.clear)

    async def messages(
        self, user_id: str, device_id: str, since: int, upto: int, most: int = MAX_MESSAGES
    ) -> tuple[list[JsonObject], int]:
        """See Feeds.to_device."""
        device = (user_id, device_id)
        empty = self._empty.get(device)
        if empty is not None and self._nothing_since(user_id, device_id, empty, upto):
            self._empty[device] = max(empty, upto)
            self._empty.move_to_end(device)
            return [], upto
        messages, got_to = await self._feeds.to_device(user_id, device_id, since, upto, most)
        if messages:
            self._empty.pop(device, None)
        else:
            self._empty[device] = got_to
            if len(self._empty) > MAX_DEVICES:
                self._empty.popitem(last=False)
        return messages, got_to

    def _nothing_since(self, user_id: str, device_id: str, empty: int, upto: int) -> bool:
        return (
            self._journal.covers(empty)
            and upto <= self._journal.end
            and not self._journal.changed("inbox", user_id, empty, device_id)
        )
