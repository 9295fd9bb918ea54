"""Logging in and out (CS API §Client authentication)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmserver.accounts.access_tokens import LOGIN_MS, AccessTokens, Issued, TokenExpired
from lmserver.accounts.accounts import Accounts
from lmserver.accounts.appservices import AppServices
from lmserver.accounts.auth_stages import PASSWORD
from lmserver.accounts.errors import AccountError, AccountLocked
from lmserver.client_api.interactive_auth import UserInteraction
from lmserver.config_appservices import AppService
from lmserver.web.endpoint import Auth, Request, Requester, endpoint
from lmserver.web.errors import (
    ApiError,
    bad_json,
    forbidden,
    limited,
    missing_token,
    unknown_token,
    user_locked,
)
from lmserver.web.limits import RateLimiter

APPSERVICE = "m.login.application_service"
LOGIN_TOKEN = "m.login.token"  # noqa: S105 - the name of a login type


def api_error(error: AccountError) -> ApiError:
    if isinstance(error, AccountLocked):
        return user_locked()
    return ApiError(error.status, error.errcode, error.reason)


class UserAuthenticator:
    """Sets `request.requester` from the access token."""

    def __init__(
        self,
        tokens: AccessTokens,
        services: AppServices,
        accounts: Accounts,
        *,
        required: bool = True,
        locked: bool = False,
    ) -> None:
        self._tokens = tokens
        self._services = services
        self._accounts = accounts
        self._required = required
        self._locked = locked

    async def __call__(self, request: Request) -> None:
        """Raises M_MISSING_TOKEN, M_UNKNOWN_TOKEN or M_USER_LOCKED."""
        token = access_token(request)
        if token is None:
            if self._required:
                raise missing_token()
            return
        service = self._services.of_token(token)
        if service is not None:
            request.requester = await self._acting(service, request)
            return
        try:
            owner = await self._tokens.owner(token)
        except TokenExpired:
            raise unknown_token(soft_logout=True) from None
        if owner is None:
            raise unknown_token()
        if owner.locked and not self._locked:
            raise user_locked()
        request.requester = Requester(
            owner.user_id,
            owner.device_id,
            owner.is_admin,
            owner.expires_ts,
            suspended=owner.suspended,
        )
        self._tokens.seen(owner, request.remote)

    async def _acting(self, service: AppService, request: Request) -> Requester:
        """An application service, as a user of its own (AS API §Identity assertion)."""
        query = request.query
        device_id = query.get("device_id") or query.get("org.matrix.msc3202.device_id") or ""
        try:
            user_id = await self._services.act_as(service, query.get("user_id"))
        except AccountError as error:
            raise api_error(error) from None
        if device_id and ("\0" in device_id or await self._accounts.device(user_id, device_id) is None):
            raise ApiError(400, "M_UNKNOWN_DEVICE", "The user has no such device")
        return Requester(user_id, device_id, appservice=service.id, limited=service.rate_limited)


def access_token(request: Request) -> str | None:
    """From the header, or from the query as old clients send it; an empty one is none."""
    header: str = request.headers.get("Authorization", "")
    scheme, _, token = header.partition(" ")
    if header:
        return token.strip() if scheme.lower() == "bearer" and token.strip() else None
    return request.query.get("access_token") or None


def service_of(services: AppServices, request: Request) -> AppService:
    """The application service whose token came with a request; raises ApiError."""
    token = access_token(request)
    if token is None:
        raise missing_token()
    service = services.of_token(token)
    if service is None:
        raise unknown_token()
    return service


class LoginEndpoints:
    """Logging in, staying logged in, and logging out."""

    def __init__(
        self,
        accounts: Accounts,
        tokens: AccessTokens,
        interaction: UserInteraction,
        limiter: RateLimiter,
        services: AppServices,
        providers: Sequence[tuple[str, str]],
    ) -> None:
        self._services = services
        self._providers = providers
        self._accounts = accounts
        self._tokens = tokens
        self._interaction = interaction
        self._limiter = limiter

    @endpoint("GET", "/_matrix/client/v3/login", auth=Auth.NONE)
    async def flows(self, request: Request) -> dict[str, Any]:
        """Ways to log in."""
        flows: list[dict[str, Any]] = [{"type": PASSWORD}, {"type": LOGIN_TOKEN, "get_login_token": True}]
        if self._services.services:
            flows.append({"type": APPSERVICE})
        if self._providers:
            known = [{"id": provider, "name": name} for provider, name in self._providers]
            flows.append({"type": "m.login.sso", "identity_providers": known})
        return {"flows": flows}

    @endpoint("POST", "/_matrix/client/v3/login", auth=Auth.NONE)
    async def login(self, request: Request) -> dict[str, Any]:
        """Log in with a password or with a login token."""
        body = await request.json()
        match body.get("type"):
            case "m.login.password":
                user_id = await self._by_password(request, body)
            case "m.login.token":
                user_id = await self._by_token(request, body)
            case "m.login.application_service":
                user_id = await self._by_service(request, body)
            case _:
                raise ApiError(400, "M_UNKNOWN", "Unknown login type")
        return await log_in(self._accounts, user_id, body)

    async def _by_password(self, request: Request, body: dict[str, Any]) -> str:
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
        return user_id

    async def _by_token(self, request: Request, body: dict[str, Any]) -> str:
        token = body.get("token")
        if not isinstance(token, str):
            raise bad_json("token is a string")
        self._limit(request.remote_key)
        user_id = await self._tokens.use_login_token(token)
        if user_id is None:
            raise forbidden("Invalid login token")
        return user_id

    async def _by_service(self, request: Request, body: dict[str, Any]) -> str:
        name, service = _name(body), service_of(self._services, request)
        if not isinstance(name, str):
            raise bad_json("identifier.user is a string")
        try:
            return await self._services.act_as(service, self._accounts.user_id(name))
        except AccountError as error:
            raise api_error(error) from None

    def _limit(self, key: str) -> None:
        wait = self._limiter.take("login", key)
        if wait:
            raise limited(wait)

    @endpoint("POST", "/_matrix/client/v1/login/get_token", auth=Auth.USER, suspended=True)
    async def get_token(self, request: Request) -> dict[str, Any]:
        """A token that logs another device in, once (CS API §Token-based user login)."""
        await self._interaction.confirm(request, await request.json_or_empty())
        token = await self._tokens.login_token(request.requester.user_id)
        return {"login_token": token, "expires_in_ms": LOGIN_MS}

    @endpoint("POST", "/_matrix/client/v3/refresh", auth=Auth.NONE)
    async def refresh(self, request: Request) -> dict[str, Any]:
        """New tokens for a refresh token (CS API §Refreshing access tokens)."""
        token = (await request.json()).get("refresh_token")
        if not isinstance(token, str):
            raise bad_json("refresh_token is a string")
        try:
            issued = await self._tokens.refresh(token)
        except AccountLocked:
            raise user_locked() from None
        except AccountError:
            issued = None
        if issued is None:
            raise unknown_token()
        return _tokens(issued)

    @endpoint("POST", "/_matrix/client/v3/logout", auth=Auth.LOCKED_USER, suspended=True)
    async def logout(self, request: Request) -> dict[str, Any]:
        """End this device's login."""
        await self._accounts.log_out(request.requester.user_id, [request.requester.device_id])
        return {}

    @endpoint("POST", "/_matrix/client/v3/logout/all", auth=Auth.LOCKED_USER, suspended=True)
    async def logout_all(self, request: Request) -> dict[str, Any]:
        """End every login of the user."""
        await self._accounts.log_out(request.requester.user_id)
        return {}


