"""The client's endpoints of accounts, wired: making them, logging in and out, and what they end with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmserver.accounts.access_tokens import AccessTokens
from lmserver.accounts.accounts import Accounts
from lmserver.accounts.auth_stages import (
    DUMMY,
    PASSWORD,
    REGISTRATION_TOKEN,
    dummy_stage,
    password_stage,
    registration_token_stage,
)
from lmserver.accounts.interactive_auth import InteractiveAuth
from lmserver.accounts.registration import Registration
from lmserver.accounts.registration_tokens import RegistrationTokens
from lmserver.client_api.account import AccountEndpoints
from lmserver.client_api.devices import DeviceEndpoints
from lmserver.client_api.interactive_auth import UserInteraction
from lmserver.client_api.login import LoginEndpoints, UserAuthenticator
from lmserver.client_api.registration import RegistrationEndpoints
from lmserver.config import Config
from lmserver.storage.database import Database
from lmserver.web.app import Authenticator
from lmserver.web.endpoint import Auth
from lmserver.web.limits import RateLimiter


@dataclass(frozen=True, slots=True)
class AccountParts:
    """The endpoints, who may call any endpoint, and what asks users to prove themselves again."""

    endpoints: list[object]
    authenticators: dict[Auth, Authenticator]
    interaction: UserInteraction


def account_parts(
    config: Config,
    db: Database,
    accounts: Accounts,
    access: AccessTokens,
    limiter: RateLimiter,
    clock: Callable[[], int],
) -> AccountParts:
    """What the client API has to say of accounts and logins."""
    tokens = RegistrationTokens(db, config.registration.tokens, clock)
    registration = Registration(accounts, tokens, config.registration.mode)
    stages = {
        PASSWORD: password_stage(accounts, limiter),
        DUMMY: dummy_stage,
        REGISTRATION_TOKEN: registration_token_stage(tokens.is_valid),
    }
    interaction = UserInteraction(InteractiveAuth(db, stages, clock))
    return AccountParts(
        [
            LoginEndpoints(accounts, access, interaction, limiter),
            RegistrationEndpoints(accounts, registration, tokens, interaction, limiter),
            AccountEndpoints(accounts, interaction),
            DeviceEndpoints(accounts, interaction),
        ],
        {
            Auth.USER: UserAuthenticator(access),
            Auth.LOCKED_USER: UserAuthenticator(access, locked=True),
            Auth.OPTIONAL_USER: UserAuthenticator(access, required=False),
        },
        interaction,
    )
