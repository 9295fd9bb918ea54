"""Whole profiles: name, avatar, and fields of the user's own (CS API §Profiles).

Only name and avatar stand in member events; the other fields are told to who asks.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from lmserver.accounts.accounts import Accounts
from lmserver.protocol import canonical_json
from lmserver.storage import accounts, profile_fields
from lmserver.storage.database import Connection, Database

IN_ROOMS = ("displayname", "avatar_url")
MAX_PROFILE = 64 * 1024
MAX_FIELD_NAME = 255
# Matrix appendices, §Common Namespaced Identifier Grammar.
_FIELD = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


class ProfileTooLarge(Exception):
    """All fields together may have MAX_PROFILE bytes of JSON."""


def is_field(name: str) -> bool:
    """Whether a profile may have a field of this name."""
    return name in IN_ROOMS or (len(name) <= MAX_FIELD_NAME and _FIELD.fullmatch(name) is not None)


class Profiles:
    """Profiles of local users."""

    def __init__(self, db: Database, accounts: Accounts) -> None:
        self._db = db
        self._accounts = accounts

    async def of(self, user_id: str) -> dict[str, Any] | None:
        """Every field; None for a user who does not exist or is gone."""
        if not await self._accounts.is_active(user_id):
            return None
        fields = await profile_fields.of_user(self._db, user_id)
        return {
            **await self._accounts.profile(user_id),
            **{name: orjson.loads(value) for name, value in fields.items()},
        }

    async def put(self, user_id: str, field: str, value: Any) -> None:
        """Set a field whose name `is_field`; name and avatar are text, other values have a canonical form,
        or no server could be told of them. Raises ProfileTooLarge or a ProtocolError."""
        if field in IN_ROOMS:
            await self._accounts.set_profile(user_id, field, value or None)
            return
        data = canonical_json.encode(value)

        async def work(db: Connection) -> None:
            await accounts.lock(db, user_id)
            others = {k: v for k, v in (await profile_fields.of_user(db, user_id)).items() if k != field}
            shown = orjson.dumps(await self._accounts.profile(user_id))
            size = len(shown) + sum(len(k) + len(v) + 4 for k, v in (*others.items(), (field, data)))
            if size > MAX_PROFILE:
                raise ProfileTooLarge
            await profile_fields.put(db, user_id, field, data)

        await self._db.run(work)

    async def remove(self, user_id: str, field: str) -> None:
        """What is not set is removed as well."""
        if field in IN_ROOMS:
            await self._accounts.set_profile(user_id, field, None)
        else:
            await profile_fields.remove(self._db, user_id, field)
