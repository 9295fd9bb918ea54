"""Whose OpenID token it is (SS API §OpenID)."""

from __future__ import annotations

from lmserver.accounts.openid import OpenIdTokens
from lmserver.federation_server.paths import STABLE
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, missing_token


class OpenIdEndpoints:
    """One endpoint."""

    def __init__(self, tokens: OpenIdTokens) -> None:
        self._tokens = tokens

    @endpoint("GET", STABLE + "/v1/openid/userinfo", auth=Auth.NONE)
    async def user_info(self, request: Request) -> dict[str, str]:
        """Services ask with a user's token and without a signature; 401 for one that does not count."""
        token = request.query.get("access_token", "")
        if not token:
            raise missing_token()
        user_id = await self._tokens.user(token)
        if user_id is None:
            raise ApiError(401, "M_UNKNOWN_TOKEN", "Unrecognised token")
        return {"sub": user_id}
