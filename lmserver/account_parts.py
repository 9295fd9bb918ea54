"""The client's endpoints of accounts, wired: making them, logging in and out, and what they end with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lmserver.accounts.access_tokens import AccessTokens
from lmserver.accounts.accounts import Accounts
from lmserver.accounts.administration import AccountAdministration, TellRooms
from lmserver.accounts.appservices import AppServices
from lmserver.accounts.auth_stages import (
    DUMMY,
    PASSWORD,
    REGISTRATION_TOKEN,
    dummy_stage,
    password_stage,
    registration_token_stage,
)
from lmserver.accounts.interactive_auth import Flows, InteractiveAuth
from lmserver.accounts.registration import Registration
from lmserver.accounts.registration_tokens import RegistrationTokens
from lmserver.accounts.sso import STAGE, Provider, SingleSignOn
from lmserver.client_api.account import AccountEndpoints
from lmserver.client_api.devices import DeviceEndpoints
from lmserver.client_api.interactive_auth import UserInteraction
from lmserver.client_api.login import LoginEndpoints, UserAuthenticator
from lmserver.client_api.long_polls import LongPolls
from lmserver.client_api.moderation import ModerationEndpoints
from lmserver.client_api.registration import RegistrationEndpoints
from lmserver.config import Config
from lmserver.federation_client.web_client import WebClient
from lmserver.storage.database import Database
from lmserver.web.app import Authenticator
from lmserver.web.endpoint import Auth
from lmserver.web.limits import RateLimiter


@dataclass(frozen=True, slots=True)
class AccountParts:
    """The endpoints, who may call any endpoint, which requests wait, what asks users to prove themselves
    again, and accounts as operators have them."""

    endpoints: list[object]
    authenticators: dict[Auth, Authenticator]
    long_polls: LongPolls
    interaction: UserInteraction
    administration: AccountAdministration


def account_parts(
    config: Config,
    db: Database,
    accounts: Accounts,
    access: AccessTokens,
    services: AppServices,
    web: WebClient,
    tell_rooms: TellRooms,
    limiter: RateLimiter,
    clock: Callable[[], int],
) -> AccountParts:
    """What the client API has to say of accounts and logins."""
    tokens = RegistrationTokens(db, config.registration.tokens, clock)
    registration = Registration(accounts, tokens, config.registration.mode, services.is_exclusive)
    stages = {
        PASSWORD: password_stage(accounts, limiter),
        DUMMY: dummy_stage,
        REGISTRATION_TOKEN: registration_token_stage(tokens.is_valid),
    }
    auth = InteractiveAuth(db, stages, clock)
    sso = SingleSignOn(db, _providers(config, web), accounts, registration, auth, clock)
    interaction = UserInteraction(auth, partial(_flows_of, accounts, sso))
    administration = AccountAdministration(db, accounts, tell_rooms)
    browsing = _browsing(config, sso, access)
    authenticate = UserAuthenticator(access, services, accounts)
    long_polls = LongPolls(authenticate, clock)
    access.on_ended = long_polls.end
    return AccountParts(
        [
            *browsing,
            LoginEndpoints(accounts, access, interaction, limiter, services, sso.providers),
            RegistrationEndpoints(accounts, registration, tokens, interaction, services, limiter),
            AccountEndpoints(accounts, interaction),
            DeviceEndpoints(accounts, interaction),
            ModerationEndpoints(config.server_name, administration),
        ],
        {
            Auth.USER: authenticate,
            Auth.LOCKED_USER: UserAuthenticator(access, services, accounts, locked=True),
            Auth.OPTIONAL_USER: UserAuthenticator(access, services, accounts, required=False),
        },
        long_polls,
        interaction,
        administration,
    )


def _providers(config: Config, web: WebClient) -> list[Provider]:
    """Their libraries take 15 MB, which most servers have no use for."""
    if not config.oidc_providers:
        return []
    from lmserver.client_api.sso import CALLBACK
    from lmserver.federation_client.oidc import OidcClient

    callback = (config.client.public_url or "") + CALLBACK
    return [OidcClient(settings, web, callback) for settings in config.oidc_providers]


def _browsing(config: Config, sso: SingleSignOn, access: AccessTokens) -> list[object]:
    """What browsers are shown on their way to a provider and back."""
    if not config.oidc_providers:
        return []
    from lmserver.client_api.sso import SsoEndpoints

    return [SsoEndpoints(sso, access, config.client.public_url or "", config.trusted_clients)]


async def _flows_of(accounts: Accounts, sso: SingleSignOn, user_id: str) -> Flows:
    """With the password, if there is one, or where the user logs in."""
    providers = await sso.providers_of(user_id)
    if not providers:
        return [[PASSWORD]]
    return [[PASSWORD], [STAGE]] if await accounts.has_password(user_id) else [[STAGE]]
