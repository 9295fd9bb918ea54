"""The admin API, wired: what operators reach on the admin listener."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from aiohttp import web

from lmserver.accounts.access_tokens import AccessTokens
from lmserver.accounts.accounts import Accounts
from lmserver.accounts.administration import AccountAdministration
from lmserver.accounts.registration_tokens import RegistrationTokens
from lmserver.admin_api.access import AdminAuthenticator
from lmserver.admin_api.federation import FederationEndpoints, HubEndpoints
from lmserver.admin_api.media import ManyMediaEndpoints, MediaEndpoints
from lmserver.admin_api.notices import NoticeEndpoints
from lmserver.admin_api.page.login import LoginPage
from lmserver.admin_api.page.pages import OperatorPages
from lmserver.admin_api.page.sessions import PageSessions
from lmserver.admin_api.registration_tokens import RegistrationTokenEndpoints
from lmserver.admin_api.reports import ReportEndpoints
from lmserver.admin_api.rooms import RoomEndpoints, RoomRemovalEndpoints
from lmserver.admin_api.server import ServerEndpoints
from lmserver.admin_api.sessions import SessionEndpoints
from lmserver.admin_api.users import UserEndpoints
from lmserver.config import Config
from lmserver.federation_client.blocked import BlockedServers
from lmserver.federation_client.sender import Sender
from lmserver.media.administration import MediaAdministration
from lmserver.metrics import Metrics
from lmserver.rooms.administration import RoomAdministration
from lmserver.rooms.notices import Notices
from lmserver.storage.database import Database
from lmserver.web.addresses import TrustedProxies
from lmserver.web.app import Authenticator, build_app
from lmserver.web.endpoint import Auth
from lmserver.web.errors import ApiError
from lmserver.web.limits import RateLimiter


def admin_app(
    config: Config,
    db: Database,
    accounts: Accounts,
    administration: AccountAdministration,
    rooms: RoomAdministration,
    media: MediaAdministration,
    sender: Sender,
    blocked: BlockedServers,
    notices: Notices,
    access: AccessTokens,
    user: Authenticator,
    limiter: RateLimiter,
    failures: dict[type[Exception], ApiError],
    metrics: Metrics,
    clock: Callable[[], int],
) -> web.Application:
    """Every endpoint of the admin listener. `user` finds out whose access token it is. Browsers are not
    let in from other origins: there is no CORS (attack C16)."""
    tokens = RegistrationTokens(db, config.registration.tokens, clock)
    endpoints: list[object] = [
        ServerEndpoints(),
        UserEndpoints(config.server_name, accounts, administration),
        SessionEndpoints(db, config.server_name, accounts, administration),
        RegistrationTokenEndpoints(tokens),
        ReportEndpoints(db),
        FederationEndpoints(db, sender, blocked),
        HubEndpoints(db),
        MediaEndpoints(config.server_name, media),
        ManyMediaEndpoints(db, config.server_name, media, rooms),
        NoticeEndpoints(config.server_name, notices),
        RoomEndpoints(rooms),
        RoomRemovalEndpoints(rooms),
    ]
    sessions = PageSessions(accounts, administration, access, clock)
    if config.admin is not None and config.admin.page:
        endpoints += [
            LoginPage(config.server_name, sessions, limiter),
            OperatorPages(config.server_name, db, administration, rooms, sender),
        ]
    return build_app(
        endpoints,
        {Auth.ADMIN: AdminAuthenticator(user), Auth.ADMIN_PAGE: sessions.authenticate},
        failures=failures,
        limiter=limiter,
        observe=partial(metrics.observe_request, "admin"),
        proxies=TrustedProxies(config.trusted_proxies),
    )
