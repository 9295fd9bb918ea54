"""Account data and filters of users, and markers such as m.fully_read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any

import orjson

from lmserver.accounts import push_rules
from lmserver.protocol import unpadded_base64
from lmserver.storage import account_data
from lmserver.storage import push_rules as stored_rules
from lmserver.storage.account_data import AccountDatum
from lmserver.storage.database import Connection, Database

MAX_ENTRIES = 10_000
MAX_FILTERS = 1_000


class TooManyEntries(Exception):
    """The user keeps more with us than anybody needs."""


class ClientData:
    """JSON that clients keep with us; every change is told to the user's other devices."""

    def __init__(self, db: Database, publish: Callable[[Iterable[str]], None]) -> None:
        self._db = db
        self._publish = publish

    async def put(self, user_id: str, room_id: str, type_: str, content: dict[str, Any]) -> None:
        """Raises TooManyEntries."""
        if await account_data.count(self._db, user_id) >= MAX_ENTRIES:
            raise TooManyEntries
        await account_data.put(self._db, user_id, room_id, type_, orjson.dumps(content))
        self._publish([user_id])

    async def change(
        self,
        user_id: str,
        room_id: str,
        type_: str,
        changed: Callable[[dict[str, Any] | None], dict[str, Any] | None],
    ) -> None:
        """Put what `changed` makes of what is there (None: nothing), with no other change in between;
        its None leaves all as it is. Raises TooManyEntries."""

        async def change(db: Connection) -> bool:
            await account_data.lock(db, user_id)
            stored = await account_data.get(db, user_id, room_id, type_)
            content = changed(None if stored is None else orjson.loads(stored))
            if content is None:
                return False
            if stored is None and await account_data.count(db, user_id) >= MAX_ENTRIES:
                raise TooManyEntries
            await account_data.put(db, user_id, room_id, type_, orjson.dumps(content))
            return True

        if await self._db.run(change):
            self._publish([user_id])

    async def get(self, user_id: str, room_id: str, type_: str) -> dict[str, Any] | None:
        if type_ == push_rules.TYPE and room_id == "":
            return {"global": await push_rules.rules_of(self._db, user_id)}
        content = await account_data.get(self._db, user_id, room_id, type_)
        return None if content is None else orjson.loads(content)

    async def changed(self, user_id: str, since: int, upto: int) -> dict[str, list[dict[str, Any]]]:
        """Events by room ID ("" for global) that changed in [since, upto). Push rules are always among
        them for `since` 0: everybody has some."""
        rooms = _by_room(await account_data.changed(self._db, user_id, since, upto))
        if since == 0 or await stored_rules.have_changed(self._db, user_id, since, upto):
            rooms.setdefault("", []).append(await push_rules.event_of(self._db, user_id))
        return rooms

    async def of_rooms(self, user_id: str, room_ids: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
        return _by_room(await account_data.of_rooms(self._db, user_id, room_ids))

    async def of_type(self, user_id: str, type_: str) -> dict[str, dict[str, Any]]:
        """Contents of one type of data by room ID."""
        found = await account_data.of_type(self._db, user_id, type_)
        return {datum.room_id: orjson.loads(datum.content) for datum in found}

    async def put_filter(self, user_id: str, content: dict[str, Any]) -> str:
        """Store a filter and return its ID; the same filter has the same ID. TooManyEntries."""
        data = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
        filter_id = unpadded_base64.encode_urlsafe(sha256(data).digest())[:16]
        if await account_data.count_filters(self._db, user_id) >= MAX_FILTERS:
            raise TooManyEntries
        await account_data.put_filter(self._db, user_id, filter_id, data)
        return filter_id

    async def get_filter(self, user_id: str, filter_id: str) -> dict[str, Any] | None:
        content = await account_data.get_filter(self._db, user_id, filter_id)
        return None if content is None else orjson.loads(content)


def _by_room(found: Iterable[AccountDatum]) -> dict[str, list[dict[str, Any]]]:
    rooms: dict[str, list[dict[str, Any]]] = {}
    for datum in found:
        rooms.setdefault(datum.room_id, []).append(
            {"type": datum.type, "content": orjson.loads(datum.content)}
        )
    return rooms
