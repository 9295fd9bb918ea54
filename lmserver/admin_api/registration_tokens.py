"""Tokens that people register with (as Synapse's registration tokens API has it)."""

from __future__ import annotations

from typing import Any

from lmserver.accounts.registration_tokens import BadRegistrationToken, RegistrationTokens
from lmserver.admin_api import parameters as p
from lmserver.admin_api.parameters import SYNAPSE
from lmserver.protocol.canonical_json import JsonObject
from lmserver.storage.registration_tokens import RegistrationToken
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, bad_param, not_found

TOKENS = SYNAPSE + "/v1/registration_tokens"
MAX_LENGTH = 64


class RegistrationTokenEndpoints:
    """Those of the configuration are not among them."""

    def __init__(self, tokens: RegistrationTokens) -> None:
        self._tokens = tokens

    @endpoint("GET", TOKENS, auth=Auth.ADMIN)
    async def listed(self, request: Request) -> JsonObject:
        """All tokens, the newest first; `valid` picks those that can, or can no longer, be used."""
        valid = p.flag(request, "valid")
        found = [t for t in await self._tokens.listed() if valid in (None, self._tokens.is_usable(t))]
        return {"registration_tokens": [_shown(token) for token in found]}

    @endpoint("GET", TOKENS + "/{token}", auth=Auth.ADMIN)
    async def token(self, request: Request) -> JsonObject:
        """One token."""
        return _shown(await self._known(request))

    @endpoint("POST", TOKENS + "/new", auth=Auth.ADMIN)
    async def new(self, request: Request) -> JsonObject:
        """Make a token, of the given text or of `length` random characters."""
        body = await request.json()
        length = p.of_body(body, "length", int)
        if length is not None and not 1 <= length <= MAX_LENGTH:
            raise bad_json(f"length is 1 to {MAX_LENGTH}")
        text = p.of_body(body, "token", str)
        bounds = _bound(body, "uses_allowed"), _bound(body, "expiry_time")
        try:
            return _shown(await self._tokens.create(text, *bounds, length or 16))
        except BadRegistrationToken as error:
            raise bad_param(str(error)) from None

    @endpoint("PUT", TOKENS + "/{token}", auth=Auth.ADMIN)
    async def change(self, request: Request) -> JsonObject:
        """Give a token other bounds; what the body does not name stays, null takes a bound away."""
        body, token = await request.json(), await self._known(request)
        uses = _bound(body, "uses_allowed") if "uses_allowed" in body else token.uses_allowed
        expires = _bound(body, "expiry_time") if "expiry_time" in body else token.expires_ts
        if (uses, expires) == (token.uses_allowed, token.expires_ts):
            return _shown(token)
        try:
            changed = await self._tokens.change(token.token, uses, expires)
        except BadRegistrationToken as error:
            raise bad_param(str(error)) from None
        if changed is None:
            raise _unknown()
        return _shown(changed)

    @endpoint("DELETE", TOKENS + "/{token}", auth=Auth.ADMIN)
    async def delete(self, request: Request) -> JsonObject:
        """Nobody registers with it any more."""
        if not await self._tokens.delete(request.params["token"]):
            raise _unknown()
        return {}

    async def _known(self, request: Request) -> RegistrationToken:
        found = await self._tokens.get(request.params["token"])
        if found is None:
            raise _unknown()
        return found


def _bound(body: dict[str, Any], key: str) -> int | None:
    value = p.of_body(body, key, int)
    if value is not None and value < 0:
        raise bad_param(f"{key} is 0 or more")
    return value


def _unknown() -> ApiError:
    return not_found("There is no such registration token")


def _shown(token: RegistrationToken) -> JsonObject:
    return {
        "token": token.token,
        "uses_allowed": token.uses_allowed,
        # A use counts when the account is made: none is ever under way.
        "pending": 0,
        "completed": token.completed,
        "expiry_time": token.expires_ts,
    }
