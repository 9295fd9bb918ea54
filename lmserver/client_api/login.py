"""Logging in and out (CS API §Client authentication)."""

from __future__ import annotations

from typing import Any

from lmserver.accounts.accounts import AccountError, Accounts
from lmserver.accounts.auth_stages import PASSWORD
from lmserver.web.endpoint import Auth, Request, Requester, endpoint
from lmserver.web.errors import ApiError, bad_json, forbidden, limited, missing_token, unknown_token
from lmserver.web.limits import RateLimiter


def api_error(error: AccountError) -> ApiError:
    return ApiError(error.status, error.errcode, error.reason)


class UserAuthenticator:
    """Sets `request.requester` from the access token."""

    def __init__(self, accounts: Accounts, *, required: bool = True) -> None:
        self._accounts = accounts
        self._required = required

    async def __call__(self, request: Request) -> None:
        """Raises M_MISSING_TOKEN or M_UNKNOWN_TOKEN."""
        token = access_token(request)
        if token is None:
            if self._required:
                raise missing_token()
            return
        owner = await self._accounts.owner(token)
        if owner is None:
            raise unknown_token()
        request.requester = Requester(owner.user_id, owner.device_id, owner.is_admin)
        await self._accounts.seen(owner, request.remote)


def access_token(request: Request) -> str | None:
    """From the header, or from the query as old clients send it; an empty one is none."""
    header: str = request.headers.get("Authorization", "")
    scheme, _, token = header.partition(" ")
    if header:
        return token.strip() if scheme.lower() == "bearer" and token.strip() else None
    return request.query.get("access_token") or None


class LoginEndpoints:
    """Accounts and access tokens."""

    def __init__(self, accounts: Accounts, limiter: RateLimiter) -> None:
        self._accounts = accounts
        self._limiter = limiter

    @endpoint("GET", "/_matrix/client/v3/login", auth=Auth.NONE)
    async def flows(self, request: Request) -> dict[str, Any]:
        """Ways to log in."""
        return {"flows": [{"type": PASSWORD}]}

    @endpoint("POST", "/_matrix/client/v3/login", auth=Auth.NONE)
    async def login(self, request: Request) -> dict[str, Any]:
        """Log in with a password."""
        body = await request.json()
        if body.get("type") != PASSWORD:
            raise ApiError(400, "M_UNKNOWN", "Unknown login type")
        name, password = _name(body), body.get("password")
        if not isinstance(name, str) or not isinstance(password, str):
            raise bad_json("identifier.user and password are strings")
        self._limit(request.remote_key)
        try:
            user_id = self._accounts.user_id(name)
        except AccountError:
            user_id = ""
        self._limit(user_id or name[:255])
        if not await self._accounts.check_password(user_id, password):
            raise forbidden("Invalid username or password")
        return await log_in(self._accounts, user_id, body)

    def _limit(self, key: str) -> None:
        wait = self._limiter.take("login", key)
        if wait:
            raise limited(wait)

    @endpoint("POST", "/_matrix/client/v3/logout", auth=Auth.USER)
    async def logout(self, request: Request) -> dict[str, Any]:
        """End this device's login."""
        await self._accounts.log_out(request.requester.user_id, [request.requester.device_id])
        return {}

    @endpoint("POST", "/_matrix/client/v3/logout/all", auth=Auth.USER)
    async def logout_all(self, request: Request) -> dict[str, Any]:
        """End every login of the user."""
        await self._accounts.log_out(request.requester.user_id)
        return {}

    @endpoint("GET", "/_matrix/client/v3/account/whoami", auth=Auth.USER)
    async def whoami(self, request: Request) -> dict[str, Any]:
        """Whose token this is."""
        requester = request.requester
        return {"user_id": requester.user_id, "device_id": requester.device_id, "is_guest": False}


def _name(body: dict[str, Any]) -> object:
    """The user of an `identifier`, or of the field old clients send."""
    identifier = body.get("identifier")
    if identifier is None:
        return body.get("user")
    if not isinstance(identifier, dict) or identifier.get("type") != "m.id.user":
        raise ApiError(400, "M_UNKNOWN", "Only m.id.user identifiers are supported")
    return identifier.get("user")


async def log_in(accounts: Accounts, user_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """A token for the device that the body of /login or /register names, as those answer it."""
    device_id, name = body.get("device_id"), body.get("initial_device_display_name")
    if not isinstance(device_id, str | None) or not isinstance(name, str | None):
        raise bad_json("device_id and initial_device_display_name are strings")
    try:
        login = await accounts.log_in(user_id, device_id, name)
    except AccountError as error:
        raise api_error(error) from None
    return {
        "user_id": login.user_id,
        "device_id": login.device_id,
        "access_token": login.access_token,
        "home_server": login.user_id.split(":", 1)[1],
    }
