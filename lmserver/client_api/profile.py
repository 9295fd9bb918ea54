"""Display names and avatars (CS API §Profiles)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from lmserver.accounts.accounts import Accounts
from lmserver.protocol import ids
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import bad_json, bad_param, forbidden, not_found

FIELDS = ("displayname", "avatar_url")
MAX_VALUE = 1000

Changed = Callable[[str], Awaitable[None]]
"""Called with a user ID after the profile has changed."""

RemoteProfile = Callable[[str], Awaitable[dict[str, Any] | None]]
"""The profile of a user of another server; None when it cannot be had."""


class ProfileEndpoints:
    """Profiles of local users, and of others as their servers tell."""

    def __init__(self, accounts: Accounts, our_name: str, changed: Changed, remote: RemoteProfile) -> None:
        self._accounts = accounts
        self._our_name = our_name
        self._changed = changed
        self._remote = remote

    @endpoint("GET", "/_matrix/client/v3/profile/{user_id}", auth=Auth.OPTIONAL_USER)
    async def profile(self, request: Request) -> dict[str, Any]:
        """The whole profile."""
        return await self._profile(request.params["user_id"])

    @endpoint("GET", "/_matrix/client/v3/profile/{user_id}/{field}", auth=Auth.OPTIONAL_USER)
    async def field(self, request: Request) -> dict[str, Any]:
        """One field; {} when it is not set."""
        field = _field(request)
        profile = await self._profile(request.params["user_id"])
        return {field: profile[field]} if field in profile else {}

    async def _profile(self, user_id: str) -> dict[str, Any]:
        if not ids.is_user_id(user_id):
            raise bad_param("Not a user ID")
        if ids.server_of(user_id) != self._our_name:
            found = await self._remote(user_id)
            if found is None:
                raise not_found("Profile not found")
            return found
        if not await self._accounts.is_active(user_id):
            raise not_found("Profile not found")
        return await self._accounts.profile(user_id)

    @endpoint("PUT", "/_matrix/client/v3/profile/{user_id}/{field}", auth=Auth.USER)
    async def put(self, request: Request) -> dict[str, Any]:
        """Set one's own field; rooms are told by new member events."""
        field = _field(request)
        if request.params["user_id"] != request.requester.user_id:
            raise forbidden("You may change only your own profile")
        value = (await request.json()).get(field)
        if not isinstance(value, str | None) or len(value or "") > MAX_VALUE or not _storable(value or ""):
            raise bad_json(f"{field} is a string of at most {MAX_VALUE} characters")
        await self._accounts.set_profile(request.requester.user_id, field, value or None)
        await self._changed(request.requester.user_id)
        return {}


def _field(request: Request) -> str:
    field = request.params["field"]
    if field not in FIELDS:
        raise not_found("Profile field not found")
    return field


def _storable(value: str) -> bool:
    """Text that has a canonical form and a place in a text column."""
    return ("\0" not in value and value.isascii()) or (
        "\0" not in value and not any(0xD800 <= ord(c) <= 0xDFFF for c in value)
    )
