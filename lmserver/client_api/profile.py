"""Profiles: display names, avatars, and other fields (CS API §Profiles)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from lmserver.accounts.profiles import IN_ROOMS, MAX_FIELD_NAME, Profiles, ProfileTooLarge, is_field
from lmserver.protocol import ids
from lmserver.protocol.errors import InvalidJson
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, bad_param, forbidden, missing_param, not_found

MAX_VALUE = 1000

Changed = Callable[[str], Awaitable[None]]
"""Called with a user ID after the profile has changed."""

RemoteProfile = Callable[[str], Awaitable[dict[str, Any] | None]]
"""The profile of a user of another server; None when it cannot be had."""


class ProfileEndpoints:
    """Profiles of local users, and of others as their servers tell."""

    def __init__(self, profiles: Profiles, our_name: str, changed: Changed, remote: RemoteProfile) -> None:
        self._profiles = profiles
        self._our_name = our_name
        self._changed = changed
        self._remote = remote

    @endpoint("GET", "/_matrix/client/v3/profile/{user_id}", auth=Auth.OPTIONAL_USER)
    async def profile(self, request: Request) -> dict[str, Any]:
        """The whole profile."""
        return await self._profile(request.params["user_id"])

    @endpoint("GET", "/_matrix/client/v3/profile/{user_id}/{field}", auth=Auth.OPTIONAL_USER)
    async def field(self, request: Request) -> dict[str, Any]:
        """One field; of name and avatar {} when it is not set."""
        field = request.params["field"]
        if not is_field(field):
            raise not_found("Profile field not found")
        profile = await self._profile(request.params["user_id"])
        if field not in profile and field not in IN_ROOMS:
            raise not_found("Profile field not found")
        return {field: profile[field]} if field in profile else {}

    async def _profile(self, user_id: str) -> dict[str, Any]:
        if not ids.is_user_id(user_id):
            raise bad_param("Not a user ID")
        ours = ids.server_of(user_id) == self._our_name
        found = await (self._profiles.of(user_id) if ours else self._remote(user_id))
        if found is None:
            raise not_found("Profile not found")
        return found

    @endpoint("PUT", "/_matrix/client/v3/profile/{user_id}/{field}", auth=Auth.USER)
    async def put(self, request: Request) -> dict[str, Any]:
        """Set one's own field; rooms are told of name and avatar by new member events."""
        user_id, field = _own(request)
        body = await request.json()
        if field not in body:
            raise missing_param(f"{field} is missing")
        value = body[field]
        if field in IN_ROOMS and (
            not isinstance(value, str | None) or len(value or "") > MAX_VALUE or not _storable(value or "")
        ):
            raise bad_json(f"{field} is a string of at most {MAX_VALUE} characters")
        try:
            await self._profiles.put(user_id, field, value)
        except InvalidJson:
            raise bad_json(f"{field} has no canonical form: fractions have none") from None
        except ProfileTooLarge:
            raise ApiError(400, "M_PROFILE_TOO_LARGE", "The profile has too much in it") from None
        return await self._tell(user_id, field)

    @endpoint("DELETE", "/_matrix/client/v3/profile/{user_id}/{field}", auth=Auth.USER)
    async def remove(self, request: Request) -> dict[str, Any]:
        """Remove one's own field."""
        user_id, field = _own(request)
        await self._profiles.remove(user_id, field)
        return await self._tell(user_id, field)

    async def _tell(self, user_id: str, field: str) -> dict[str, Any]:
        if field in IN_ROOMS:
            await self._changed(user_id)
        return {}


def _own(request: Request) -> tuple[str, str]:
    """The requester's ID, and the field's name."""
    if request.params["user_id"] != request.requester.user_id:
        raise forbidden("You may change only your own profile")
    field = request.params["field"]
    if len(field) > MAX_FIELD_NAME:
        raise ApiError(400, "M_KEY_TOO_LARGE", f"A field's name has at most {MAX_FIELD_NAME} characters")
    if not is_field(field):
        raise bad_param("A field is named like org.example.field")
    return request.requester.user_id, field


def _storable(value: str) -> bool:
    """Text that has a canonical form and a place in a text column."""
    return ("\0" not in value and value.isascii()) or (
        "\0" not in value and not any(0xD800 <= ord(c) <= 0xDFFF for c in value)
    )
