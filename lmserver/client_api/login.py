"""Logging in and out, and making accounts (CS API §Client authentication)."""

from __future__ import annotations

import secrets
from typing import Any

from lmserver.accounts.accounts import AccountError, Accounts, Login
from lmserver.accounts.auth_stages import DUMMY, PASSWORD, REGISTRATION_TOKEN
from lmserver.accounts.passwords import BadPassword
from lmserver.client_api.interactive_auth import UserInteraction
from lmserver.web.endpoint import Auth, Reply, Request, Requester, endpoint
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

    def __init__(
        self,
        accounts: Accounts,
        interaction: UserInteraction,
        limiter: RateLimiter,
        registration_mode: str,
    ) -> None:
        self._accounts = accounts
        self._interaction = interaction
        self._limiter = limiter
        self._mode = registration_mode

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
        self._limit("login", request.remote_key)
        self._limit("login", name[:255])
        try:
            user_id = self._accounts.user_id(name.lower() if not name.startswith("@") else name)
        except AccountError:
            user_id = ""
        if not await self._accounts.check_password(user_id, password):
            raise forbidden("Invalid username or password")
        return _login_body(await self._log_in(user_id, body))

    def _limit(self, rate: str, key: str) -> None:
        wait = self._limiter.take(rate, key)
        if wait:
            raise limited(wait)

    async def _log_in(self, user_id: str, body: dict[str, Any]) -> Login:
        device_id, name = body.get("device_id"), body.get("initial_device_display_name")
        if not isinstance(device_id, str | None) or not isinstance(name, str | None):
            raise bad_json("device_id and initial_device_display_name are strings")
        try:
            return await self._accounts.log_in(user_id, device_id, name)
        except AccountError as error:
            raise api_error(error) from None

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

    # -- registration ---------------------------------------------------------------------------

    @endpoint("GET", "/_matrix/client/v3/register/available", auth=Auth.NONE, rate="registration")
    async def available(self, request: Request) -> dict[str, Any]:
        """Whether a user name is free."""
        self._require_registration()
        try:
            free = await self._accounts.available(request.query.get("username", "").lower())
        except AccountError as error:
            raise api_error(error) from None
        if not free:
            raise ApiError(400, "M_USER_IN_USE", "This user name is taken")
        return {"available": True}

    @endpoint("POST", "/_matrix/client/v3/register", auth=Auth.NONE)
    async def register(self, request: Request) -> dict[str, Any] | Reply:
        """Make an account, where that is allowed."""
        if request.query.get("kind", "user") != "user":
            raise ApiError(403, "M_GUEST_ACCESS_FORBIDDEN", "There is no guest access")
        self._require_registration()
        body = await request.json_or_empty()
        stage = REGISTRATION_TOKEN if self._mode == "token" else DUMMY
        await self._interaction.admit(request, body, [[stage]])
        self._limit("registration", request.remote_key)
        name, password = body.get("username"), body.get("password")
        if not isinstance(name, str | None) or not isinstance(password, str):
            raise bad_json("username and password are strings")
        try:
            user_id = await self._accounts.register((name or _random_name()).lower(), password)
        except AccountError as error:
            raise api_error(error) from None
        except BadPassword as error:
            raise ApiError(400, "M_WEAK_PASSWORD", str(error)) from None
        if body.get("inhibit_login") is True:
            return {"user_id": user_id}
        return _login_body(await self._log_in(user_id, body))

    def _require_registration(self) -> None:
        if self._mode == "closed":
            raise forbidden("Registration is closed; ask the server's administrator for an account")


def _name(body: dict[str, Any]) -> object:
    """The user of an `identifier`, or of the field old clients send."""
    identifier = body.get("identifier")
    if identifier is None:
        return body.get("user")
    if not isinstance(identifier, dict) or identifier.get("type") != "m.id.user":
        raise ApiError(400, "M_UNKNOWN", "Only m.id.user identifiers are supported")
    return identifier.get("user")


def _random_name() -> str:
    return secrets.token_hex(8)


def _login_body(login: Login) -> dict[str, Any]:
    return {
        "user_id": login.user_id,
        "device_id": login.device_id,
        "access_token": login.access_token,
        "home_server": login.user_id.split(":", 1)[1],
    }