def _name(body: dict[str, Any]) -> object:
    """The user of an `identifier`, or of the field old clients send."""
    identifier = body.get("identifier")
    if identifier is None:
        return body.get("user")
    if not isinstance(identifier, dict) or identifier.get("type") != "m.id.user":
        raise ApiError(400, "M_UNKNOWN", "Only m.id.user identifiers are supported")
    return identifier.get("user")


async def log_in(accounts: Accounts, user_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """Tokens for the device that the body of /login or /register names, as those answer them."""
    device_id, name = body.get("device_id"), body.get("initial_device_display_name")
    if not isinstance(device_id, str | None) or not isinstance(name, str | None):
        raise bad_json("device_id and initial_device_display_name are strings")
    if "\0" in (name or ""):
        raise bad_json("initial_device_display_name has no NUL")
    refreshable = body.get("refresh_token") is True
    try:
        login = await accounts.log_in(user_id, device_id, name, refreshable=refreshable)
    except AccountError as error:
        raise api_error(error) from None
    return {
        "user_id": login.user_id,
        "device_id": login.device_id,
        "home_server": login.user_id.split(":", 1)[1],
        **_tokens(login.tokens),
    }


def _tokens(issued: Issued) -> dict[str, Any]:
    if issued.refresh_token is None:
        return {"access_token": issued.access_token}
    return {
        "access_token": issued.access_token,
        "refresh_token": issued.refresh_token,
        "expires_in_ms": issued.expires_in_ms,
    }
