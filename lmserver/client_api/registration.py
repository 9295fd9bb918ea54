"""Making accounts (CS API §Account registration and management)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmserver.accounts.accounts import Accounts
from lmserver.accounts.appservices import AppServices
from lmserver.accounts.auth_stages import REGISTRATION_TOKEN
from lmserver.accounts.errors import AccountError
from lmserver.accounts.passwords import BadPassword, check_length
from lmserver.accounts.registration import Registration
from lmserver.accounts.registration_tokens import RegistrationTokens
from lmserver.client_api.interactive_auth import Challenge, UserInteraction
from lmserver.client_api.login import APPSERVICE, api_error, log_in, service_of
from lmserver.web.endpoint import Auth, Request, endpoint
from lmserver.web.errors import ApiError, bad_json, bad_param, forbidden, limited, missing_param
from lmserver.web.limits import RateLimiter

V1_VALIDITY = "/_matrix/client/v1/register/m.login.registration_token/validity"


class RegistrationEndpoints:
    """Where people make accounts for themselves, if they may."""

    def __init__(
        self,
        accounts: Accounts,
        registration: Registration,
        tokens: RegistrationTokens,
        interaction: UserInteraction,
        services: AppServices,
        limiter: RateLimiter,
    ) -> None:
        self._accounts = accounts
        self._registration = registration
        self._tokens = tokens
        self._interaction = interaction
        self._services = services
        self._limiter = limiter

    @endpoint("GET", "/_matrix/client/v3/register/available", auth=Auth.NONE, rate="registration")
    async def available(self, request: Request) -> dict[str, Any]:
        """Whether a user name is free."""
        self._require_registration()
        if "username" not in request.query:
            raise missing_param("username is missing")
        await self._check_name(request.query["username"])
        return {"available": True}

    @endpoint("GET", V1_VALIDITY, auth=Auth.NONE, rate="registration")
    async def token_validity(self, request: Request) -> dict[str, Any]:
        """Whether somebody could register with a token now."""
        self._require_registration()
        if "token" not in request.query:
            raise missing_param("token is missing")
        return {"valid": await self._tokens.is_valid(request.query["token"])}

    @endpoint("POST", "/_matrix/client/v3/register", auth=Auth.NONE)
    async def register(self, request: Request) -> dict[str, Any]:
        """Make an account, where that is allowed, and log in to it unless asked not to."""
        kind = request.query.get("kind", "user")
        if kind == "guest":
            raise ApiError(403, "M_GUEST_ACCESS_FORBIDDEN", "There is no guest access")
        if kind != "user":
            raise bad_param("kind is user or guest")
        body = await request.json_or_empty()
        if body.get("type") == APPSERVICE:
            return await self._of_service(request, body)
        self._require_registration()
        name, password = body.get("username"), body.get("password")
        if not isinstance(name, str | None) or not isinstance(password, str | None):
            raise bad_json("username and password are strings")
        # What is wrong with them is said before anything has to be proven.
        if name is not None:
            await self._check_name(name)
        if password is not None:
            _check_password(password)
        proofs = await self._admit(request, body)
        if password is None:
            raise missing_param("password is missing")
        self._limit(request)
        try:
            user_id = await self._registration.register(name, password, proofs.get(REGISTRATION_TOKEN))
        except AccountError as error:
            raise api_error(error) from None
        return await self._logged_in(user_id, body)

    async def _logged_in(self, user_id: str, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("inhibit_login") is True:
            return {"user_id": user_id, "home_server": user_id.split(":", 1)[1]}
        return await log_in(self._accounts, user_id, body)

    async def _of_service(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        """A user of an application service, which needs no password (AS API §Server admin style
        permissions)."""
        service = service_of(self._services, request)
        name = body.get("username")
        if not isinstance(name, str):
            raise bad_json("username is a string")
        try:
            user_id = await self._services.make_user(service, name)
        except AccountError as error:
            raise api_error(error) from None
        return await self._logged_in(user_id, body)

    async def _admit(self, request: Request, body: dict[str, Any]) -> Mapping[str, str]:
        """Guesses at tokens count like registrations."""
        wait = self._limiter.wait("registration", request.remote_key)
        if wait:
            raise limited(wait)
        try:
            return await self._interaction.admit(request, body, self._registration.flows)
        except Challenge as challenge:
            if challenge.errcode:
                self._limit(request)
            raise

    def _limit(self, request: Request) -> None:
        wait = self._limiter.take("registration", request.remote_key)
        if wait:
            raise limited(wait)

    def _require_registration(self) -> None:
        if not self._registration.is_open:
            raise forbidden("Registration is closed; ask the server's administrator for an account")

    async def _check_name(self, name: str) -> None:
        try:
            await self._registration.check_name(name)
        except AccountError as error:
            raise api_error(error) from None


def _check_password(password: str) -> None:
    try:
        check_length(password)
    except BadPassword as error:
        raise ApiError(400, "M_WEAK_PASSWORD", str(error)) from None
